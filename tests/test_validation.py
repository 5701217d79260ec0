"""Validation: pictures that are never trained on, the loss on them by the formula, and the weights with which it was
lowest.
"""

import itertools
import json
import math
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train as command
from minillava import training, weights
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.data.scenes import sample_scene
from minillava.errors import UserError, run
from minillava.inputs.conversation import IGNORE_INDEX, encode
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.training import TrainConfig, checkpoint, train
from minillava.training import run as loop
from minillava.training.batches import Batches
from minillava.training.metrics import CURVES, Metrics
from minillava.training.samples import JsonSamples
from minillava.training.validation import Validation, is_held_out, split

SHARE, PLOT = 0.3, Metrics._plot


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """The folder of a small random LLaVA."""
    folder = tmp_path_factory.mktemp("start")
    tokenizer = Tokenizer.train(["USER: What is in picture? ASSISTANT: There is a cat. number 0123456789"] * 3, 300)
    torch.manual_seed(3)
    tower = VisionConfig(
        hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
    )
    model = Llava(
        LlavaConfig(
            tower, TextConfig(tokenizer.vocab_size, 40, 56, 2, 4, 2, max_position_embeddings=256), tokenizer.image_id
        )
    )
    weights.save(model, Processor.for_model(tokenizer, model.config, template="llava_hf"), folder, "float32")
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    """24 records: about each of 10 pictures two, and 4 of text alone; answers of several lengths."""
    folder, records = tmp_path_factory.mktemp("data"), []
    for i in range(24):
        said = [
            {"from": "human", "value": f"What is number {i}?"},
            {"from": "gpt", "value": "There is a cat. " * (1 + i * 7 % 5) + str(i)},
        ]
        records.append({"id": str(i), "conversations": said})
        if i < 20:
            records[-1]["image"] = f"{i % 10}.png"
            said[0]["value"] = "<image>\n" + said[0]["value"]
            sample_scene(i % 10).render().save(folder / f"{i % 10}.png")
    (folder / "data.json").write_text(json.dumps(records))
    return dict(data=str(folder / "data.json"), images=str(folder))


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time of so short a training, and make the loss fall for four steps and then
    rise.
    """
    patch.setattr(loop, "learning_rate", falling_and_rising)
    patch.setattr(Metrics, "_plot", lambda *_: None)
    patch.setattr(training, "sample_answers", lambda *_: {})
    patch.setattr(os, "fsync", lambda file: None)


def falling_and_rising(step: int, settings: TrainConfig) -> float:
    return settings.learning_rate if step < 4 else -settings.learning_rate


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def configs(start, data):
    def make(out, **changes) -> TrainConfig:
        options = dict(
            stage=2,
            out=str(out),
            weights=start,
            max_steps=8,
            batch_size=4,
            learning_rate=0.02,
            warmup_ratio=0.0,
            save_every=2,
        )
        return TrainConfig(
            **{**options, **data, "validation_share": SHARE, "dtype": "float32", "seed": 1, "device": "cpu", **changes}
        )

    return make


@pytest.fixture
def config(configs, tmp_path):
    return lambda out="out", **changes: configs(tmp_path / out, **changes)


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        train(configs(out))
    return out


def rows(out) -> list[dict]:
    """What must be the same in every run."""
    found = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def validated(out) -> dict[int, float]:
    return {row["step"]: row["validation_loss"] for row in rows(out) if "validation_loss" in row}


def same_files(ours: Path, theirs: Path, *names: str) -> bool:
    pairs = [(load_file(Path(ours) / name), load_file(Path(theirs) / name)) for name in names]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


# ------------------------------------------------------------ the split
record_lists = st.lists(
    st.one_of(
        st.builds(lambda number: {"id": "same", "image": f"{number}.png"}, st.integers(0, 30)),
        st.builds(lambda number: {"id": number}, st.integers(0, 30)),
        st.builds(
            lambda text: {"conversations": [{"from": "human", "value": text}]}, st.text(st.characters(), max_size=5)
        ),
    ),
    max_size=40,
)


@given(
    record_lists, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.integers(0, 9), st.randoms()
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_the_side_of_a_record_depends_on_its_picture_and_the_seed_alone(records, share, larger, seed, rng):
    share, larger = sorted((share, larger))
    sides = {json.dumps(record): is_held_out(record, share, seed) for record in records}
    shuffled = [dict(record) for record in records]
    rng.shuffle(shuffled)
    assert all(is_held_out(record, share, seed) == sides[json.dumps(record)] for record in shuffled)
    # a larger share holds the smaller one
    assert all(is_held_out(record, larger, seed) for record in records if sides[json.dumps(record)])
    for record in records:
        if "image" in record:
            for other in (
                {**record, "id": "another"},
                {**record, "image": "./" + record["image"]},
                {"images": [record["image"]]},
            ):
                assert is_held_out(other, share, seed) == is_held_out(record, share, seed)


def test_the_share_is_about_what_was_asked_for_and_the_seed_changes_who_it_is():
    sides = [[is_held_out({"image": f"{i}.png"}, 0.2, seed) for i in range(4000)] for seed in (0, 1)]
    assert all(700 < sum(side) < 900 for side in sides)
    # 160 if they have nothing to do with each other
    assert 100 < sum(a and b for a, b in zip(*sides, strict=True)) < 220


def test_a_picture_is_on_one_side_however_its_name_is_written():
    for names in (("sub/a.png", "sub\\a.png", "./sub/a.png"), ("caf\u00e9.png", "cafe\u0301.png")):
        assert len({is_held_out({"image": name}, 0.5, seed) for name in names for seed in (1,)}) == 1


def test_the_split_is_the_same_in_every_process_and_version():
    assert [i for i in range(30) if is_held_out({"image": f"{i}.png"}, 0.2, 0)] == [6, 18, 24]
    assert [i for i in range(30) if is_held_out({"id": i}, 0.2, 0)] == [0, 10, 15, 23, 27, 29]


def test_the_two_sides_share_no_picture_and_hold_every_record(data):
    samples = JsonSamples(**{"path": data["data"], "images": data["images"]})
    sides = split(samples, SHARE, 1)
    ids = [{record["id"] for record in side.records} for side in sides]
    pictures = [{record["image"] for record in side.records if "image" in record} for side in sides]
    assert ids[0] | ids[1] == {str(i) for i in range(24)} and not ids[0] & ids[1] and all(ids)
    assert len(pictures[0] | pictures[1]) == 10 and not pictures[0] & pictures[1] and all(pictures)
    assert len(samples) == 24 and [len(side.num_bytes) for side in sides] == [len(side.records) for side in sides]


def test_what_is_trained_on_and_what_is_validated_on(config, monkeypatch):
    """By the texts that the batches hold."""
    seen = {True: set(), False: set()}

    def loss(model, batch):
        for ids in batch["input_ids"].tolist():
            seen[torch.is_grad_enabled()].add(tokenizer.decode(ids).split("number ")[1].split("?")[0])
        return training_loss(model, batch)

    settings = config(max_steps=12)
    tokenizer, training_loss = weights.load(settings.weights)[1].tokenizer, training.loss
    monkeypatch.setattr(training, "loss", loss)
    train(settings)
    records = json.loads(Path(settings.data).read_text())
    held = {record["id"] for record in records if is_held_out(record, SHARE, 1)}
    assert seen[False] == held and seen[True] == {record["id"] for record in records} - held


# ------------------------------------------------------------ the loss
def reference(settings: TrainConfig, model: Llava, processor: Processor) -> float:
    """The mean over all supervised tokens in float64, by the formula, one record at a time."""
    model, losses = model.double(), []
    samples = JsonSamples(settings.data, settings.images)
    for index, record in enumerate(samples.records):
        if is_held_out(record, settings.validation_share, settings.seed):
            sample = samples[index]
            encoded = encode(
                processor.tokenizer, processor.template, sample.turns, processor.count_image_tokens(sample.picture)
            )
            images = {name: tensor.double() for name, tensor in processor.image_inputs(sample.picture).items()}
            logits = model(torch.tensor([encoded.input_ids]), images.get("pixel_values"))[0].detach()  # (T, V)
            pairs = [(logits[t], label) for t, label in enumerate(encoded.labels[1:]) if label != IGNORE_INDEX]
            losses += [math.log(row.exp().sum()) - row[label].item() for row, label in pairs]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(batch_size=3, micro_batch_size=2),
        dict(pack=True, max_length=200),
        dict(checkpoint_activations=True),
        dict(cache_features="cache"),
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_the_loss_is_the_mean_over_all_supervised_tokens(config, changes, tmp_path):
    if "cache_features" in changes:
        changes = dict(cache_features=str(tmp_path / "cache"))
    settings = config(max_steps=2, **changes)
    train(settings)
    model, processor = weights.load(settings.weights, device="cpu", dtype="float32")
    tensors = load_file(tmp_path / "out" / "checkpoint.safetensors")
    trained = {
        name.removeprefix("parameter."): tensor for name, tensor in tensors.items() if name.startswith("parameter.")
    }
    assert not model.load_state_dict(trained, strict=False).unexpected_keys
    assert list(validated(tmp_path / "out").values()) == [
        pytest.approx(reference(settings, model, processor), rel=1e-5)
    ]


def test_processes_validate_as_a_thread_does(config, tmp_path):
    for out, workers in (("thread", 0), ("processes", 2)):
        train(config(out, workers=workers, max_steps=4))
    assert rows(tmp_path / "thread") == rows(tmp_path / "processes")


def test_validation_changes_no_weight(config, data):
    settings = config()
    model, processor = weights.load(settings.weights, device="cpu", dtype="float32")
    training_side, held = split(JsonSamples(data["data"], data["images"]), SHARE, 1)
    batches = Batches(training_side, processor, settings, 256)
    validation = Validation(held, batches)
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    in_training = []

    def loss(batch):
        in_training.append(any(module.training for module in model.modules()))
        return training.loss(model, batch)

    first, second = validation.mean_loss(model, loss), validation.mean_loss(model, loss)
    validation.close()
    batches.close()
    assert first == second and in_training and not any(in_training)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_the_training_is_that_of_the_training_side_alone(config, tmp_path, data):
    """Validation draws no number that the training would have drawn."""
    folder = tmp_path / "side"
    folder.mkdir()
    records = [record for record in json.loads(Path(data["data"]).read_text()) if not is_held_out(record, SHARE, 1)]
    (folder / "data.json").write_text(json.dumps(records))
    train(config("with"))
    train(config("without", validation_share=0.0, data=str(folder / "data.json")))
    assert [row for row in rows(tmp_path / "with") if "loss" in row] == [
        row for row in rows(tmp_path / "without") if "loss" in row
    ]
    assert same_files(tmp_path / "with", tmp_path / "without", "model.safetensors", "checkpoint.safetensors")
    assert not (tmp_path / "without" / "best").exists() and not validated(tmp_path / "without")


# ------------------------------------------------------------ the best
def test_best_holds_the_weights_of_the_step_with_the_lowest_loss(config, whole, tmp_path, capsys):
    losses = validated(whole)
    assert list(losses) == [1, 3, 5, 7] and min(losses, key=losses.get) == 3

    def stop(step, settings):
        if step == 4:
            raise SystemExit("killed")
        return falling_and_rising(step, settings)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "learning_rate", stop)
        train(config())
    assert same_files(whole / "best", tmp_path / "out", "model.safetensors")
    assert not same_files(whole / "best", whole, "model.safetensors")
    model, processor = weights.load(whole / "best", device="cpu", dtype="float32")
    assert reference(config(), model, processor) == pytest.approx(losses[3], rel=0.02)  # its weights are bfloat16
    assert f"validation_loss: {losses[3]:.4g}" in capsys.readouterr().out


def test_a_loss_that_is_no_number_is_never_the_lowest(tmp_path):
    metrics, lowest = Metrics(tmp_path, first=0), []
    for step, value in enumerate([math.nan, 3.0, math.nan, 2.0]):
        lowest.append(metrics.lowest("validation_loss"))
        metrics.add(step=step, validation_loss=value)
    assert lowest == [math.inf, math.inf, 3.0, 3.0] and metrics.lowest("validation_loss") == 2.0


# ------------------------------------------------------------ resume
@pytest.mark.parametrize(
    ("where", "call", "num_validated"),
    [
        ("in a step", 5, 2),
        ("before validating", 1, 1),
        ("before validating", 2, 2),
        ("before the log", 1, 1),
        ("ctrl-c", 3, 2),
        ("ctrl-c", 4, 2),
    ],
)
def test_killed_and_resumed_is_the_run_that_was_not(config, whole, tmp_path, where, call, num_validated, monkeypatch):
    calls = itertools.count()

    def stop(function, call: int):
        def stopping(*arguments):
            if next(calls) == call:
                if where == "ctrl-c":
                    signal.raise_signal(signal.SIGINT)
                else:
                    raise SystemExit("killed")
            return function(*arguments)

        return stopping

    with monkeypatch.context() as patch:
        if where == "before validating":
            patch.setattr(Validation, "mean_loss", stop(Validation.mean_loss, call))
        elif where == "before the log":  # after best was written
            patch.setattr(Metrics, "write", stop(Metrics.write, call))
        else:
            patch.setattr(loop, "learning_rate", stop(falling_and_rising, call))
        with pytest.raises(KeyboardInterrupt if where == "ctrl-c" else SystemExit):
            train(config("broken"))
    assert len(validated(tmp_path / "broken")) == num_validated
    train(config("broken", resume=True))
    assert rows(tmp_path / "broken") == rows(whole)
    assert same_files(
        tmp_path / "broken", whole, "model.safetensors", "checkpoint.safetensors", "best/model.safetensors"
    )


def test_a_checkpoint_from_before_a_setting_was_invented_is_of_a_run_with_its_default(config, tmp_path):
    train(config(max_steps=2, validation_share=0.0))
    path = tmp_path / "out" / "checkpoint.safetensors"
    metadata, tensors = checkpoint.read_checkpoint(path)
    settings = json.loads(metadata["settings"])
    assert settings.pop("validation_share") == 0.0
    metadata = {**metadata, "settings": json.dumps(settings)}
    save_file(tensors, path, {**metadata, "sha256": checkpoint.checksum(tensors, metadata)})
    train(config(max_steps=2, validation_share=0.0, resume=True))
    with pytest.raises(UserError, match=r"holds a run with validation_share 0\.0, not 0\.3"):
        train(config(max_steps=2, resume=True))


# ------------------------------------------------------------ figures
def test_the_plot_shows_it(config, tmp_path):
    axes, subplots = [], Figure.subplots
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Metrics, "_plot", PLOT)
        patch.setattr(Figure, "subplots", lambda self: axes.append(subplots(self)) or axes[-1])
        train(config(max_steps=4))
    (line,) = [line for line in axes[-1].lines if line.get_marker() == "o"]
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == validated(tmp_path / "out")
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000


def scalars(folder) -> list[dict]:
    """What TensorBoard shows, as rows."""
    events, found = EventAccumulator(str(folder / "tensorboard")).Reload(), {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault((event.step, name == "validation_loss"), []).append((name, event.value))
    assert all(len(dict(pairs)) == len(pairs) for pairs in found.values())  # nothing is shown twice
    return [dict(found[key]) | {"step": key[0]} for key in sorted(found)]


def test_tensorboard_shows_the_rows_also_after_a_resume(config, tmp_path, monkeypatch):
    def stop(step, settings):
        if step == 5:
            raise SystemExit("killed")
        return falling_and_rising(step, settings)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "learning_rate", stop)
        train(config())
    for age in (0, 1):  # the two checkpoints of steps 2 and 4: the newest is damaged
        path = checkpoint.places(tmp_path / "out", age)[0]
        assert checkpoint.read_checkpoint(path)[0]["step"] == str(4 - 2 * age)
    checkpoint.places(tmp_path / "out", 0)[0].write_bytes(b"torn")
    time.sleep(1.1)  # TensorBoard reads its files by the second in which they were begun
    train(config(resume=True))
    numbers = [{name: row[name] for name in (*CURVES, "step") if name in row} for row in rows(tmp_path / "out")]
    shown, expected = scalars(tmp_path / "out"), numbers
    assert len(expected) == 12
    assert shown == [pytest.approx(row, rel=1e-6) for row in expected]


def test_without_tensorboard_nothing_happens(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # its import is then an ImportError
    train(config(max_steps=2))
    assert not (tmp_path / "out" / "tensorboard").exists() and "tensorboard" not in "".join(capsys.readouterr()).lower()


# ------------------------------------------------------------ mistakes
def test_a_broken_picture_that_is_held_out_is_told_or_is_left_out(config, tmp_path, data, capsys):
    folder, records = tmp_path / "copy", json.loads(Path(data["data"]).read_text())
    folder.mkdir()
    for path in Path(data["images"]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name = next(record["image"] for record in records if "image" in record and is_held_out(record, SHARE, 1))
    (folder / name).write_bytes(b"no picture")
    settings = config(data=str(folder / "data.json"), images=str(folder))
    train(settings)  # validation is a luxury
    told = capsys.readouterr().err
    assert re.search(r"note: what is shown at step 2 failed: .* is not a picture.*", told) and not validated(
        tmp_path / "out"
    )
    settings = replace(settings, out=str(tmp_path / "left"))
    train(replace(settings, skip_broken=True))
    assert list(validated(tmp_path / "left")) == [1, 3, 5, 7]
    assert capsys.readouterr().out.count("2 records were left out") == 1
    assert {json.loads(line)["image"] for line in (tmp_path / "left" / "left_out.jsonl").read_text().splitlines()} == {
        name
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--validation-share", "1"], "--validation-share must be from 0 to below 1, not 1.0"),
        (["--validation-share", "-0.1"], "--validation-share must be from 0 to below 1"),
        (["--validation-share", "nan"], "--validation-share must be from 0 to below 1"),
        (["--validation-share", "0.1"], "--validation-share needs --data"),
        (["--validation-share", "1e-9", "DATA"], "--validation-share 1e-09 leaves none of 24 records to validate on"),
        (
            ["--validation-share", "0.999999", "DATA"],
            "--validation-share 0.999999 leaves none of 24 records to train on",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(arguments, words, start, data, tmp_path, capsys, monkeypatch):
    if "DATA" in arguments:
        arguments = [*arguments[:-1], "--data", data["data"], "--images", data["images"]]
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--stage", "2", "--weights", start, "--out", str(tmp_path / "out"), *arguments]
    )
    assert run(command.main, "train.py") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and words in said[0] and len(said[0]) < 200
    assert not (tmp_path / "out").exists()
