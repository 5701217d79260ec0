"""Measuring: the time of a call, the memory that it takes, and what the machine can do at best."""

import time
from collections.abc import Callable
from contextlib import suppress

import torch


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(device: torch.device) -> str:
    """What the figures are of: the GPU by its name, or how many threads of this CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


# ------------------------------------------------------------ time
def seconds(call: Callable[[], object], device: torch.device, budget: float = 0.5, rounds: int = 5) -> float:
    """The fastest of several rounds of a call, after a warm-up; a round is long enough to tell, and all take about
    `budget` seconds.
    """
    call()
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    once = time.perf_counter() - began
    calls, best = max(1, int(budget / rounds / max(once, 1e-6))), once
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def recorded(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call as one CUDA graph: what it takes then is the GPU's time, without Python's for starting the kernels."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


# ------------------------------------------------------------ memory
def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held on its device, since `forget_peak_memory` if that was called."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/status") as file:  # not getrusage, which remembers the parent's
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def forget_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with (
            suppress(OSError),
            open("/proc/self/clear_refs", "w") as file,
        ):  # where it cannot be written, the peak stays
            file.write("5")


# ------------------------------------------------------------ the machine at best
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, as measured here."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device)


def beyond_any_cache(device: torch.device) -> torch.Tensor:
    return torch.ones(1 << (28 if device.type == "cuda" else 26), device=device)  # 1 GiB, or 256 MiB


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = beyond_any_cache(device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large sum reads."""
    source = beyond_any_cache(device)
    return source.nbytes / seconds(lambda: source.sum(), device)
