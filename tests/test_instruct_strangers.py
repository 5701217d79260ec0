"""Instruction data of what strangers write: sources, replies and journals of any content and length, and flags out of
their range.
"""

import errno
import json
import re
import time
from pathlib import Path

import pytest

from minillava.arguments import Parser, add_flags
from minillava.data.instruct import __main__ as command
from minillava.data.instruct import filters, report
from minillava.data.instruct.collect import collect
from minillava.data.instruct.filters import judge
from minillava.data.instruct.generate import DataSet, make_requests
from minillava.data.instruct.journal import Journal
from minillava.data.instruct.objects import hallucinated
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.replies import clean, parse_pairs
from minillava.data.instruct.rules import RuleTeacher
from minillava.data.instruct.settings import RANGES, Settings
from minillava.data.instruct.simple import noun_phrases
from minillava.data.instruct.sources import read_source, scene_picture
from minillava.data.instruct.teacher import Reply
from minillava.errors import UserError, run

ESCAPE = "\x1b]0;title\x07"
LARGE = "9" * 400
PICTURE = {"image": "a.png", "captions": ["A cat lies on a mat in the sun."]}


# ------------------------------------------------------------ sources
BOXES = f"""0, 0, {LARGE}, 1; -{LARGE}, 0, 1, 1; {"9" * 5000}; 0, 0, 1e999, 1; NaN, 0, 1, 1; -0.5, 0, 1, 1; 0.9, 0, 0.1, 1
10, 20, 60, 40; "0", 0, 1, 1; 0, 0, 1; 0, 0, 1, 1, 1; [0], 0, 1, 1; null, 0, 1, 1; {"[" * 100_000}"""


@pytest.mark.parametrize("box", re.split("; |\n", BOXES), ids=lambda box: box[:20])
def test_a_box_that_is_none_is_told_with_its_line(tmp_path, box):
    line = f'{{"image": "a", "captions": ["a"], "instances": [{{"category": "cat", "bbox": [{box}]}}]}}'
    (tmp_path / "a.jsonl").write_text('{"image": "b.jpg", "captions": ["ok"]}\n' + line)
    with pytest.raises(UserError, match="line 2"):
        read_source(str(tmp_path / "a.jsonl"))


def test_a_box_may_reach_over_the_edge_by_a_little(tmp_path):
    boxes = [{"category": "cat", "bbox": [-0.01, 0, 1.02, 1]}]
    (tmp_path / "a.jsonl").write_text(json.dumps({**PICTURE, "instances": boxes}))
    assert read_source(str(tmp_path / "a.jsonl"))[0].instances == (("cat", (0.0, 0.0, 1.0, 1.0)),)


COCO_BOXES = [[0, 0, int(LARGE), 1], [0.5, 0, int(LARGE), 1], [5, 0, -3, 1], [0, 0, 1, float("nan")], [0, 0, 1], 5]
WIDTHS = [0, -9, "9", float("nan"), None]


@pytest.mark.parametrize("box, width", [(box, 9) for box in COCO_BOXES] + [([0, 0, 1, 1], width) for width in WIDTHS])
def test_a_box_of_coco_that_is_none_is_told_with_its_annotation(tmp_path, box, width):
    images = [{"id": 7, "file_name": "7.jpg", "width": width, "height": 9}]
    said = [{"id": 1, "image_id": 7, "caption": "A cat."}]
    notes = [{"id": 55, "image_id": 7, "category_id": 1, "bbox": box}]
    (tmp_path / "captions_x.json").write_text(json.dumps({"images": images, "annotations": said}))
    names = [{"id": 1, "name": "cat"}]
    (tmp_path / "instances_x.json").write_text(
        json.dumps({"images": images, "annotations": notes, "categories": names})
    )
    with pytest.raises(UserError, match="annotation 55"):
        read_source(str(tmp_path / "captions_x.json"))


def test_lines_end_at_newlines_alone_and_half_a_pair_is_mended(tmp_path):
    marks = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\ud83d"]
    lines = [{**PICTURE, "id": str(i), "captions": [f"A cat{mark}lies there."]} for i, mark in enumerate(marks)]
    plain = [
        json.dumps(line, ensure_ascii=mark < " " or mark > "\ud000") for line, mark in zip(lines, marks, strict=True)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(plain) + "\r\n", encoding="utf-8", newline="")
    captions = [picture.captions[0] for picture in read_source(str(tmp_path / "a.jsonl"))]
    assert captions == ["A cat lies there."] * 7 + ["A cat\ufffdlies there."]


def test_an_id_that_is_there_twice_is_found_at_once(tmp_path):
    lines = [json.dumps({**PICTURE, "id": str(number)}) for number in [*range(30_000), 29_999]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    began = time.process_time()
    with pytest.raises(UserError, match="'29999' twice"):
        read_source(str(tmp_path / "a.jsonl"))
    assert time.process_time() - began < 4  # by the square of the lines: 10 s


def test_captions_and_kinds_control_no_terminal(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_text(json.dumps({**PICTURE, "captions": [f"A cat {ESCAPE}\u202e there."]}))
    turns = [{"from": who, "value": f"Why {ESCAPE}?"} for who in ("human", "gpt")]
    data = [{"image": f"{ESCAPE}/a.png", "kind": ESCAPE, "conversations": turns}]
    (tmp_path / "d.json").write_text(json.dumps(data))
    source = ["--source", str(tmp_path / "a.jsonl"), "--kind", "conversation"]
    for arguments in ([*source, "--show"], ["stats", str(tmp_path / "d.json")], ["--kind", ESCAPE], ["--out", ESCAPE]):
        run(lambda arguments=arguments: command.main(arguments), "data.instruct")
        said = "".join(capfd.readouterr())
        assert said and "\x1b" not in said and "\u202e" not in said


# ------------------------------------------------------------ replies
PAIR = "Question:\nWhat is there?\n===\nAnswer:\nThere is a cat."


@pytest.mark.parametrize(
    "text, left",
    [
        (f"<think>A cat?\n===\n</think>\n{PAIR}", PAIR),
        (f"A cat, I think.\n</think>\n{PAIR}", PAIR),  # the template began the thoughts
        (f"<THINKING>a</THINKING>{PAIR}<think>b</think>", PAIR),
        ("<think>a<think>b</think></think>c", "c"),
        (f"{PAIR}<think>and so on, cut off", PAIR),
        ("<think>cut off", ""),
        ("some\ud800thing", "something"),
        (f"a{ESCAPE}\0b\r\nc\x0bd\u2028e", "a]0;titleb\nc\nd\ne"),
        ("5 < 6, <b>bold</b>", "5 < 6, <b>bold</b>"),
    ],
)
def test_thoughts_and_control_characters_are_taken_off(text, left):
    assert clean(text) == left


def test_a_reply_that_was_cut_off_in_its_thoughts_says_so():
    assert judge(Reply("<think>a cat", truncated=True), "detail", "a cat", "What?") == ([], [("cut off", "")])
    assert judge(Reply("<think>a cat</think>"), "detail", "a cat", "What?") == ([], [("empty", "")])


LONG = "\n =`[]<>|/?#:.,-'01ax\t\"" + "\u2028\ud800\0"
PIECES = [
    "\n \n",
    "===\n",
    "Question:\n",
    "<|",
    "[0.1",
    "[ ",
    "what is ",
    "how much does ",
    "is not ",
    "not be possible to be ",
]
PIECES += ["cat ", "no ", ", and ", "a-", "I'm ", "as an ", "color ", "<think>", "</think>", f"{PAIR}\n===\n"]


@pytest.mark.parametrize("piece", [*LONG, *PIECES], ids=ascii)
def test_no_text_costs_time_by_its_square(piece):
    """A model that repeats itself: what is linear takes less than 0.5 s altogether, a square pattern 5 s or more."""
    text, longer, began = (piece * 50_000)[:50_000], (piece * 200_000)[:200_000], time.process_time()
    for kind in ("conversation", "detail"):
        for truncated in (False, True):
            judge(Reply(text, 1, 1, truncated), kind, "a cat", "What?")
    for pattern in (value for value in vars(filters).values() if isinstance(value, re.Pattern)):
        pattern.search(longer)
    for read in (clean, parse_pairs, noun_phrases, lambda text: hallucinated(text, "a cat")):
        read(text)
    assert time.process_time() - began < 3


def test_what_is_too_long_goes_before_a_pattern_reads_it():
    for reply, kind in (
        (PAIR + "y" * 4000, "conversation"),
        (f"Question:\n{'y' * 2000}\n===\nAnswer:\nA.", "conversation"),
    ):
        assert judge(Reply(reply), kind, "a cat")[1][0][0] == "too long"
    assert judge(Reply("a cat " * 9000), "conversation", "a cat")[1][0][0] == "too long"


# ------------------------------------------------------------ the journal
class Full:
    """A file on a disk that takes a few bytes more, and then no more."""

    def __init__(self, file):
        self.file = file

    def write(self, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data[:20])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_ends_the_run_and_leaves_whole_lines(tmp_path):
    journal, requests = Journal(tmp_path / "j"), make_requests([scene_picture(0)], ["detail"], Prompts(), 0)
    journal.add("a", Reply("one"))
    journal.file = Full(journal.file)
    with pytest.raises(UserError, match="cannot be written: No space left on device; all replies before are in it"):
        collect(requests, RuleTeacher(), journal)
    journal.file = journal.file.file  # room was made
    journal.add("b", Reply("two"))
    journal.close()
    assert Journal(tmp_path / "j").replies == {"a": Reply("one"), "b": Reply("two")}


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"key": "a", "text": 5, "prompt_tokens": 1, "reply_tokens": 1, "truncated": 0}']
)
@pytest.mark.parametrize("tokens", ["1", "Infinity", "null"])
def test_a_line_that_is_no_reply_is_named(tmp_path, line, tokens):
    good = '{"key": "a", "text": "b", "prompt_tokens": %s, "reply_tokens": 1, "truncated": false}'
    (tmp_path / "j").write_text(f"{good % '1'}\n{line.replace(': 1', ': ' + tokens)}\n")
    with pytest.raises(UserError, match="line 2 is no reply"):
        Journal(tmp_path / "j")
    (tmp_path / "j").write_text(f"{good % tokens}\n")
    if tokens != "1":
        with pytest.raises(UserError, match="line 1 is no reply"):
            Journal(tmp_path / "j")


# ------------------------------------------------------------ flags, and the manual
@pytest.mark.parametrize("name", RANGES)
def test_numbers_out_of_their_range_are_told(name):
    least, most = RANGES[name]
    for value in (least - 1, most * 2, 10**30):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be from"):
            Settings(**{name: value})
    assert getattr(Settings(**{name: least}), name) == least and getattr(Settings(**{name: most}), name) == most


@pytest.mark.parametrize(
    "flags", ["--temperature nan", "--timeout inf", "--price nan,1", "--price 1,-1", "--price 1", "--price 1e999,1"]
)
def test_what_is_no_number_is_told(flags):
    with pytest.raises(UserError, match=flags.split()[0]):
        command.main([*flags.split(), "--show"])


def test_large_flags_cost_nothing(capsys):
    began = time.process_time()
    command.main(
        ["--kind", " detail, conversation", "--limit", str(10**9), "--start", str(10**9), "--shots", "100", "--show"]
    )
    assert time.process_time() - began < 3 and "---- detail, images/1000000000.png" in capsys.readouterr().out
    with pytest.raises(UserError, match="too many scenes"):
        command.main(["--limit", str(10**9)])


def test_the_manual_names_what_there_is():
    path = Path(command.__file__).with_name("README.md")
    text, parser = path.read_text(encoding="utf-8"), Parser()
    add_flags(parser, Settings)
    flags, there_are = (set(re.findall(r"--[a-z][\w-]+", page)) for page in (text, parser.format_help()))
    assert flags - {"--stage", "--data"} <= there_are  # these two are train.py's
    assert all((path.parent / target).exists() for target in re.findall(r"\]\((?!http)([^)]+)\)", text))
    assert not [line for line in text.split("\n") if len(line) > 120 and line[0] != "|"]


def test_any_language_is_drawn_without_a_warning(tmp_path, recwarn):
    made, picture = DataSet(), read_source("scenes", 0, 1)[0]
    made.add(picture, "conversation", [("这张照片里有什么" * 20, "一只猫 😀")], [])
    report.charts(made.records, tmp_path / "charts.png")
    assert report.contact_sheet(made, [picture], "") and not list(recwarn)
