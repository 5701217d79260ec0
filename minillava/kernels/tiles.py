"""The tiles of every kernel: how many queries and keys a program holds at once, its warps, and how many tiles of the
loop are loaded ahead.

A larger tile reads less memory for the same arithmetic, but its sums live in registers (255 for each thread, the rest
spills to slow memory), and what is loaded ahead lives in shared memory (163 KB a program on an A100, 99 KB on an RTX
4090, 227 KB on an H100). `python -m minillava.kernels.report` shows both for each line of the table; no line spills in its
loop. HOPPER was then chosen by time, on an H200 (README.md); the others have not been timed yet:
`python -m minillava.bench tiles` does it on whichever card it finds.
"""

import functools

import torch

# kernel: {width of the head: (queries, keys, warps, stages)}. Wider heads need smaller tiles; narrower ones than 64
# take its line.
HALF = {  # float16 and bfloat16
    "forward": {64: (128, 32, 4, 3), 128: (64, 64, 4, 2), 256: (64, 32, 8, 2)},
    "query_gradient": {64: (64, 64, 4, 3), 128: (64, 32, 4, 2), 256: (32, 32, 8, 1)},
    "key_value_gradient": {64: (32, 64, 4, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 1)},
    "decode": {64: (1, 64, 4, 3), 128: (1, 64, 4, 3), 256: (1, 32, 4, 2)},
}
FLOAT32 = {  # not at 256, where even the smallest tiles spill
    "forward": {64: (32, 32, 4, 2), 128: (16, 32, 4, 2)},
    "query_gradient": {64: (16, 32, 4, 2), 128: (16, 32, 4, 1)},
    "key_value_gradient": {64: (16, 16, 4, 1), 128: (16, 16, 4, 1)},
    "decode": {64: (1, 32, 8, 2), 128: (1, 32, 4, 2)},
}
# What differs in half precision from this architecture on: an RTX 4090 spills sooner, and the matrix unit of an H100 or
# B200 takes 64 rows at a time straight from shared memory, of which an RTX 5090 (120) has no more than an RTX 4090.
ADA = {"key_value_gradient": {64: (32, 32, 4, 2)}}
HOPPER = {
    "forward": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3)},
    "query_gradient": {64: (64, 32, 4, 2), 128: (128, 64, 8, 3)},
    "key_value_gradient": {64: (64, 64, 4, 3), 128: (32, 64, 4, 2)},
}
BLACKWELL = {
    "forward": {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 4, 2)},
    "key_value_gradient": {128: (32, 64, 8, 1)},
}
LATER = {0: {}, 89: ADA, 90: HOPPER, 100: BLACKWELL, 120: ADA}


def tile(kernel: str, D: int, dtype: torch.dtype, device: torch.device) -> dict:
    """The constants of a kernel for heads of width D on this device. ValueError for heads that are too wide."""
    BLOCK_D = max(16, next_power_of_2(D))  # a tile's sides are powers of two
    widths = (FLOAT32 if dtype == torch.float32 else HALF)[kernel]
    if max(widths) < D:
        raise ValueError(f"there is no kernel for heads of {D} in {dtype}: choose the attention sdpa")
    if dtype != torch.float32:
        widths = widths | LATER[max(first for first in LATER if first <= architecture(device))].get(kernel, {})
    BLOCK_T, BLOCK_S, num_warps, num_stages = widths[max(64, BLOCK_D)]
    sizes = {"BLOCK_S": BLOCK_S} if kernel == "decode" else {"BLOCK_T": BLOCK_T, "BLOCK_S": BLOCK_S}
    return {"D": D, "BLOCK_D": BLOCK_D, **sizes, "num_warps": num_warps, "num_stages": num_stages}


def next_power_of_2(n: int) -> int:
    """triton.next_power_of_2 takes as long as a tenth of a launch, and each launch asks for several."""
    return 1 << (n - 1).bit_length()


@functools.lru_cache
def architecture(device: torch.device) -> int:
    """80 for an A100, 89 for an RTX 4090, 90 for an H100; 80 where there is no GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
