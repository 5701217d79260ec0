"""Cached features: the same losses, never stale, whole or absent, and no more of the disk than was told."""

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minillava import training, weights
from minillava.errors import UserError
from minillava.training import TrainConfig, features, set_trainable, train
from minillava.training import run as loop
from minillava.training.features import FeatureCache
from minillava.vision import VisionTransformer


@pytest.fixture
def data(tmp_path) -> dict:
    """Ten records with pictures, two of which show the same, in files of different names."""
    records = []
    for i in range(10):
        Image.effect_noise((50, 40 + i % 9), 80).convert("RGB").save(tmp_path / f"{i}.png")
        said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"It is number {i}."}]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": said})
    shutil.copy(tmp_path / "0.png", tmp_path / "9.png")
    (tmp_path / "data.json").write_text(json.dumps(records))
    return dict(data=str(tmp_path / "data.json"), images=str(tmp_path))


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """How many pictures the tower looked at, call by call."""
    calls, forward = [], VisionTransformer.forward
    monkeypatch.setattr(
        VisionTransformer, "forward", lambda self, pixels: calls.append(len(pixels)) or forward(self, pixels)
    )
    return calls


@pytest.fixture(autouse=True)
def no_sample_answers_and_no_plot(monkeypatch):
    """They take most of the time of so short a training."""
    monkeypatch.setattr(training, "sample_answers", lambda *_: {})
    monkeypatch.setattr(loop.Metrics, "show", lambda *_: None)


def config(out, **changes) -> TrainConfig:
    settings = dict(
        stage=1,
        weights="weights/tiny-stage1",
        out=str(out),
        max_steps=3,
        batch_size=3,
        save_every=2,
        learning_rate=1e-3,
    )
    return TrainConfig(**{**settings, "seed": 1, "device": "cpu", "dtype": "float32", **changes})


def losses(out) -> list[float]:
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def cache_for(folder, dtype="float32", **changes) -> FeatureCache:
    model, processor = weights.load("weights/tiny-stage1", device="cpu", dtype="float32")
    set_trainable(model, 1)
    return FeatureCache(folder, model, replace(processor, **changes), dtype)


def pictures(data) -> list[Path]:
    return [Path(data["images"]) / f"{i}.png" for i in range(10)]


# ------------------------------------------------------------ the same training
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_the_same_with_and_without(data, tmp_path, seen, capsys, dtype):
    few = dict(max_steps=1, batch_size=2) if dtype == "bfloat16" else {}  # slow on a CPU without its instructions
    train(config(tmp_path / "without", dtype=dtype, **few, **data))
    seen.clear()
    cached = config(tmp_path / "with", dtype=dtype, cache_features=str(tmp_path / "cache"), **few, **data)
    train(cached)
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-6)
    assert sum(seen) == 9  # each picture once, and the one that lies there twice once
    bytes_each = 49 * 192 * (4 if dtype == "float32" else 2)
    assert f"the features of 9 of 10 pictures take {9 * bytes_each / 1e9:.2f} GB" in capsys.readouterr().out
    stored = [tensor for path in (tmp_path / "cache").rglob("*.safetensors") for tensor in load_file(path).values()]
    assert len(stored) == 9 and {(tuple(tensor.shape), tensor.dtype) for tensor in stored} == {
        ((49, 192), getattr(torch, dtype))
    }

    if dtype == "float32":
        train(replace(cached, out=str(tmp_path / "again"), workers=2))
        assert sum(seen) == 9 and losses(tmp_path / "again") == losses(tmp_path / "with")
        assert "the features of all 10 pictures are in" in capsys.readouterr().out


def test_killed_and_resumed_with_a_cache_is_bit_for_bit_the_run_that_was_not(data, tmp_path, monkeypatch):
    settings = dict(cache_features=str(tmp_path / "cache"), **data)
    train(config(tmp_path / "whole", **settings))
    rate, calls = loop.learning_rate, itertools.count()

    def die(step: int, config):
        if next(calls) == 2:
            raise SystemExit("killed")
        return rate(step, config)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", die)
        with pytest.raises(SystemExit):
            train(config(tmp_path / "broken", workers=0, **settings))
    # computed once more
    moved = replace(config(tmp_path / "broken", resume=True, workers=2, **data), cache_features=str(tmp_path / "moved"))
    train(moved)
    ours, theirs = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    train(replace(moved, cache_features=""))  # it changes no result


# ------------------------------------------------------------ never stale
def test_another_picture_under_the_same_name_and_size_and_time_is_seen(data, tmp_path, seen):
    cache = cache_for(tmp_path / "cache")
    cache.fill(pictures(data), 2, False)
    path = pictures(data)[3]
    before, old = cache.of(path)["vision_features"], path.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:10] = 255 - pixels[:10]
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes().ljust(old.st_size, b"\0")[: max(old.st_size, path.stat().st_size)])
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    with pytest.raises(UserError, match=r"3\.png was changed after its features were computed"):
        cache.of(path)
    seen.clear()
    again = cache_for(tmp_path / "cache")
    again.fill(pictures(data), 2, False)
    after = again.of(path)["vision_features"]
    assert seen == [1] and not torch.equal(before, after)
    with torch.no_grad():
        assert torch.equal(after, again.tower(again.processor.image_inputs(path)["pixel_values"]))


def nudge(tower) -> None:
    with torch.no_grad():
        tower.layers[1].mlp.fc2.bias[5] += 1e-6


@pytest.mark.parametrize(
    "change",
    [
        dict(pad=True),
        dict(squash=True),
        dict(mean=(0.5, 0.5, 0.5)),
        dict(std=(0.3, 0.3, 0.31)),
        dict(resample=2),
        dict(dtype="bfloat16"),
        "tower",
        "layer",
        "version",
    ],
    ids=str,
)
def test_another_tower_or_preparation_has_features_of_its_own(data, tmp_path, change, monkeypatch):
    first = cache_for(tmp_path / "cache")
    assert first.folder == cache_for(tmp_path / "cache").folder
    model, processor = weights.load("weights/tiny-stage1", device="cpu", dtype="float32")
    set_trainable(model, 1)
    dtype = "float32"
    if isinstance(change, dict):
        change = dict(change)
        dtype = change.pop("dtype", dtype)
        processor = replace(processor, **change)
    elif change == "tower":
        nudge(model.vision_tower)
    elif change == "layer":
        model.vision_tower.feature_layer = -1
    else:
        monkeypatch.setattr(features, "VERSION", 2)
    assert FeatureCache(tmp_path / "cache", model, processor, dtype).folder != first.folder


# ------------------------------------------------------------ the files
def test_a_killed_computation_goes_on_and_a_torn_shard_is_made_again(data, tmp_path, seen, monkeypatch, capsys):
    monkeypatch.setattr(features, "SHARD_BYTES", 3 * 49 * 192 * 4)  # three pictures a shard
    cache, saved = cache_for(tmp_path / "cache"), features.save_file
    with monkeypatch.context() as patch:

        def die(tensors, path):
            Path(path).write_bytes(b"half")
            if (len(list(cache.folder.glob("*.safetensors")))) == 2:
                raise KeyboardInterrupt
            saved(tensors, path)

        patch.setattr(features, "save_file", die)
        with pytest.raises(KeyboardInterrupt):
            cache.fill(pictures(data), 2, False)
    assert len(list(cache.folder.iterdir())) == 2  # two shards, and nothing half
    assert seen == [3, 3, 3]
    cache_for(tmp_path / "cache").fill(pictures(data), 2, False)
    assert seen == [3, 3, 3, 3]
    first = sorted(cache.folder.iterdir())[0]
    first.write_bytes(first.read_bytes()[:-7])
    again = cache_for(tmp_path / "cache")
    assert f"{first} cannot be read: its features are computed again" in capsys.readouterr().out
    again.fill(pictures(data), 2, False)
    assert seen == [3] * 5 and len(again.shards) == 9
    shutil.rmtree(again.folder)
    with pytest.raises(UserError, match="is damaged: remove it"):
        again.of(pictures(data)[0])


def test_a_disk_without_room_is_told_before_anything_is_written(data, tmp_path, monkeypatch, seen):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage._replace(free=features.SPARE + 8 * 49 * 192 * 4))
    cache = cache_for(tmp_path / "cache")
    with pytest.raises(
        UserError,
        match=r"the features of 9 of 10 pictures take 0\.00 GB, and 1\.07 GB are free: leave out --cache-features",
    ):
        cache.fill(pictures(data), 2, False)
    assert not list(cache.folder.iterdir()) and not seen


def test_a_folder_that_cannot_be_written_is_one_sentence(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--cache-features .*file cannot be a folder"):
        cache_for(tmp_path / "file").fill(pictures(data), 1, False)
    assert (tmp_path / "file").read_text() == "mine"

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    cache = cache_for(tmp_path / "cache")
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        cache.fill(pictures(data), 1, False)
    assert not list(cache.folder.iterdir())


def test_a_broken_picture_stops_or_is_left_out_and_listed(data, tmp_path):
    (Path(data["images"]) / "4.png").write_bytes(b"no picture")
    settings = config(tmp_path / "out", cache_features=str(tmp_path / "cache"), **data)
    with pytest.raises(
        UserError, match=r"4\.png is not a picture that can be read; --skip-broken leaves such records out"
    ):
        train(settings)
    train(replace(settings, skip_broken=True))
    (listed,) = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert json.loads(listed)["image"] == "4.png" and json.loads(listed)["why"].endswith(
        "4.png is not a picture that can be read."
    )
    assert len(losses(tmp_path / "out")) == 3


def test_text_alone_needs_no_features(data, tmp_path):
    records = json.loads(Path(data["data"]).read_text())
    for record in records[::2]:
        del record["image"]
    Path(data["data"]).write_text(json.dumps(records))
    for out, cache in (("a", ""), ("b", str(tmp_path / "cache"))):
        train(config(tmp_path / out, stage=2, cache_features=cache, pack=True, max_steps=2, batch_size=2, **data))
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-6)


def test_what_cannot_be_cached_is_refused(tmp_path):
    model, processor = weights.load("weights/tiny-stage1", device="cpu", dtype="float32")
    with pytest.raises(UserError, match="is for a frozen vision tower, and this one learns"):
        FeatureCache(tmp_path, model, processor, "float32")
    set_trainable(model, 1)
    with pytest.raises(UserError, match="one view a picture"):
        FeatureCache(tmp_path, model, replace(processor, image_grid_pinpoints=((14, 28),)), "float32")
    with pytest.raises(UserError, match="--cache-features needs --data"):
        config(tmp_path, cache_features=str(tmp_path))
