"""`train.py --check-data`: what is wrong with which records, what the rest is like, and that training does what it
says.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import train as command
from minillava import weights
from minillava.errors import run
from minillava.inputs.conversation import encode
from minillava.training import TrainConfig
from minillava.training.batches import Batches
from minillava.training.check_data import padding
from minillava.training.samples import JsonSamples
from minillava.training.validation import split


def record(number: int, question="What?", answer="A cat.", image=None) -> dict:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"n{number}", **({"image": image} if image else {}), "conversations": said}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "cut.png"):
        Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    (tmp_path / "text.png").write_bytes(b"no picture")
    return tmp_path


WRONG = [
    record(0, "no mark", image="a.png"),
    record(1, "<image><image>", image="a.png"),
    record(2, "<image>", image="gone\x1b[31m.png"),
    record(3, "<image>", image="cut.png"),
    record(4, "<image>", image="cut.png"),
    record(5, "<image>", image="text.png"),
    record(6, "very " * 1500),  # no room for its answer
    {"id": "n7", "conversations": []},
]
RIGHT = [
    record(8, "<image>\nWhat?", image="a.png"),
    record(9, "<image>\nWhat?", "cat " * 1500, image="b.png"),
    record(10, answer=" \n"),
    record(11),
]


def check(folder, records, capsys, monkeypatch, *flags) -> tuple[int, str, str]:
    (folder / "data.json").write_text(json.dumps(records))
    where = [
        "--data",
        str(folder / "data.json"),
        "--images",
        str(folder),
        "--out",
        str(folder / "out"),
        "--weights",
        "weights/tiny",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", "--stage", "2", "--check-data", *where, "--device", "cpu", *flags])
    status = run(command.main, "train.py")
    said = capsys.readouterr()
    assert not (folder / "out").exists()
    return status, said.out, said.err


def test_the_report_counts_and_names_all_that_is_wrong(folder, capsys, monkeypatch):
    status, said, _ = check(folder, WRONG + RIGHT, capsys, monkeypatch)
    assert status == 0
    for line in (
        f"{folder / 'data.json'}: 12 records, of which 4 can be trained on",
        "  1 record: <image> must stand once in the first question; it stands 0 times (the first: record 0 (id 'n0'))",
        "  1 record: <image> must stand once in the first question; it stands 2 times (the first: record 1 (id 'n1'))",
        "  1 record: the picture is not in --images (the first: record 2 (id 'n2'): gone [31m.png)",
        "  3 records: the picture is broken (the first: record 3 (id 'n3'): cut.png)",
        "  1 record: no answer within the model's context of 1024 tokens (the first: record 6 (id 'n6'))",
        "  1 record: it has no conversations: a list of {from, value} is needed (the first: record 7 (id 'n7'))",
        "4 pictures, of which 2 cannot be read:",
        f"  text.png: {folder / 'text.png'} is not a picture that can be read.",
        "of those that can be trained on, 1 are cut at 1024 tokens, and 1 hold an empty answer",
    ):
        assert line in said.splitlines(), line
    assert "  cut.png: " in said and "\x1b" not in said
    stops, left_out = said.index("the training stops at these"), said.index("left out:")
    assert stops < said.index("the picture is broken") < left_out < said.index("no answer within")


def test_what_is_left_out_by_flags_and_by_the_stage(folder, capsys, monkeypatch):
    status, said, _ = check(
        folder,
        WRONG[2:6] + RIGHT,
        capsys,
        monkeypatch,
        "--skip-broken",
        "--stage",
        "1",
        "--workers",
        "3",
    )
    assert status == 0 and "the training stops at these" not in said and "of which 2 can be trained on" in said
    assert "  2 records: no picture, and stage 1 learns from pictures (the first: record 6 (id 'n10'))" in said


def test_pictures_under_other_names_are_judged_as_in_the_training(folder, capsys, monkeypatch):
    """Found where only the writing differs; told where the key is another, and refused where nearly all are so."""
    blind = record(1, "<image>\nWhat?") | {"image_path": "a.png"}
    status, said, _ = check(
        folder, [record(0, "<image>\nWhat?", image=".\\a%2Epng"), *RIGHT, blind], capsys, monkeypatch
    )
    assert status == 0 and "6 records, of which 6 can be trained on" in said and "2 pictures, of which 0" in said
    told = "note: 1 of 6 records speak of pictures that are not under 'image' (record 5 (id 'n1'):"
    assert f"{told} image_path): they count as text alone" in said.splitlines()
    status, said, error = check(folder, [blind] * 3, capsys, monkeypatch)
    assert status == 2 and "3 of 3 records speak of pictures" in error and error.count("\n") == 1


def test_the_records_for_validation_are_those_of_the_training(folder, capsys, monkeypatch):
    _, said, _ = check(folder, RIGHT * 5, capsys, monkeypatch, "--validation-share", "0.4", "--seed", "5")
    held = len(split(JsonSamples(folder / "data.json", folder), 0.4, 5)[1])
    assert 0 < held < 20 and f"of those that can be trained on, {held} are for validation" in said.splitlines()
    assert "are for validation" not in check(folder, RIGHT, capsys, monkeypatch)[1]


def test_nothing_to_train_on_is_status_2_after_the_report(folder, capsys, monkeypatch):
    status, said, error = check(folder, WRONG, capsys, monkeypatch)
    assert status == 2 and "8 records, of which 0 can be trained on" in said
    assert error.startswith("train.py: error: none of the records of") and error.count("\n") == 1


def test_percentiles_and_histogram(folder, capsys, monkeypatch):
    _, said, _ = check(folder, RIGHT[2:] * 3 + RIGHT[:2], capsys, monkeypatch)
    row = next(line.split() for line in said.splitlines() if line.startswith("with picture"))
    processor = weights.load("weights/tiny", device="cpu")[1]
    short = len(
        encode(processor.tokenizer, processor.template, [("user", "What?"), ("assistant", "A cat.")], 49).input_ids
    )
    assert row[2:] == ["2", str(short), str(round((short + 1024) / 2)), *row[5:7], "1024"]
    bars = [line.split() for line in said.splitlines() if " to " in line]
    assert sum(int(bar[3]) for bar in bars) == 8 and len(bars) == 10
    assert [int(bar[3]) for bar in bars] == [7, *[0] * 8, 1] and bars[0][4] == "#" * 40


def test_image_tokens_of_a_size_are_those_of_a_picture_of_that_size():
    plain = weights.load("weights/tiny", device="cpu")[1]
    tiled = replace(plain, image_size=14, patch_size=7, image_grid_pinpoints=((14, 28), (28, 14), (28, 28)))
    for processor in (plain, tiled):
        assert processor.count_image_tokens(None) == 0
        for size in ((10, 33), (64, 20), (28, 28)):
            assert processor.count_image_tokens(size) == processor.count_image_tokens(Image.new("RGB", size))


def test_the_padding_it_tells_is_that_of_the_training(folder):
    rng = np.random.default_rng(0)
    records = [
        record(
            i,
            ("<image>\n" if i % 3 else "") + "What?",
            "cat " * int(rng.integers(1, 90)),
            image="a.png" if i % 3 else None,
        )
        for i in range(60)
    ]
    (folder / "data.json").write_text(json.dumps(records))
    processor = weights.load("weights/tiny", device="cpu")[1]
    samples = JsonSamples(folder / "data.json", folder)
    told = []
    for pack in (False, True):
        config = TrainConfig(stage=2, batch_size=4, workers=0, pack=pack)
        made = Batches(samples, processor, config, 1024)
        masks = [made[step]["attention_mask"] for step in range(15)]
        told.append(
            f"{100 * sum(int((mask == 0).sum()) for mask in masks) / sum(mask.numel() for mask in masks):.1f} %"
        )
    lengths = np.array([len(made._item(i)) for i in range(60)])
    (line,) = padding(lengths, samples.has_picture, config, 1024)
    assert f"{told[0]} as they are batched, {told[1]} with --pack" in line
