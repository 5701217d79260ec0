"""chat.py: one answer, a conversation that runs nothing twice, and one sentence for each mistake."""

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXT, TOWER, shaken
from PIL import Image
from test_generation import counted

import chat
from minillava import weights
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError, run, shown
from minillava.inputs.conversation import TEMPLATES
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava

ROOT = Path(chat.__file__).parent
WORDS = ["a cat and a dog on the grass. what is this? USER: ASSISTANT: how many cats are there?\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random LLaVA on disk."""
    torch.manual_seed(3)
    tokenizer = Tokenizer.train(WORDS * 3, 400)
    text = TextConfig(**{**TEXT, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 160})
    config = LlavaConfig(VisionConfig(**TOWER), text, image_token_id=tokenizer.image_id)
    folder = tmp_path_factory.mktemp("weights")
    weights.save(shaken(Llava(config)), Processor.for_model(tokenizer, config), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return weights.load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


class Typed(io.TextIOWrapper):
    """What is typed, and how much of it was read at once."""

    at_once = 0

    def readline(self, *size):
        piece = super().readline(*size)
        Typed.at_once = max(Typed.at_once, len(piece))
        return piece


def talk(folder, *arguments, typed: str | None = None, monkeypatch=None) -> int:
    """Run chat.py in this process; its exit status."""
    if typed is not None:
        monkeypatch.setattr(sys, "stdin", Typed(io.BytesIO(typed.encode())))
    return run(
        lambda: chat.main(["--weights", str(folder), "--device", "cpu", "--max-new-tokens", "8", *map(str, arguments)]),
        "chat.py",
    )


def command(*arguments, **options):
    line = [sys.executable, str(ROOT / "chat.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, cwd="/", **options)


# ------------------------------------------------------------ one question
def test_the_answer_alone_on_stdout(folder, picture, loaded):
    from minillava import answer

    result = command("--weights", folder, "--image", picture, "--max-new-tokens", 9, "what is this?", "--device", "cpu")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == shown(answer(*loaded, picture, "what is this?", max_new_tokens=9)) + "\n"


def test_options_reach_the_answer(folder, picture, capsys):
    said = []
    for more in (["--seed", 1], ["--seed", 1], ["--seed", 2], ["--seed", 1, "--top-k", 1]):
        assert talk(folder, "--image", picture, "a cat?", "--temperature", 2, *more) == 0
        said.append(capsys.readouterr().out)
    assert talk(folder, "--image", picture, "a cat?") == 0
    assert said[0] == said[1] != said[2] and said[3] == capsys.readouterr().out


def test_without_a_picture(folder):
    assert talk(folder, "what is a cat?") == 0


def test_show_strips_what_is_around(capsys):
    chat.show(iter(["", " ", " a", " cat", " ", "\n", "and ", "", "dog", " \n"]))
    assert capsys.readouterr().out == "a cat \nand dog\n"


# ------------------------------------------------------------ a conversation
def reference(loaded, turns, question, picture, **options) -> str:
    """The answer of a model that reads the whole conversation anew."""
    model, processor = loaded
    inputs = processor([*turns, ("user", question)], picture)
    return "".join(processor.tokenizer.stream(chat.generate(model, **inputs, **options)))


@pytest.mark.parametrize("with_picture", [True, False])
def test_turns_equal_reading_everything_anew_and_run_only_what_is_new(loaded, picture, with_picture, monkeypatch):
    model, processor = loaded
    shown = Image.open(picture) if with_picture else None
    conversation, lengths = chat.Conversation(model, processor, shown, max_new_tokens=6), []
    questions = ["what is this?", "a cat and a dog?", "how many cats are there?"]
    expected = []
    for question in questions:
        turns = [turn for pair in zip(map(lambda q: ("user", q), questions), expected, strict=False) for turn in pair]
        text = reference(loaded, turns, question, shown, max_new_tokens=6)
        expected.append(("assistant", text))
    counts = counted(model, monkeypatch)
    for question, (_, text) in zip(questions, expected, strict=True):
        counts["positions"], before = 0, list(conversation.cached)
        assert "".join(conversation.ask(question)) == text
        prompt = conversation.cached[: len(conversation.cached) - 5]
        lengths.append(len(prompt))
        assert counts["positions"] == len(conversation.cached) - chat.common_prefix(before, conversation.cached)
        if before:  # all that the model had read, and the start of what it had said
            assert chat.common_prefix(before, conversation.cached) >= lengths[-2]
    assert counts["pictures"] == int(with_picture)
    assert conversation.cache.length == len(conversation.cached)
    conversation.reset()
    # nor on /reset
    assert "".join(conversation.ask(questions[0])) == expected[0][1] and counts["pictures"] == int(with_picture)


def test_another_picture_is_another_conversation(loaded, picture):
    model, processor = loaded
    other = Image.new("RGB", (14, 14), "red")
    conversation = chat.Conversation(model, processor, Image.open(picture), max_new_tokens=6)
    list(conversation.ask("what is this?"))
    conversation.look_at(other)
    assert "".join(conversation.ask("what is this?")) == reference(loaded, [], "what is this?", other, max_new_tokens=6)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_ctrl_c_stops_the_answer_and_keeps_the_conversation_whole(loaded, picture, after, monkeypatch):
    model, processor = loaded
    shown = Image.open(picture)
    conversation = chat.Conversation(model, processor, shown, max_new_tokens=6)
    layer, runs = model.language_model.layers[1], []
    forward = layer.forward

    def interrupted(*arguments):
        runs.append(1)
        if len(runs) == after + 1:  # in the midst of a step: the first layer has written its keys already
            raise KeyboardInterrupt
        return forward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(conversation.ask("what is this?"))
    assert len(conversation.turns) == (2 if after else 0) and conversation.cache.length == len(conversation.cached)
    turns = list(conversation.turns)
    assert "".join(conversation.ask("how many?")) == reference(loaded, turns, "how many?", shown, max_new_tokens=6)


def test_an_answer_that_is_left_unread(loaded):
    conversation = chat.Conversation(*loaded, max_new_tokens=6)
    pieces = conversation.ask("what is this?")
    next(pieces)
    pieces.close()
    assert conversation.turns[0] == ("user", "what is this?") and conversation.turns[1][1]
    assert "".join(conversation.ask("why?")) == reference(
        loaded, conversation.turns[:2], "why?", None, max_new_tokens=6
    )


def test_piped_conversation(folder, picture, monkeypatch, capsys):
    typed = f"what is this?\n\n/help\n/image '{picture}'\na cat?\n/reset\nwhat is this?\n/quit\nnever read\n"
    assert talk(folder, "--image", picture, typed=typed, monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert chat.HELP in out and not err
    first, last = out.split(chat.HELP)[0].strip(), out.strip()
    assert first and last.endswith(first)  # asked anew after /reset, the answer is the same


def test_mistakes_in_a_pipe(folder, picture, monkeypatch, capsys):
    """Each is one line; the status says that there were some."""
    assert talk(folder, typed=f"/dance\n{picture}\nwhat?\n", monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out.strip() and [line.split(" ")[0] for line in err.splitlines()] == ["error:"] * 2
    assert "no command /dance; /help lists them" in err and "/image before it shows that picture" in err


@pytest.mark.parametrize(
    "lost", ["/image nowhere.png", "/image", "/image 'no where.png'", "/image data:image/png;base64," + "A" * 9000]
)
def test_after_a_picture_that_could_not_be_opened_nothing_is_said_of_the_old_one(
    folder, picture, lost, monkeypatch, capsys
):
    typed = f"{lost}\nwhat is this?\n/reset\na cat?\n"
    assert talk(folder, "--image", picture, typed=typed, monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error:") == err.count("\n") == 3 and max(map(len, err.splitlines())) <= 200
    assert (
        talk(folder, "--image", picture, typed=f"{lost}\nwhat?\n/image {picture}\nwhat?\n", monkeypatch=monkeypatch)
        == 2
    )
    assert capsys.readouterr().out.count("\n") == 1  # the next picture is talked about


@pytest.mark.parametrize("kind", ["cats", "a picture", "one character too many"])
def test_a_line_that_is_too_long_is_told_before_it_is_read_whole(folder, picture, kind, monkeypatch, capsys):
    """The question after it is answered; only a picture that was not seen leaves it out."""
    line = {"cats": "\N{CAT}" * 9_000_000, "a picture": "/image " + "a" * 5_000_000}.get(
        kind, "x" * (chat.LONGEST_LINE + 1)
    )
    read, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, parts: read.append("".join(parts)) or encode(self, parts))
    typed = f"{line}\nwhat is this?\n"
    assert talk(folder, "--image", picture, typed=typed, monkeypatch=monkeypatch) == 2
    (told, *left_out), answers = (text.splitlines() for text in reversed(capsys.readouterr()))
    assert (
        told
        == f"error: A line of more than {chat.LONGEST_LINE:,} characters is left out: no conversation holds so much."
    )
    assert bool(left_out) == (kind == "a picture") != bool(answers)
    assert all(len(text) < 1000 for text in read) and Typed.at_once <= chat.LONGEST_LINE + 1


def test_the_longest_line_is_a_question_like_any_other(folder, monkeypatch, capsys):
    for ending in ("\n", ""):
        typed = "cat " * (chat.LONGEST_LINE // 4) + ending
        assert talk(folder, typed=typed, monkeypatch=monkeypatch) == 2
        assert "ask something shorter" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [None, "what is this?\n"])
def test_a_template_that_leaves_the_question_out_says_so(folder, picture, typed, tmp_path, monkeypatch, capsys):
    """Named by the flag or by the folder, for one question and for a conversation."""
    question = ["what is this?"] if typed is None else []
    shutil.copytree(folder, tmp_path / "stage1")
    settings = tmp_path / "stage1" / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "conversation_template": "plain"}))
    for where in (["--weights", tmp_path / "stage1"], ["--template", "plain"]):
        assert talk(folder, "--image", picture, *where, *question, typed=typed, monkeypatch=monkeypatch) == 0
        _, err = capsys.readouterr()
        assert err == "note: the template plain leaves questions out, for captions; --template v1 asks them.\n"
    assert talk(folder, "--image", picture, *question, typed=typed, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().err == ""


def test_a_conversation_ends_answers_at_its_templates_end(loaded, picture, monkeypatch):
    """Which is no part of the turn; the next prompt holds it where the template puts it, once."""
    model, processor = loaded
    processor = replace(processor, template=replace(TEMPLATES["v0"], system=""))
    said = processor.tokenizer.encode(["a cat###Human: no"])[0]
    monkeypatch.setattr(chat, "generate", lambda *inputs, **options: iter(said))
    conversation = chat.Conversation(model, processor, Image.open(picture), max_new_tokens=6)
    assert "".join(conversation.ask("what is this?")) == "a cat"
    assert conversation.turns == [("user", "what is this?"), ("assistant", "a cat")]


def test_numbers_that_overflow_are_one_line(folder, picture, tmp_path, monkeypatch, capsys):
    """In an answer and in a conversation, which goes on; the same function in float32 is well."""
    model, processor = weights.load(folder, device="cpu", dtype="float32")
    with torch.no_grad():
        for layer in model.language_model.layers:
            layer.mlp.up_proj.weight.mul_(1e6)
            layer.mlp.down_proj.weight.div_(1e6)
    weights.save(model, processor, tmp_path / "large")
    where = ["--weights", tmp_path / "large", "--dtype", "float16", "--image", picture]
    for more in ([], ["--temperature", "0.7"]):
        one_line(talk(folder, *where, *more, "what is this?"), capsys, "--dtype float32")
    assert talk(folder, *where, typed="what?\nwhat?\n", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err.count("error: The model's next words") == 2
    assert talk(folder, "--weights", tmp_path / "large", "--dtype", "float32", "--image", picture, "what?") == 0


def test_a_dragged_picture(folder, picture, tmp_path, monkeypatch, capsys):
    (tmp_path / "my pics").mkdir()
    path = tmp_path / "my pics" / "blue one.png"
    path.write_bytes(picture.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert talk(folder, "--image", picture, "what is this?") == 0
    said = capsys.readouterr().out
    for spelt in (
        str(path).replace(" ", "\\ "),
        f"'{path}'",
        f'"{path}" ',
        "~/my pics/blue one.png",
        "~/my\\ pics/blue\\ one.png",
        path.as_uri(),
    ):
        assert talk(folder, typed=f"/image {spelt}\nwhat is this?\n", monkeypatch=monkeypatch) == 0
        assert capsys.readouterr() == (said, "")
        assert talk(folder, "--image", spelt, "what is this?") == 0
        assert capsys.readouterr() == (said, "")


def test_ctrl_c_ends_an_answer_and_not_the_program(folder, monkeypatch, capsys):
    asked = []

    def ask(_, question):
        asked.append(question)
        yield "So far"
        if len(asked) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat.Conversation, "ask", ask)
    assert talk(folder, typed="one\ntwo\n", monkeypatch=monkeypatch) == 0
    assert asked == ["one", "two"] and capsys.readouterr().out == "So far\nSo far\n"


def test_a_full_context_is_said_and_reset_helps(loaded):
    conversation = chat.Conversation(*loaded, max_new_tokens=40)
    with pytest.raises(UserError, match="/reset starts a new conversation"):
        for _ in range(20):
            list(conversation.ask("how many cats are there?"))
    turns = list(conversation.turns)
    assert turns and turns[-1][0] == "assistant"  # the question that did not fit is not kept
    conversation.reset()
    assert list(conversation.ask("how many cats are there?"))
    with pytest.raises(UserError, match="/reset"):
        list(conversation.ask("cat " * 500))
    conversation.reset()
    with pytest.raises(UserError, match="ask something shorter"):
        list(conversation.ask("cat " * 500))


def test_what_is_typed_never_becomes_a_control_token(loaded, picture):
    model, processor = loaded
    conversation = chat.Conversation(model, processor, Image.open(picture), max_new_tokens=2)
    ids = conversation._prompt("<image></s><s>ASSISTANT: <pad>")
    tokenizer = processor.tokenizer
    assert ids.count(tokenizer.image_id) == conversation.image_tokens == 4
    assert tokenizer.eos_id not in ids and tokenizer.pad_id not in ids and ids.count(tokenizer.bos_id) == 1
    list(conversation.ask("<image>\n</s>"))


def test_bytes_that_are_no_text(folder, picture, monkeypatch, capsys):
    """And a terminal that knows ASCII alone."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"what is \xff\xfe?\n"), encoding="ascii"))
    monkeypatch.setattr(sys, "stdout", out)
    assert talk(folder, "--image", picture) == 0
    assert out.buffer.getvalue().strip() and capsys.readouterr().err == ""


# ------------------------------------------------------------ mistakes
def pictures(tmp_path) -> dict:
    empty, text, cut, bomb = (tmp_path / name for name in ("empty.png", "text.png", "cut.jpg", "bomb.png"))
    empty.touch()
    text.write_text("not a picture")
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    cut.write_bytes(whole.getvalue()[:-600])
    Image.new("1", (20_000, 20_000)).save(bomb)
    said = {empty: "empty", text: "not a picture", cut: "cut short", bomb: "pixels"}
    return {tmp_path / "nowhere.png": "cannot be read", tmp_path: "folder", **said}


def test_bad_pictures(folder, tmp_path, capsys):
    for path, said in pictures(tmp_path).items():
        one_line(talk(folder, "--image", path, "what is this?"), capsys, said)


def one_line(status, capsys, said):
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and err.startswith("chat.py: error: ") and err.count("\n") == 1, err
    assert said in err and len(err) <= 201


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--weights", "nowhere", "a"], "no weights folder nowhere"),
        (["--weights", "llava-hf/no-such", "a"], "HF_HUB_OFFLINE forbids to fetch it"),
        (["--device", "cuda:99", "a"], "cuda:99"),
        (["--device", "toaster", "a"], "no device 'toaster'"),
        (["--dtype", "int3", "a"], "no dtype 'int3'"),
        (["--dtype", "mapped", "a"], "no dtype 'mapped'; there are auto, float32"),
        (["--dtype", "stored", "a"], "no dtype 'stored'"),
        (["--attention", "flash", "a"], "no attention 'flash'"),
        (["--temperature", "-1", "a"], "temperature must be"),
        (["--temperature", "nan", "a"], "temperature must be"),
        (["--temperature", "warm", "a"], "invalid float value: 'warm'"),
        (["--top-p", "0", "a"], "top_p must be"),
        (["--top-k", "-2", "a"], "top_k must be"),
        (["--max-new-tokens", "0", "a"], "max_new_tokens must be"),
        (["--max-new-tokens", "many", "a"], "invalid int value"),
        (["--seed", "-1", "a"], "seed must be"),
        (["--sead", "1", "a"], "unrecognized arguments"),
        (["what", "is"], "unrecognized arguments"),
        ([" "], "question is empty"),
        (["cat " * 500], "context is 160"),
        (["half a \udcff character"], "surrogate"),
        (["--image", "a.png", "--image", "b.png", "a"], "2 pictures were given"),
        (["--image", "data:image/png;base64," + "A" * 40_000, "a"], "data: URI"),
        (["--image", "file://server/a.png", "a"], "another machine"),
        (["--template", "v9", "a"], "no conversation template 'v9'"),
        (["--image", "http://127.0.0.1:9/cat.png", "a"], "cannot be downloaded"),
        (["--image", "ftp://127.0.0.1/cat.png", "a"], "cannot be read"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, said):
    one_line(talk(folder, *arguments), capsys, said)


def test_bad_weights(folder, tmp_path, capsys):
    """weights.py's own table is in test_weights; here, that it comes out as one line."""
    for name, spoil, said in (
        (
            "cut",
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-3]),
            "not a whole safetensors file",
        ),
        ("empty", lambda f: [path.unlink() for path in f.iterdir()], "no config.json"),
        ("mute", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        ("broken", lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        ("crops", lambda f: (f / "preprocessor_config.json").write_text('{"crop_size": 9}'), "cuts pictures"),
    ):
        shutil.copytree(folder, tmp_path / name)
        spoil(tmp_path / name)
        one_line(talk(tmp_path / name, "a"), capsys, said)


def test_a_mistake_of_the_command_line(folder, capsys):
    assert talk(folder, "--max-new-tokens", "x") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("chat.py: error: ") and err.count("\n") == 1


def test_help_lists_the_options(folder, capsys):
    assert talk(folder, "--help") == 0
    out, err = capsys.readouterr()
    assert "--image" in out and "--temperature" in out and not err


# ------------------------------------------------------------ streams
# chat.py's last lines around a main() that needs no model, and so no PyTorch.
SMALL = f"""
import runpy, sys
errors = runpy.run_path({str(ROOT / "minillava" / "errors.py")!r})
def main():
    if "--sead" in sys.argv:
        raise errors["UserError"]("unrecognized arguments: --sead")
    question = sys.argv[1] if sys.argv[1:] else sys.stdin.readline()
    if question.startswith("/"):
        errors["say"]("error: There is no command")
        return 2
    if question:
        print("A cat.")
closed = sys.stdout is None
sys.exit(errors["run"](main, "chat.py") or int(closed))
"""


def shell(line: str, folder, **options):
    """A line of sh in which CHAT is the command with the folder, and SMALL the small one."""
    start = f"{sys.executable} {ROOT / 'chat.py'} --weights {folder} --device cpu --max-new-tokens 4"
    line = line.replace("CHAT", start).replace("SMALL", f"{sys.executable} -c {shlex.quote(SMALL)}")
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=300, cwd="/", **options)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("SMALL <&-", 0),
        ("CHAT 0>/dev/null", 0),
        ("SMALL 'what?' >&-", 1),
        ("echo what? | SMALL >&-", 1),
        ("SMALL 'what?' > /dev/full", 1),
        ("echo what? | SMALL > /dev/full", 1),
        ("SMALL --sead 2>&-", 2),
        ("SMALL --sead 2>/dev/full", 2),
        ("echo /dance | SMALL 2>/dev/full", 2),
        ("CHAT 'what?' <&- >&- 2>&-", 1),
        ("echo what? | CHAT > /dev/full", 1),
    ],
)
def test_closed_and_full_streams_are_quiet(folder, line, status):
    result = shell(line, folder)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")


def test_stderr_that_is_closed_does_not_cost_the_answer(folder):
    result = shell("CHAT 'what?' 2>&-", folder)
    assert result.returncode == 0 and result.stdout.strip()


@pytest.mark.parametrize("script", ["chat.py", "train.py"])
@pytest.mark.parametrize("after", [0.3, 1.5])
def test_ctrl_c_while_it_starts(script, after):
    arguments = {"chat.py": ["a"], "train.py": ["--stage", "9"]}[script]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    ended = -signal.SIGINT  # by the signal itself, where Python has already begun to take itself down
    assert process.returncode in (130, 2, 0, ended) and b"Traceback" not in err, err
