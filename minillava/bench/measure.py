"""Measuring: the time of a call, and what the machine can do at best."""

import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, budget: float = 0.5) -> float:
    """The fastest of several rounds of a call, after a warm-up; a round is long enough to tell, and all take about
    `budget` seconds.
    """
    call()
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    once = time.perf_counter() - began
    calls, best = max(1, int(budget / 5 / max(once, 1e-6))), once
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, as measured here."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    # 1 GiB, or 256 MiB, beyond any cache
    source = torch.ones(1 << (28 if device.type == "cuda" else 26), device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds(lambda: target.copy_(source), device)
