"""Checkpoints: whole or absent, checked, the last ones kept, and a run that goes on to the bit whenever it was killed."""

import random
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import forked
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minillava.data.scene_records import records
from minillava.errors import UserError
from minillava.training import TrainConfig, checkpoint, train
from minillava.training.checkpoint import load_checkpoint, newest_whole, save_checkpoint


def run_of(value: float):
    """(parameters, optimizers) after one step."""
    parameter = torch.nn.Parameter(torch.full((5, 3), value))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(5, 3)
    optimizer.step()
    return {"w": parameter}, [optimizer]


def saved(folder, steps=(1, 2, 3)):
    for step in steps:
        save_checkpoint(folder, *run_of(float(step)), step, {"seed": 1})


def steps_in(folder) -> list[str]:
    found = [path for age in (0, 1) for path in checkpoint.places(folder, age) if path.exists()]
    return [checkpoint.read_checkpoint(path)[0]["step"] for path in found]


def test_the_last_two_are_kept(tmp_path):
    for step, kept in ((1, ["1"]), (2, ["2", "1"]), (3, ["3", "2"])):
        saved(tmp_path, [step])
        assert steps_in(tmp_path) == kept and len(list(tmp_path.iterdir())) == len(kept)


def test_what_comes_back_is_what_was_saved(tmp_path):
    saved(tmp_path)
    (parameters, optimizers), (fresh, fresh_optimizers) = run_of(3.0), run_of(0.0)
    assert load_checkpoint(tmp_path, fresh, fresh_optimizers, {"seed": 1}) == 3
    assert torch.equal(fresh["w"], parameters["w"])
    for key, value in optimizers[0].state[parameters["w"]].items():
        assert torch.equal(fresh_optimizers[0].state[fresh["w"]][key], value)


def torn(path):
    path.write_bytes(path.read_bytes()[:-9])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [torn, flipped, empty])
def test_a_damaged_one_is_noticed_and_the_one_before_it_used(tmp_path, damage, capsys):
    saved(tmp_path)
    damage(tmp_path / checkpoint.FILE)
    assert newest_whole(tmp_path)[1]["step"] == "2"
    assert (
        capsys.readouterr().err
        == f"note: {tmp_path / checkpoint.FILE} is damaged; going on from the one before it, of step 2.\n"
    )
    damage(checkpoint.places(tmp_path, 1)[0])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors cannot be read"):
        newest_whole(tmp_path)


def test_killed_between_two_names(tmp_path, capsys):
    """The newest has become the one before, and the new one has no name yet: it is used, and kept until a new one is."""
    saved(tmp_path)
    checkpoint.make_way(tmp_path)
    assert newest_whole(tmp_path)[1]["step"] == "3" and capsys.readouterr().err == ""
    saved(tmp_path, [4])
    assert steps_in(tmp_path) == ["4", "3"]


@pytest.mark.parametrize("name", ["step", "settings", "sha256"])
def test_one_bit_of_the_metadata_is_noticed(tmp_path, name):
    saved(tmp_path)
    path = tmp_path / checkpoint.FILE
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    for changed in ({**metadata, name: chr(ord(metadata[name][0]) ^ 1) + metadata[name][1:]}, {**metadata, "more": ""}):
        save_file(load_file(path), path, changed)
        assert newest_whole(tmp_path)[1]["step"] == "2"
    save_file(load_file(path), path, {key: value for key, value in metadata.items() if key != name})
    assert newest_whole(tmp_path)[1]["step"] == "2"


def test_another_programs_file_under_its_name_is_no_checkpoint(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / checkpoint.FILE)
    with pytest.raises(UserError, match=r"checkpoint\.safetensors cannot be read"):
        newest_whole(tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    saved(tmp_path, [1])
    before = (tmp_path / checkpoint.FILE).read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(100, 90, 10))
    with pytest.raises(
        UserError, match=r"step 9 needs 0 MB and .* has 0 MB left: make room, and the same command with --resume"
    ):
        saved(tmp_path, steps=[9])
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE] and (
        tmp_path / checkpoint.FILE
    ).read_bytes() == before


def test_a_disk_that_fills_while_it_is_written(tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    saved(tmp_path)
    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(UserError, match=r"could not be written to .*No space left on device.*: make room"):
        saved(tmp_path, steps=[9])
    assert len(list(tmp_path.iterdir())) == 2 and newest_whole(tmp_path)[1]["step"] == "3"


# ------------------------------------------------------------ killed at any moment
def test_killed_at_any_moment_it_goes_on_to_the_bit(tmp_path):
    """kill -9 at two random moments, saving or not, with packing, micro-batches and another number of workers each
    time.
    """
    records(6, tmp_path / "data")
    data = dict(data=str(tmp_path / "data" / "conversations.json"), images=str(tmp_path / "data"))
    few = dict(max_steps=8, batch_size=2, micro_batch_size=1, save_every=2, pack=True)
    options = dict(stage=1, learning_rate=1e-3, dtype="float32", device="cpu", **data, **few)
    train(TrainConfig(out=str(tmp_path / "whole"), **options))
    moments, folder = random.Random(0), tmp_path / "killed"
    newest = lambda: (folder / checkpoint.FILE).stat().st_mtime_ns if (folder / checkpoint.FILE).exists() else None
    for workers in (0, 1):
        process = forked(train, TrainConfig(out=str(folder), workers=workers, resume=workers == 1, **options))
        begun, seen = time.monotonic(), newest()
        while newest() in (None, seen):
            assert process.is_alive() and time.monotonic() - begun < 120
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        process.kill()
        process.join()
    train(TrainConfig(out=str(folder), resume=True, **options))
    for name in (checkpoint.FILE, "model.safetensors"):
        whole, killed = load_file(tmp_path / "whole" / name), load_file(folder / name)
        assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)
