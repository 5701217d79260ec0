"""Random weights of an official size: the real names, three shards, and a folder that loads."""

import torch
from conftest import prompt

from minillava import weights
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.model import Llava
from minillava.weights.__main__ import main
from minillava.weights.hf_config import read_config
from minillava.weights.random import SHARD, SIZES, shards, write_folder

SMALL = LlavaConfig(VisionConfig(24, 37, 3, 3, 14, 7), TextConfig(67, 36, 53, 2, 3), image_token_id=61)


def test_the_official_size_is_three_shards():
    with torch.device("meta"):
        tensors = Llava(read_config(SIZES["llava-1.5-7b"])).state_dict()
    groups = shards(tensors, SHARD)
    sizes = [2 * sum(tensor.numel() for tensor in group.values()) for group in groups]
    assert len(groups) == 3 and max(sizes) <= SHARD and sum(sizes) == 2 * 7_063_427_072
    assert [name for group in groups for name in group] == list(tensors)


def test_a_small_one_in_shards_loads_and_is_repeatable(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_folder(SMALL, folder, seed=3, largest=30_000)
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 2
    first, second = (weights.load_model(tmp_path / name, device="cpu", dtype="stored") for name in "ab")
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config == SMALL and first(**prompt()).isfinite().all()


def test_measure_prints_time_and_memory(capsys):
    main(["measure", str(weights.ROOT / "weights" / "tiny")])
    rows = dict(
        line.split(maxsplit=1)
        for line in capsys.readouterr().out.replace("built in", "built").replace("a picture", "picture").splitlines()
    )
    assert set(rows) == {"files", "built", "picture", "text", "resident"} and "8 tokens in and 4 out" in rows["text"]
    assert rows["files"] == f"{(weights.ROOT / 'weights' / 'tiny' / 'model.safetensors').stat().st_size:,} bytes"
