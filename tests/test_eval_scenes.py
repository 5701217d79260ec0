"""The tiny world's benchmark: scores worked by hand, and answers that do not depend on who stands beside them in a
batch.
"""

import json
import os
import stat

import pytest
import torch
from PIL import Image

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.data import scene_records
from minillava.errors import UserError, run
from minillava.eval import ablations, instruct_kinds, probe, scenes
from minillava.generation import answer, answer_all, collate_prompts
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.training.scoring import F1_KINDS, Case, cases, score, table


def test_the_truth_scores_one_and_nonsense_nothing():
    asked = cases("val", 40)
    assert set(score(asked, [case.question.answer for case in asked]).values()) == {1.0}
    assert max(score(asked, ["xyzzy"] * len(asked)).values()) == 0.0


def test_half_of_the_answers_right_is_half():
    asked = [case for case in cases("val", 60) if case.question.kind == "existence"][:20]
    answers = [case.question.short for case in asked[:10]] + [
        {"yes": "no", "no": "yes"}[case.question.short] for case in asked[10:]
    ]
    assert score(asked, answers) == {"existence": 0.5}


def test_f1_of_named_things():
    case = next(
        case
        for case in cases("val", 60)
        if case.question.kind == "list" and len({t.name for t in case.scene.things}) == 2
    )
    one = case.scene.things[0].name
    absent = next(name for name in ("cat", "bus", "drum") if name not in {t.name for t in case.scene.things})
    assert score([case], [f"There is a {one}."])["list"] == pytest.approx(2 * 1 / (2 + 1))
    assert score([case], [f"There is a {one} and a {absent}."])["list"] == pytest.approx(2 * 1 / (2 + 2))


def test_splits_ask_about_different_scenes():
    val, pairs = cases("val", 5), cases("pairs", 5)
    assert isinstance(val[0], Case) and {case.scene for case in val}.isdisjoint({case.scene for case in pairs})
    assert all(len(case.scene.things) <= 4 for case in val + pairs)
    assert "list" in F1_KINDS and table({"sees": {"list": 0.5}}, val).splitlines()[3].endswith("| 50.0 |")


@pytest.fixture(scope="module")
def small():
    tokenizer = Tokenizer.train(["USER: ASSISTANT: Is there a cat? Where is the dog? Yes, there is a cat."] * 5, 360)
    tower = VisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
    )
    text = TextConfig(
        tokenizer.vocab_size, 40, 56, 2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256
    )
    torch.manual_seed(2)
    model = Llava(LlavaConfig(tower, text, tokenizer.image_id)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # so that answers differ
    return model, Processor.for_model(tokenizer, model.config)


def test_a_batch_answers_as_one_by_one(small):
    model, processor = small
    colors = ("red", "white", "blue", "black", "green")
    asked = [("Is there a cat?" * (1 + i % 3), Image.new("RGB", (28, 28), color)) for i, color in enumerate(colors)]
    together = answer_all(model, processor, asked, batch_size=4, max_new_tokens=9)
    assert together == [answer(model, processor, picture, question, max_new_tokens=9) for question, picture in asked]
    assert len(set(together)) > 1


def test_padding_is_on_the_left(small):
    _, processor = small
    batch = collate_prompts([processor("Hi"), processor("Where is the dog?")])
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][:, -1].all() and "pixel_values" not in batch


# ------------------------------------------------------------ the commands
def fails(capsys, command, *arguments) -> str:
    """What the command says; it must be one line, with status 2, and nothing on stdout."""
    assert run(lambda: command.main(list(map(str, arguments))), "it") == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("it: error: ") and error.count("\n") == 1 and len(error) <= 201
    return error


def held_by_another(out):
    raise UserError("another process writes there")


@pytest.mark.parametrize("number", ["0", "-1", "1000000000000", "nan", "1e3", "", "9" * 5000])
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (scenes, "--scenes"),
        (probe, "--scenes"),
        (scene_records, "--count"),
        (instruct_kinds, "--records"),
        (instruct_kinds, "--steps"),
        (instruct_kinds, "--batch-size"),
        (instruct_kinds, "--questions"),
    ],
)
def test_a_number_out_of_range_is_one_line(command, flag, number, capsys):
    error = fails(capsys, command, flag, number)
    assert flag in error and ("must be" in error or "invalid int value" in error)


@pytest.mark.skipif(os.name == "nt", reason="named pipes and devices of Unix")
def test_an_out_that_cannot_be_written_is_one_line_before_any_work(tmp_path, capsys, monkeypatch):
    def work(*_, **__):
        raise AssertionError("hours of work before it is known that the result cannot be written")

    for module, name in ((ablations, "ROWS"), (instruct_kinds, "held_out"), (scene_records, "sample_scene")):
        monkeypatch.setattr(module, name, {"row": work} if name == "ROWS" else work)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("not ours")
    for out in ("/dev/null", "/dev/null/x", tmp_path / "pipe", tmp_path / "file", tmp_path / "file" / "x", "a" * 300):
        for command in (ablations, instruct_kinds, scene_records):
            fails(capsys, command, "--out", out)
    fails(capsys, ablations, "--out", tmp_path)
    for command in (ablations, instruct_kinds, scene_records):  # or another process writes there
        monkeypatch.setattr(command, "locked", held_by_another)
        assert "another process" in fails(capsys, command, "--out", tmp_path / "out")
    (tmp_path / "out").rmdir()
    monkeypatch.undo()
    for out in ("/dev/null", tmp_path / "pipe", tmp_path):
        assert "is not written over" in fails(capsys, scene_records, "--preview", out)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert (tmp_path / "file").read_text() == "not ours" and len(list(tmp_path.iterdir())) == 2


def test_a_folder_or_file_of_others_is_not_gone_on_with(tmp_path, capsys):
    for held in ({"rows": [5]}, {"rows": {"a": 5}}, {"rows": [{"name": "a"}]}, {"rows": "ab"}, {}):
        (tmp_path / "rows.json").write_text(json.dumps(held))
        assert "holds no rows of this command" in fails(capsys, ablations, "--out", tmp_path / "rows.json")
        assert "holds no rows of this command" in fails(capsys, instruct_kinds, "--out", tmp_path)
        assert json.loads((tmp_path / "rows.json").read_text()) == held


def test_rows_that_are_there_are_not_measured_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablations, "ROWS", {"a": lambda out: {"x": 1.0}, "b": lambda out: {"y": 2.0}})
    (tmp_path / "rows.json").write_text(json.dumps({"rows": [{"name": "a", "figures": {"x": 9.0}, "minutes": 5}]}))
    ablations.main(["--out", str(tmp_path / "rows.json")])
    assert capsys.readouterr().out.splitlines()[2:] == ["| a | 9.0 |  | 5 |", "| b |  | 2.0 | 0.0 |"]


def test_weights_that_are_none_are_one_line_before_any_question(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scenes, "cases", lambda *_: pytest.fail("questions before the weights were looked for"))
    (tmp_path / "file").touch()
    for flag in ("--weights", "--language", "--stage1"):
        for path in (tmp_path / "gone", tmp_path / "file", *([tmp_path] if flag != "--stage1" else [])):
            assert str(path) in fails(capsys, scenes, flag, path)
    assert str(tmp_path) in fails(capsys, probe, "--vision", tmp_path)
