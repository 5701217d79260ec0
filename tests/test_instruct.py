"""Instruction data: sources, contexts, prompts, filters, noun phrases, the journal, and data sets that a training can
read.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minillava.data.answers import names_in, parse_answer
from minillava.data.facts import NUMBERS, Facts
from minillava.data.instruct import __main__ as command
from minillava.data.instruct import report, rules, stats
from minillava.data.instruct.collect import collect, missing
from minillava.data.instruct.context import KINDS, symbolic_context
from minillava.data.instruct.filters import REASONS, judge
from minillava.data.instruct.generate import assemble, expand, make_requests
from minillava.data.instruct.journal import Journal
from minillava.data.instruct.objects import hallucinated
from minillava.data.instruct.planted import planted
from minillava.data.instruct.prompts import FOLDER, Prompts
from minillava.data.instruct.replies import parse_pairs, write_pairs
from minillava.data.instruct.rules import RuleTeacher
from minillava.data.instruct.simple import frequent_captions, noun_phrases
from minillava.data.instruct.sources import Picture, read_source, scene_picture
from minillava.data.instruct.teacher import Reply
from minillava.data.questions import questions
from minillava.data.scenes import sample_scene
from minillava.errors import UserError
from minillava.training.samples import JsonSamples

PROMPTS = Prompts()


# ------------------------------------------------------------ sources
def coco(folder, year: str, with_boxes: bool = True):
    """Two pictures with captions, one without; a box, a crowd, and a box that reaches over the edge."""
    name = f"COCO_val{year}_000000000007.jpg" if year == "2014" else "000000000007.jpg"
    images = [
        {"id": 9, "file_name": "9.jpg", "width": 100, "height": 50},
        {"id": 7, "file_name": name, "width": 200, "height": 100},
        {"id": 8, "file_name": "8.jpg", "width": 10, "height": 10},
    ]
    said = [
        {"id": 3, "image_id": 9, "caption": "A dog runs."},
        {"id": 2, "image_id": 7, "caption": "Second\nof seven. "},
        {"id": 1, "image_id": 7, "caption": "First of seven."},
    ]
    (folder / f"captions_val{year}.json").write_text(json.dumps({"images": images, "annotations": said}))
    if with_boxes:
        notes = [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [20, 10, 60, 40], "iscrowd": 0, "area": 1},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
            {"id": 3, "image_id": 9, "category_id": 1, "bbox": [90, 0, 10.5, 50], "iscrowd": 0},
        ]
        names = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
        (folder / f"instances_val{year}.json").write_text(
            json.dumps({"images": images, "annotations": notes, "categories": names})
        )
    return folder / f"captions_val{year}.json", name


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco(tmp_path, year):
    path, name = coco(tmp_path, year)
    seven, nine = read_source(str(path))
    assert seven == Picture(
        "000000000007", name, ("First of seven.", "Second of seven."), (("dog", (0.1, 0.1, 0.4, 0.5)),)
    )
    assert nine.instances == (("person", (0.9, 0.0, 1.0, 1.0)),)
    assert symbolic_context(seven, "detail") == "First of seven.\nSecond of seven.\n\ndog: [0.100, 0.100, 0.400, 0.500]"
    assert symbolic_context(seven, "conversation") == "First of seven.\nSecond of seven."


def test_coco_without_boxes_gives_conversations_alone(tmp_path):
    pictures = read_source(str(coco(tmp_path, "2017", with_boxes=False)[0]))
    assert len(make_requests(pictures, ["conversation"], PROMPTS, 0)) == 2
    with pytest.raises(UserError, match=r"instances_X\.json"):
        make_requests(pictures, ["detail"], PROMPTS, 0)


BAD_LINES = {
    "no JSON": "{",
    "a list": "[]",
    "no image": '{"captions": ["a"]}',
    "no captions": '{"image": "a.jpg", "captions": []}',
    "captions of numbers": '{"image": "a.jpg", "captions": [1]}',
    "a path out": '{"image": "../a.jpg", "captions": ["a"]}',
    "an absolute path": '{"image": "/a.jpg", "captions": ["a"]}',
    "three numbers": '{"image": "a", "captions": ["a"], "instances": [{"category": "cat", "bbox": [0, 0, 1]}]}',
    "NaN": '{"image": "a", "captions": ["a"], "instances": [{"category": "cat", "bbox": [0, 0, 1, NaN]}]}',
    "corners in the wrong order": '{"image": "a", "captions": ["a"], "instances": [{"category": "cat", "bbox": [0.5, 0, 0.1, 1]}]}',
    "a box without a category": '{"image": "a", "captions": ["a"], "instances": [{"bbox": [0, 0, 1, 1]}]}',
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"image": "b.jpg", "captions": ["ok"]}\n\n' + line)
    with pytest.raises(UserError, match="line 3"):
        read_source(str(tmp_path / "a.jsonl"))


def test_the_same_id_twice_and_broken_coco_end_in_a_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "image": "b.jpg", "captions": ["ok"]}\n' * 2)
    with pytest.raises(UserError, match="'1' twice"):
        read_source(str(tmp_path / "a.jsonl"))
    for content in (
        '{"images": []}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1, "image_id": 1, "caption": "a"}]}',
        '{"annotations": 3}',
    ):
        (tmp_path / "captions_x.json").write_text(content)
        with pytest.raises(UserError, match="COCO"):
            read_source(str(tmp_path / "captions_x.json"))


# ------------------------------------------------------------ prompts and replies
def test_worked_examples_are_two_three_three_and_pass_the_filters():
    for kind, count in zip(KINDS, (2, 3, 3), strict=True):
        messages = PROMPTS.messages(kind, "CONTEXT")
        assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * count, "user"]
        assert messages[-1]["content"] == "CONTEXT"
        for number in range(count):
            context, reply = messages[1 + 2 * number]["content"], messages[2 + 2 * number]["content"]
            assert ("[" in context) == (kind != "conversation")  # boxes for detail and reasoning alone
            kept, gone = judge(Reply(reply), kind, context, "Describe it.")
            assert not gone and kept


def test_the_hash_tells_edited_prompts(tmp_path):
    for path in FOLDER.rglob("*.txt"):
        (tmp_path / path.relative_to(FOLDER)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(FOLDER)).write_text(path.read_text())
    copy = Prompts(tmp_path)
    assert copy.digest() == PROMPTS.digest() != replace(copy, shots=0).digest()
    (tmp_path / "detail/system.txt").write_text("Write.")
    assert copy.digest() != PROMPTS.digest() and copy.messages("detail", "x")[0]["content"] == "Write."
    (tmp_path / "detail/system.txt").write_text(" ")
    with pytest.raises(UserError, match="is empty"):
        copy.messages("detail", "x")


LINES = (
    st.text(st.characters(whitelist_categories=("L", "N", "P", "Zs")), min_size=1)
    .map(str.strip)
    .filter(lambda t: t and "=" not in t)
)


@given(st.lists(st.tuples(LINES, LINES), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_pairs_come_back(pairs):
    assert parse_pairs(write_pairs(pairs)) == pairs


def test_replies_that_are_not_in_the_form():
    good = "Question:\nA?\n===\nAnswer:\nB."
    assert parse_pairs(f"```\n{good}\n```") == parse_pairs(good.replace(":\n", ": ")) == [("A?", "B.")]
    for bad in (
        "Hello.",
        "",
        "===",
        "Question:\nA?",
        "Answer:\nB.\n===\nQuestion:\nA?",
        good + "\n===\nQuestion:\nC?",
        "Well:\n" + good,
    ):
        assert parse_pairs(bad) is None, bad
    assert parse_pairs(good + "\n===\nQuestion:\nC?\n===\nAnswer:\nHalf", truncated=True) == [("A?", "B.")]
    assert parse_pairs("Question:\nA?\n===\nAnswer:\nHalf", truncated=True) is None


# ------------------------------------------------------------ filters
CONTEXT = "A man rides a brown horse on a beach.\nTwo dogs run beside him.\n\nperson: [0.1, 0.2, 0.3, 0.4]\nbackpack: [0.1, 0.2, 0.3, 0.4]"
TRUE = "A man rides his horse along the beach, two dogs run beside him, and he carries a backpack."


@pytest.mark.parametrize(
    "reason, question, answer",
    [
        ("empty", "What is he doing?", " "),
        ("control token", "What is he doing?", "Riding.</s>"),
        ("control token", "What is he doing?", "Riding. USER: and now?"),
        ("control token", "What is in <image>?", "A horse."),
        ("refusal", "What is he doing?", "I'm sorry, but I cannot help with that."),
        ("refusal", "What is he doing?", "As an AI language model I have no eyes."),
        ("talks of its source", "What is he doing?", "According to the captions, he is riding."),
        ("talks of its source", "What do the bounding boxes show?", "A man."),
        ("talks of its source", "Where is he?", "He is at [0.1, 0.2, 0.3, 0.4]."),
        ("cannot be known", "What is the name of the man?", "He is called Jim."),
        ("cannot be known", "How old is he?", "He is forty."),
        ("cannot be known", "What is he wearing?", "It is not mentioned what he wears."),
        ("cannot be known", "What is he wearing?", "It cannot be determined."),
        ("cannot be known", "What color are the dogs?", "The dogs are black."),
        ("hallucinated object", "What is he doing?", "He rides a horse past an umbrella."),
        ("too long", "What is he doing?", "He rides. " * 80),
    ],
)
def test_each_fault_has_its_reason(reason, question, answer):
    good = ("What is he riding?", "He is riding a horse.")
    kept, gone = judge(Reply(write_pairs([good, (question, answer)])), "conversation", CONTEXT)
    assert kept == [good] and [why for why, _ in gone] == [reason]


@pytest.mark.parametrize(
    "question, answer",
    [
        ("What color is the horse?", "The horse is brown."),
        ("Is there a cat?", "No, there is no cat."),
        ("Is a boat there?", "A man rides along the beach, but there isn't a boat."),
        ("Who is riding?", "A person with a rucksack is riding."),
        ("What might they do next?", "They may go home, because people get tired."),
    ],
)
def test_what_is_right_stays(question, answer):
    kept, gone = judge(Reply(write_pairs([(question, answer)])), "conversation", CONTEXT)
    assert not gone and kept == [(question, answer)]


def test_whole_replies():
    ask = "Describe the picture and its caption."  # the question is ours, and not judged
    assert judge(Reply(TRUE), "detail", CONTEXT, ask) == ([(ask, TRUE)], [])
    for reply, kind, reason in (
        (Reply("  "), "detail", "empty"),
        (Reply(TRUE, truncated=True), "detail", "cut off"),
        (Reply("A man."), "detail", "too short"),
        (Reply(TRUE), "reasoning", "unparsable"),
        (Reply(write_pairs([("Why?", TRUE), ("Who?", TRUE)])), "reasoning", "unparsable"),
        (Reply("Question:\nWhy?\n===\nAnswer:\nHe", truncated=True), "conversation", "cut off"),
        (Reply(write_pairs([("Why?", "He rides.")])), "reasoning", "too short"),
    ):
        kept, gone = judge(reply, kind, CONTEXT, "Describe it.")
        assert not kept and [why for why, _ in gone] == [reason]
    twice = Reply(write_pairs([("Who rides?", "A man."), ("who rides", "A man on a horse.")]))
    assert judge(twice, "conversation", CONTEXT)[1][0][0] == "duplicate"
    cut = Reply(write_pairs([("Who rides?", "A man."), ("What?", "A ho")]), truncated=True)
    assert judge(cut, "conversation", CONTEXT) == ([("Who rides?", "A man.")], [("cut off", cut.text[-200:])])


def test_the_same_text_about_two_pictures_is_a_duplicate():
    pictures = [Picture(str(n), f"{n}.jpg", ("A man and a horse.",), (("dog", (0, 0, 1, 1)),)) for n in range(2)]
    requests = make_requests(pictures, ["detail"], PROMPTS, 0)
    made = assemble(
        requests, [Reply("A man stands beside his big horse, and a dog lies in front of them both.")] * 2, PROMPTS
    )
    assert len(made.records) == 1 and made.gone["detail"] == {"duplicate": 1}
    assert REASONS["duplicate"] in report.text(made)


def test_invented_objects():
    assert hallucinated("A woman with a bike waits for the bus.", "person: [..]\nbicycle: [..]") == {"bus"}
    assert hallucinated("Two hot dogs lie on a plate.", "hot dog") == set()
    assert hallucinated("A dog.", "hot dog") == set()  # the word is in the context, if in another sense
    assert hallucinated("Three wolves and a T-shirt.", "a wolf") == {"t-shirt"}


def test_planted_objects_are_found_and_true_text_is_left_alone():
    """In the tiny world every caption names what the boxes hold, so that no alarm can be true."""
    figures = planted([scene_picture(seed) for seed in range(40)])
    assert figures["true"] == 200 and figures["planted"] > 150
    assert figures["precision"] == 1.0 and figures["recall"] > 0.97
    # nothing else vouches for the cat: a false alarm
    alone = planted([Picture("1", "1.jpg", ("A cat sits there.", "A nice day."))])
    assert (alone["false alarms"], alone["found"], alone["precision"], alone["recall"]) == (1, 1, 0.5, 1.0)


# ------------------------------------------------------------ simple expansion
def test_noun_phrases_of_hand_worked_captions():
    assert noun_phrases("A red fire engine parked in front of two old houses.") == {"red fire engine", "old houses"}
    assert noun_phrases("The man's dog, a small poodle, sits quietly on the T-shirt") == {
        "man's dog",
        "small poodle",
        "t-shirt",
    }
    assert noun_phrases("There is.") == noun_phrases("") == set()
    assert noun_phrases("Un café à Paris") == {"un café à paris"}


def test_the_frequency_filter():
    """rare: 2 cats go; common: 150 dogs, of which 100 stay; a rare phrase does not take a caption away that a common
    one holds.
    """
    captions = ["a cat"] * 2 + ["a dog"] * 150 + ["a bird"] * 3 + ["a bird and a zebra"]
    kept = frequent_captions(captions)
    assert sum(captions[i] == "a dog" for i in kept) == 100
    assert [i for i in kept if captions[i] != "a dog"] == [152, 153, 154, 155]
    assert kept == frequent_captions(captions) != frequent_captions(captions, seed=1)


def test_simple_expansion():
    pictures = [scene_picture(seed) for seed in range(30)]
    made = expand(pictures, PROMPTS, seed=0, noun_phrases=False)
    for picture, record in zip(pictures, made.records, strict=True):
        human, gpt = (turn["value"] for turn in record["conversations"])
        assert gpt in picture.captions and human.removeprefix("<image>\n") in PROMPTS.questions("brief")
    fewer = expand(pictures, PROMPTS, seed=0, noun_phrases=True)
    assert 0 < len(fewer.records) < 30 and fewer.gone["simple"]["noun phrases"] == 30 - len(fewer.records)


# ------------------------------------------------------------ the rule teacher
def test_rules_write_what_is_true():
    """Each conversation's answer is the one that the scene's own questions have; descriptions name all things and no
    others.
    """
    pictures, teacher = [scene_picture(seed) for seed in range(60)], RuleTeacher()
    for request in make_requests(pictures, KINDS, PROMPTS, seed=5):
        text, scene = teacher.write(request).text, request.picture.scene
        assert teacher.write(request).text == text
        if request.kind == "detail":
            assert set(names_in(text)) == {thing.name for thing in scene.things}
        elif request.kind == "conversation":
            known = {one.text: one for one in questions(scene, np.random.default_rng(request.seed), 12)}
            for question, answer in parse_pairs(text):
                assert parse_answer(known[question].kind, answer) == known[question].short
        else:
            ((_, answer),) = parse_pairs(text)
            shown = {thing.name for thing in scene.things}
            assert set(names_in(answer)) <= shown, answer


def test_rules_are_varied_and_nearly_all_stay():
    requests = make_requests([scene_picture(seed) for seed in range(100)], KINDS, PROMPTS, seed=0)
    made = assemble(requests, [RuleTeacher().write(request) for request in requests], PROMPTS)
    assert len(made.records) >= 290 and all(set(counts) <= {"duplicate"} for counts in made.gone.values())
    asked = {record["conversations"][0]["value"] for record in made.records if record["kind"] == "reasoning"}
    assert len(asked) > 20
    with pytest.raises(UserError, match="tiny world alone"):
        RuleTeacher().write(replace(requests[0], picture=replace(requests[0].picture, scene=None)))


# ------------------------------------------------------------ journal
def test_the_journal_forgets_half_a_line(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.add("a", Reply("one\n\u2028two", 1, 2, True))
    journal.close()
    with open(tmp_path / "j", "ab") as file:
        file.write(b'{"key": "b", "te')
    journal = Journal(tmp_path / "j")
    assert journal.replies == {"a": Reply("one\n\u2028two", 1, 2, True)}
    journal.add("c", Reply("three"))
    journal.close()
    assert list(Journal(tmp_path / "j").replies) == ["a", "c"]


def test_a_broken_journal_is_named(tmp_path):
    (tmp_path / "j").write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="line 1 is no reply"):
        Journal(tmp_path / "j")
    with pytest.raises(UserError, match="cannot be opened"):
        Journal(tmp_path)


def test_another_prompt_or_seed_is_asked_for_anew(tmp_path):
    picture, journal = scene_picture(3), Journal(tmp_path / "j")
    for prompts, seed in ((PROMPTS, 0), (replace(PROMPTS, shots=1), 0), (PROMPTS, 1)):
        for _ in range(2):
            requests = make_requests([picture], ["detail"], prompts, seed)
            collect(missing(requests, RuleTeacher(), journal), RuleTeacher(), journal)
    assert len((tmp_path / "j").read_text().splitlines()) == 3


def test_a_faulty_teacher_ends_the_run_and_starts_nothing_new(tmp_path):
    class Faulty(RuleTeacher):
        def write(self, request):
            if request.picture.id == "000002":
                raise UserError("no more")
            return super().write(request)

    journal = Journal(tmp_path / "j")
    with pytest.raises(UserError, match="no more"):
        collect(make_requests([scene_picture(seed) for seed in range(6)], ["detail"], PROMPTS, 0), Faulty(), journal)
    assert len(journal.replies) == 2


# ------------------------------------------------------------ our own model
def test_our_own_model_writes(tmp_path, capsys):
    """The shipped language model, with no worked examples: it cannot write instructions, and every reply says why it
    went.
    """
    own = ["--teacher", "weights/tiny-language", "--kind", "detail"]
    short = tmp_path / "prompts"
    (short / "detail").mkdir(parents=True)
    (short / "detail/system.txt").write_text("Describe.")
    (short / "detail_questions.txt").write_text("What is there?\n")
    limits = ["--limit", "2", "--shots", "0", "--max-tokens", "24"]
    try:
        command.main([*own, *limits, "--prompts", str(short), "--out", str(tmp_path / "data.json")])
    except UserError as error:
        assert "all left out" in str(error)
    replies = [json.loads(line) for line in (tmp_path / "data.journal.jsonl").read_text().splitlines()]
    assert len(replies) == 2 and all(
        reply["prompt_tokens"] > 50 and 0 < reply["reply_tokens"] <= 24 for reply in replies
    )
    with pytest.raises(UserError, match=r"fewer --shots"):
        command.main([*own, "--limit", "1", "--out", str(tmp_path / "b.json")])


def test_our_own_model_says_what_generation_says(pair, tmp_path, monkeypatch):
    """Random LLaMA weights: greedy writing is `transformers`' greedy text of the same prompt."""
    from minillava import weights
    from minillava.data.instruct.own_model import OwnModel
    from minillava.inputs.conversation import encode, find_template
    from minillava.inputs.tokenizer import Tokenizer

    theirs, ours = pair
    tokenizer = Tokenizer.from_file(weights.find_folder("weights/tiny-language"))
    monkeypatch.setattr(tokenizer, "encode", lambda parts, plain=tokenizer.encode: small(*plain(parts)))
    teacher = OwnModel("x", ours.language_model, tokenizer, find_template("v1"), temperature=0.0, max_tokens=6)
    system = {"role": "system", "content": "Write."}
    (request,) = make_requests([Picture("1", "1.jpg", ("A cat.",))], ["conversation"], replace(PROMPTS, shots=0), 0)
    request = replace(request, messages=(system, request.messages[-1]))
    reply = teacher.write(request)
    template = replace(find_template("v1"), system="Write. ")
    ids = torch.tensor([encode(tokenizer, template, [("user", "A cat.")], add_generation_prompt=True).input_ids])
    expected = theirs.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    assert reply.text == tokenizer.decode(expected).strip() and reply.prompt_tokens == ids.shape[1]
    assert reply.truncated == (len(expected) == 6)


def small(ids, offsets):
    """Ids below 60, so that the small model knows them."""
    return [3 + i % 57 for i in ids], offsets


# ------------------------------------------------------------ the whole command
def test_the_data_set_is_whole_repeatable_and_trains(tmp_path, capsys):
    from minillava.training import STAGES, TrainConfig, train

    for name in ("a", "b"):
        kinds = "conversation,detail,reasoning,simple"
        command.main(["--limit", "8", "--kind", kinds, "--out", str(tmp_path / name / "data.json")])
    folder = tmp_path / "a"
    for suffix in ("json", "report.md", "card.md"):
        assert (folder / f"data.{suffix}").read_bytes() == (tmp_path / "b" / f"data.{suffix}").read_bytes()
    records = json.loads((folder / "data.json").read_text())
    assert len(records) == 32 and len(JsonSamples(folder / "data.json", folder)) == 32
    for name, width in (("sheet", 1240), ("charts", 1100)):
        assert Image.open(folder / f"data.{name}.png").width == width
    card = (folder / "data.card.md").read_text()
    assert PROMPTS.digest() in card and "Apache-2.0" in card and "| detail | 8 |" in card
    files = dict(data=str(folder / "data.json"), images=str(folder), out=str(tmp_path / "run"))
    settings = dict(stage=2, weights="weights/tiny-stage1", max_steps=1, batch_size=2, dtype="float32")
    train(TrainConfig(**{**STAGES[2].defaults, **settings, **files}))
    assert (tmp_path / "run/model.safetensors").exists()


def test_show_prints_what_the_teacher_reads(capsys):
    command.main(["--kind", "reasoning", "--show"])
    told, (request,) = capsys.readouterr().out, make_requests([scene_picture(0)], ["reasoning"], PROMPTS, 0)
    assert (
        all(message["content"] in told for message in request.messages)
        and "Is there" not in told.rsplit("---- user")[-1]
    )


def test_stats_of_published_forms(capsys, tmp_path):
    def record(image, *said):
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
        return {"id": "1", **({"image": image} if image else {}), "conversations": turns}

    long = "Because the man is tired and the day was long."
    records = [
        record(
            "coco/train2017/1.jpg",
            "<image>\nWhat is?",
            "It is a very big dog there.",
            "How many are there?",
            "There are two dogs on the ice.",
        ),
        record("coco/train2017/2.jpg", "Describe the following image.\n<image>", long),
        record("coco/train2017/3.jpg", "<image>\nWhy does he rest?", long),
        record("gqa/images/4.jpg", "<image>\nIs it red?\nAnswer the question using a single word or phrase.", "No"),
        record(None, "What is Python?", long),
        {"id": "6", "conversations": []},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    command.main(["stats", str(tmp_path / "data.json")])
    told = capsys.readouterr().out
    rows = ("conversation | 1 | 2 | 2.0 | 7.0, 7, 7", "detail | 1", "reasoning | 2", "short answers | 1")
    assert all(f"| {row} |" in told for row in rows)
    assert "coco/train2017 3, gqa/images 1" in told and "6 records, 1 of text only" in told
    assert "1 cannot be read" in told and stats.opening("<image>\nHow many are there?") == "how many"


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--kind", "poem"], "no kind 'poem'"),
        ([], "--out"),
        (["--out", "x.txt"], r"\.json"),
        (["--source", "nowhere.jsonl", "--show"], "cannot be read"),
        (["--limit", "-1", "--show"], "from 0 to"),
        (["--tries", "0", "--show"], "from 1 to 100, not 0"),
        (["--prompts", "nowhere", "--show"], "cannot be read"),
        (["--teacher", "nowhere/at-all", "--out", "x.json"], "nowhere/at-all"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        command.main(arguments)
    assert not list(tmp_path.glob("*"))


def test_nothing_left_writes_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"image": "b.jpg", "captions": ["</s> is here"]}\n')
    with pytest.raises(UserError, match=r"Nothing is left to write: 1 replies, all left out \(control token 1\)"):
        command.main(["--source", str(tmp_path / "a.jsonl"), "--kind", "simple", "--out", str(tmp_path / "data.json")])
    assert not (tmp_path / "data.json").exists()


def test_the_steps_of_the_rules_reasoning_are_right():
    """Read back from the text: the difference of two counts, and the way from one thing to another, which its reason
    must bear out.
    """
    differences = ways = 0
    for seed in range(150):
        facts, rng = Facts(sample_scene(seed)), np.random.default_rng(seed)
        if pair := rules._difference(facts, rng):
            more, fewer, rest = re.search(
                r"there are (\w+) .* and only (\w+) .* so there are (\w+) more", pair[1]
            ).groups()
            assert NUMBERS.index(more) - NUMBERS.index(fewer) == NUMBERS.index(rest)
            differences += 1
        if pair := rules._walk(facts, rng):
            relations = "to the left of|to the right of|above|below"
            way, one, other = re.search(rf"go (\w+), because the (.*) is (?:{relations}) the (.*) in", pair[1]).groups()
            at = {thing.name: thing for thing in facts.single}
            x, y = at[other].x - at[one].x, at[other].y - at[one].y
            assert {"left": x < 0, "right": x > 0, "up": y < 0, "down": y > 0}[way]
            ways += 1
    assert differences > 10 and ways > 50
