"""From a name to a folder: the same rules wherever a name is read, and nothing is asked of the network that is here."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import chat
import train
from minillava import load, load_language_model, load_model, load_vision_tower, weights
from minillava.data.instruct.__main__ import main as instruct
from minillava.data.instruct.own_model import OwnModel
from minillava.errors import UserError, run
from minillava.eval import probe, scenes
from minillava.training import TrainConfig
from minillava.training.start import resolved, starting_point
from minillava.weights.__main__ import main as command
from minillava.weights.download import ROOT, SUMS
from minillava.weights.folders import find_folder, name_of

CPU, CAT = dict(device="cpu", dtype="float32"), str(ROOT / "lessons" / "images" / "cat.png")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache, with weights/tiny as some/thing."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--some--thing"
    shutil.copytree(ROOT / "weights" / "tiny", folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def adapter(folder: Path, base: str) -> Path:
    """An adapter that changes nothing."""
    folder.mkdir()
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(1, 256), name.format("B"): torch.zeros(256, 1)}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 1, "lora_alpha": 1}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


# ------------------------------------------------------------ every way in
def test_a_model_of_the_cache_is_found_by_its_name_everywhere(cache, tmp_path, capsys):
    name = "some/thing"
    expected = load_file(cache / "model.safetensors")["language_model.model.norm.weight"].float()
    start, _ = starting_point(resolved(TrainConfig(stage=2, weights=name, out=str(tmp_path / "out"), **CPU)))
    parts, _ = starting_point(TrainConfig(stage=1, vision=name, language=name, out=str(tmp_path / "out"), **CPU))
    for model in (
        load(name, **CPU)[0],
        load_model(name, **CPU),
        load_model(adapter(tmp_path / "adapter", name), **CPU),
        start,
        parts,
    ):
        assert torch.equal(model.language_model.norm.weight, expected)
    assert torch.equal(load_language_model(name, **CPU).norm.weight, expected)
    assert load_vision_tower(name, **CPU).config == start.config.vision_config
    assert OwnModel.from_folder(name).model.config == start.config.text_config
    for arguments in (["show", name], ["measure", name], ["export", name, "--layout", "original", "--out", "{}"]):
        command([argument.format(tmp_path / "exported") for argument in arguments])
    assert chat.main(["--weights", name, "--image", CAT, "Is there a cat?"]) == 0
    assert (
        chat.main(["--weights", str(tmp_path / "exported"), "--vision", name, "--image", CAT, "Is there a cat?"]) == 0
    )
    assert capsys.readouterr().out.endswith("Yes, there is a cat.\nYes, there is a cat.\n")


WAYS = {
    "chat": lambda name: chat.main(["--weights", name, "hi"]),
    "chat --vision": lambda name: chat.main(["--vision", name, "hi"]),
    "train": lambda name: trained("--stage", "2", "--weights", name),
    "train --vision": lambda name: trained("--stage", "1", "--vision", name, "--language", "weights/tiny-language"),
    "train --language": lambda name: trained("--stage", "1", "--vision", "weights/tiny-vision", "--language", name),
    "show": lambda name: command(["show", name]),
    "show --vision": lambda name: command(["show", "weights/tiny", "--vision", name]),
    "measure": lambda name: command(["measure", name]),
    "export": lambda name: command(["export", name, "--layout", "original", "--out", "exported"]),
    "scenes": lambda name: scenes.main(["--scenes", "1", "--weights", name]),
    "scenes --language": lambda name: scenes.main(["--scenes", "1", "--language", name]),
    "probe": lambda name: probe.main(["--weights", name]),
    "probe --vision": lambda name: probe.main(["--vision", name]),
    "instruct": lambda name: instruct(["--source", "scenes", "--limit", "1", "--teacher", name, "--out", "q.json"]),
    "adapter": lambda name: load(adapter(Path("adapter"), name)),
}


def trained(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *arguments, "--out", "out", "--max-steps", "1", "--device", "cpu"])
        train.main()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "There is no weights folder nowhere."),
        ("some/none", "There is no weights folder some/none, and HF_HUB_OFFLINE forbids to fetch it"),
        ("a" * 5000, "There is no weights folder aaa"),
        ("a/" + "b" * 300, "There is no weights folder a/bbb"),
        (CAT, "is a file; give the folder with config.json"),
    ],
    ids=["nowhere", "ORG/NAME", "long", "long ORG/NAME", "a file"],
)
def test_every_way_says_the_same_of_a_name_that_is_nowhere(way, name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(lambda: WAYS[way](name), "program") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


# ------------------------------------------------------------ the rules
def test_the_cache_must_hold_the_tensors(cache):
    assert find_folder("some/thing") == cache
    (cache / "model.safetensors").unlink()  # only its config.json was ever asked for
    with pytest.raises(UserError, match="no weights folder some/thing"):
        find_folder("some/thing")


def test_folders_come_before_downloads_and_these_before_the_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(weights.folders, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(weights.download, "ROOT", tmp_path / "repository")
    downloaded, folder = tmp_path / "repository" / "weights" / "thing", tmp_path / "here" / "some" / "thing"
    downloaded.mkdir(parents=True)
    folder.mkdir(parents=True)
    assert find_folder("some/thing") == cache  # weights/thing may be anything
    (downloaded / SUMS).write_text(f"# some/thing at {COMMIT}\n")
    assert find_folder("some/thing") == downloaded
    monkeypatch.chdir(tmp_path / "here")
    assert find_folder("some/thing") == find_folder(Path("some") / "thing") == folder


def test_a_folder_is_absolute_and_its_name_finds_it_from_everywhere(cache, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    found = [find_folder(name) for name in ("weights/tiny", "some/thing", "mine", "'mine'", Path("mine"))]
    assert found == [ROOT / "weights" / "tiny", cache, *[tmp_path / "mine"] * 3]
    assert [name_of(folder) for folder in found[:3]] == ["weights/tiny", "some/thing", str(tmp_path / "mine")]
    monkeypatch.chdir("/")
    assert [find_folder(name_of(folder)) for folder in found] == found


def test_several_processes_do_not_fetch_at_once(monkeypatch):
    monkeypatch.setattr(weights.folders, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"first run `python -m minillava.weights download some/none`"):
        find_folder("some/none")


def test_a_tower_by_its_path_in_config_json(tmp_path, capsys):
    """The project's own export is read back, and when it was moved as well."""
    out = tmp_path / "exported"
    command(["export", "weights/tiny", "--layout", "original", "--out", str(out)])
    loaded = load_model(out, **CPU)
    moved = out.rename(tmp_path / "moved")
    for model in (load_model(moved, **CPU), load(moved, **CPU)[0], load_model(moved, vision="weights/tiny", **CPU)):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert load_vision_tower(moved, **CPU).config == loaded.config.vision_config
    (moved / "vision_tower").rename(tmp_path / "tower")
    name_tower(moved, str(tmp_path / "tower"))
    assert torch.equal(load_model(moved, **CPU).projector.linear_1.weight, loaded.projector.linear_1.weight)
    for name in ("/data/snapshots/ce19dc912ca5cd21", "..", "/", "weights", "a" * 5000, "a\0b"):
        name_tower(moved, name)
        with pytest.raises(UserError, match=r"--vision|relative"):
            load_model(moved, **CPU)
    assert torch.equal(load_language_model(moved, **CPU).norm.weight, loaded.language_model.norm.weight)


def name_tower(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_tower": name}))


@pytest.mark.parametrize("pickle", ["non_lora_trainables.bin", "adapter_model.bin"])
def test_an_adapter_in_pickles_is_told_before_its_base_is_looked_for(tmp_path, pickle):
    folder = adapter(tmp_path / "llava-v1.5-7b-lora", "lmsys/vicuna-7b-v1.5")
    (folder / pickle).write_bytes(b"PK")
    for path in (folder, str(folder)):
        with pytest.raises(UserError, match=f"{pickle}, a pickle, which is never read"):
            load(path)


def test_an_adapter_beside_a_whole_model(tmp_path):
    """Which of the two is meant cannot be known: transformers takes the adapter and its base."""
    folder = adapter(tmp_path / "both", "weights/tiny")
    for file in ("config.json", "model.safetensors"):
        shutil.copy(ROOT / "weights" / "tiny" / file, folder / file)
    with pytest.raises(UserError, match=r"holds an adapter .* and a whole model"):
        load_model(folder)
