"""The benchmarks run and print what they promise; their figures are the machine's."""

import re

import pytest
import torch

from minillava.bench import __main__ as bench
from minillava.bench import attention
from minillava.bench.measure import seconds
from minillava.errors import UserError


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
