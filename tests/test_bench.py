"""The benchmarks run and print what they promise; their figures are the machine's."""

import importlib.metadata
import json
import re

import pytest
import torch

from minillava.bench import __main__ as bench
from minillava.bench import attention, decode
from minillava.bench.measure import seconds
from minillava.bench.sizes import config_like
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError, run
from minillava.generation import new_cache
from minillava.language_model import LanguageModel
from minillava.model import Llava
from minillava.weights.random import write_folder


def test_seconds_are_those_of_one_call():
    calls = []
    assert 0 < seconds(lambda: calls.append(0), torch.device("cpu"), budget=0.01) < 1e-3
    assert len(calls) > 6


def test_attention_prints_each_implementation(monkeypatch, capsys):
    shapes = [attention.Shape("prompt", 1, 4, 2, 33, 33, 16, True), attention.Shape("token", 1, 4, 2, 1, 40, 16, True)]
    monkeypatch.setattr(attention, "CPU_SHAPES", shapes)
    monkeypatch.setattr(attention, "seconds", lambda call, device: seconds(call, device, budget=0.01))
    monkeypatch.setattr(attention, "matmul_peak", lambda *_: 1e12)
    monkeypatch.setattr(attention, "bandwidth", lambda *_: 1e10)
    attention.main(["--device", "cpu"])
    prompt, token = capsys.readouterr().out.split("\ntoken")
    for name in ("eager", "sdpa"):
        assert re.search(
            rf"  {name} +forward +[\d.]+ ms +[\d.]+ TFLOP/s \( *\d+% of a product\)   backward +[\d.]+ ms", prompt
        )
        assert re.search(rf"  {name} +forward +[\d.]+ ms +\d+ GB/s \( *\d+% of a copy\)", token)


def test_flops_of_a_shape():
    """One query, one key and a head of 3: q k^T is 3 multiplications and 3 additions, and so is the product with v."""
    assert attention.Shape("", 1, 1, 1, 1, 1, 3, False).flops == 12


def test_unknown_benchmark(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", "speed"])
    with pytest.raises(UserError, match=r"say which benchmark: python -m minillava\.bench attention"):
        bench.main()


# ------------------------------------------------------------ tiles
def test_tiles_need_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench", "tiles"])
    assert run(bench.main, "python -m minillava.bench") == 2
    assert capsys.readouterr().err == (
        "python -m minillava.bench: error: tiles are timed on a GPU with CUDA, and PyTorch finds none here\n"
    )


# ------------------------------------------------------------ decode
TINY = LlavaConfig(
    VisionConfig(24, 37, 3, 3, 14, 7), TextConfig(67, 36, 53, 2, 6, 2, max_position_embeddings=128), image_token_id=66
)


def test_decode_prints_each_side_and_one_json_line(monkeypatch, capsys):
    """Beside transformers, on the same files: both choose the same ids, so both made the same number of steps."""
    pytest.importorskip("transformers")
    answers = []
    seen = decode.token_seconds
    monkeypatch.setattr(decode, "config_like", lambda name: TINY)
    monkeypatch.setattr(decode, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(decode, "token_seconds", lambda side, *rest: answers.append(side.name) or seen(side, *rest))
    decode.main(["--tokens", "5", "--rows", "1", "3", "--rounds", "1", "--device", "cpu"])
    *lines, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["like"] == "100m" and found["read_bytes_per_s"] == 1e10
    names = ["minillava, sdpa"] * 2 + [f"transformers {importlib.metadata.version('transformers')}"] * 2
    assert [figures["side"] for figures in found["figures"]] == answers == names
    for figures, rows in zip(found["figures"], (1, 3, 1, 3), strict=True):
        assert figures["rows"] == rows and 0 < figures["token_s"] < 1 and figures["load_s"] > 0
        assert figures["of_the_limit"] == pytest.approx(figures["read_bytes"] / 1e10 / figures["token_s"])
        assert any(line.startswith(figures["side"]) and f"{1e3 * figures['token_s']:.2f} ms" in line for line in lines)


def test_without_transformers_ours_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(decode, "config_like", lambda name: TINY)
    monkeypatch.setattr(decode, "read_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(decode, "theirs", lambda *_: (_ for _ in ()).throw(ImportError("transformers")))
    decode.main(["--tokens", "3", "--rows", "1", "--rounds", "1", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "transformers is not installed" in out and len(json.loads(out.splitlines()[-1])["figures"]) == 1


def test_both_sides_are_timed_over_all_steps(tmp_path):
    pytest.importorskip("transformers")
    write_folder(TINY, tmp_path / "w", seed=0)
    inputs, ids = decode.prompt(TINY, 2, torch.device("cpu")), []
    for side in decode.sides(tmp_path / "w", torch.device("cpu"), "float32"):
        times: list[float] = []
        ids.append(torch.as_tensor(side.answer(side.load(), inputs, 6, times))[:, -6:].tolist())
        assert len(times) == 6 and times == sorted(times)
    assert ids[0] == ids[1]


def test_bytes_of_a_token():
    """All parameters of the language model but the embeddings, of which one row is read; two types of two bytes."""
    with torch.device("meta"):
        model = LanguageModel(TINY.text_config)
    weights = sum(p.numel() for name, p in model.named_parameters() if name != "embed_tokens.weight")
    cache = new_cache(model, 3, 40)
    expected = 4 * weights + cache.keys.nbytes + cache.values.nbytes
    assert decode.bytes_of_a_token(TINY, 3, 40, 4) == expected


@pytest.mark.parametrize("name, parameters", [("100m", 96_080_128), ("1b", 1_145_847_808), ("llava-1.5-7b", 7e9)])
def test_sizes(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in Llava(config_like(name)).parameters()) == pytest.approx(parameters, rel=0.01)
