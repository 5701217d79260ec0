"""The tiles of the attention kernels by time, on the GPU of this machine: for each kernel and shape every tile worth a
try, the fastest first, and at the end the lines for kernels/tiles.py.

A tile is (queries, keys, warps, stages). The forward and the decoding kernel are timed by themselves; the two backward
kernels together, the one with the tile under test beside the best one of the other so far. `python -m
minillava.kernels.report` then says whether a tile fits other cards and spills.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from minillava.arguments import Parser
from minillava.bench.attention import CUDA_SHAPES, Shape, random_qkv
from minillava.bench.measure import name_of
from minillava.errors import UserError
from minillava.weights import DTYPES

Tile = tuple[int, int, int, int]
TOKENS, PROMPTS = ([shape for shape in CUDA_SHAPES if (shape.T == 1) == one] for one in (True, False))
SHAPES = {"forward": PROMPTS, "decode": TOKENS, "query_gradient": PROMPTS, "key_value_gradient": PROMPTS}
CANDIDATES = {
    "forward": [
        (queries, keys, warps, stages)
        for queries, warps in ((64, 4), (128, 4), (128, 8))
        for keys in (32, 64, 128)
        for stages in (2, 3)
    ],
    "query_gradient": [
        (queries, keys, warps, stages)
        for queries, warps in ((64, 4), (128, 4), (128, 8))
        for keys in (32, 64)
        for stages in (2, 3)
    ],
    "key_value_gradient": [
        (queries, keys, warps, stages)
        for keys, warps in ((64, 4), (64, 8), (128, 4), (128, 8))
        for queries in (32, 64)
        for stages in (2, 3)
    ],
    "decode": [(1, keys, warps, stages) for keys in (32, 64, 128) for warps in (4, 8) for stages in (2, 3, 4)],
}


def gpu_milliseconds(call: Callable) -> float:
    """The median time of a call on the GPU, its caches empty."""
    from triton.testing import do_bench

    return do_bench(call, warmup=10, rep=40, return_mode="median")


# ------------------------------------------------------------ the sweep
def sweep(
    device: torch.device,
    dtype: torch.dtype,
    shapes: dict[str, list[Shape]] = SHAPES,
    candidates: dict[str, list[Tile]] = CANDIDATES,
    milliseconds: Callable[[Callable], float] = gpu_milliseconds,
) -> dict[str, dict[int, Tile]]:
    """{kernel: {width: the best tile}}; a line is printed for each kernel and shape."""
    best: dict[str, dict[int, Tile]] = {}
    for kernel in shapes:
        for D in sorted({shape.D for shape in shapes[kernel]}):
            now = present(kernel, D, dtype, device)
            tiles, share = list(dict.fromkeys([now, *candidates[kernel]])), {}
            for shape in (shape for shape in shapes[kernel] if shape.D == D):
                call = call_of(kernel, shape, device, dtype)
                times = {tile: time_of(call, best, kernel, D, tile, milliseconds) for tile in tiles}
                print(line(kernel, shape, now, times), flush=True)
                share[shape] = {tile: time / min(times.values()) for tile, time in times.items()}
            chosen = min(tiles, key=lambda tile: sum(times[tile] for times in share.values()))  # over all shapes
            best.setdefault(kernel, {})[D] = chosen
    return best


def present(kernel: str, D: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """The tile that kernels/tiles.py has for this card."""
    from minillava.kernels import flash_attention

    found = flash_attention.tile(kernel, D, dtype, device)
    return (found.get("BLOCK_T", 1), found["BLOCK_S"], found["num_warps"], found["num_stages"])


def call_of(kernel: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> Callable:
    from minillava.kernels import flash_attention, flash_decoding

    q, k, v = random_qkv(shape, device, dtype)
    if kernel == "decode":
        return lambda: flash_decoding.flash_decoding(q, k, v)
    if kernel == "forward":
        return lambda: flash_attention.forward(q, k, v, None, shape.causal)
    out, lse = flash_attention.forward(q, k, v, None, shape.causal)
    grad = torch.randn_like(out)
    return lambda: flash_attention.backward(q, k, v, None, out, lse, grad, shape.causal)


def time_of(call: Callable, best: dict, kernel: str, D: int, tile: Tile, milliseconds: Callable) -> float:
    """Of the call with this tile; infinite where the tile does not fit the card or cannot be compiled."""
    with forced({**best, kernel: {**best.get(kernel, {}), D: tile}}):
        try:
            return milliseconds(call)
        except Exception:  # Triton has an error of its own for each thing that a card may lack
            return float("inf")


@contextmanager
def forced(chosen: dict[str, dict[int, Tile]]) -> Iterator[None]:
    """The kernels take these tiles where there is one, and their own elsewhere."""
    from minillava.kernels import flash_attention, flash_decoding

    own = flash_attention.tile

    def tile(kernel: str, D: int, dtype: torch.dtype, device: torch.device) -> dict:
        found = own(kernel, D, dtype, device)
        if D in chosen.get(kernel, {}):
            sizes = zip(("BLOCK_T", "BLOCK_S", "num_warps", "num_stages"), chosen[kernel][D], strict=True)
            found |= {name: value for name, value in sizes if name in found}
        return found

    flash_attention.tile = flash_decoding.tile = tile
    try:
        yield
    finally:
        flash_attention.tile = flash_decoding.tile = own


# ------------------------------------------------------------ the table
def line(kernel: str, shape: Shape, now: Tile, times: dict[Tile, float]) -> str:
    """| kernel | shape | the present tile and its time | the five fastest |"""
    fastest = sorted(times, key=times.get)[:5]
    cells = [show(tile, times) for tile in (now, *fastest)]
    return f"| {kernel} | {shape.name}, head {shape.D} | {cells[0]} | {', '.join(cells[1:])} |"


def show(tile: Tile, times: dict[Tile, float]) -> str:
    return f"{'-'.join(map(str, tile))} {times[tile]:.3f}"


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m minillava.bench tiles", description=__doc__)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    dtype = DTYPES[parser.parse_args(arguments).dtype]
    if not torch.cuda.is_available():
        raise UserError("tiles are timed on a GPU with CUDA, and PyTorch finds none here")
    import triton

    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    print(f"{name_of(device)} (sm_{major}{minor}), {dtype}, torch {torch.__version__}, triton {triton.__version__}\n")
    print("| kernel | shape | now (queries-keys-warps-stages, ms) | the fastest |\n|---|---|---|---|")
    best = sweep(device, dtype)
    print(f"\nfor kernels/tiles.py, from {10 * major + minor} on:")
    for kernel, widths in best.items():
        print(f'    "{kernel}": {widths},')
