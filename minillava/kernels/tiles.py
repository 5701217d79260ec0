"""The tiles of every kernel: how many queries and keys a program holds at once, its warps, and how many tiles of the loop are loaded ahead.

A larger tile reads less memory for the same arithmetic, but its sums live in registers (255 for each thread, the rest spills to slow memory), and
what is loaded ahead lives in shared memory (163 KB a program on an A100, 99 KB on an RTX 4090, 227 KB on an H100). `python -m
minillava.kernels.report` shows both for each line of the table; no line spills. The sizes were chosen so, and not by timing on a GPU.
"""

import functools

import torch

# kernel: {width of the head: (queries, keys, warps, stages)}. Wider heads need smaller tiles. "half" is float16 and bfloat16.
HALF = {
    "forward": {64: (128, 64, 4, 3), 128: (64, 64, 4, 2), 256: (64, 32, 8, 2)},
    "query_gradient": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 8, 1)},
    "key_value_gradient": {64: (32, 64, 4, 2), 128: (32, 64, 8, 2), 256: (32, 32, 8, 1)},
    "decode": {64: (0, 64, 4, 3), 128: (0, 64, 4, 3), 256: (0, 32, 4, 2)},
}
HOPPER = {  # what differs on an H100 or B200, whose matrix unit takes 64 rows at a time straight from shared memory
    "forward": {128: (128, 64, 8, 3)},
}
FLOAT32 = {  # there are no gradients at 256: even the smallest tiles spill
    "forward": {64: (32, 32, 4, 2), 128: (32, 32, 8, 2), 256: (16, 16, 8, 1)},
    "query_gradient": {64: (32, 32, 4, 2), 128: (16, 32, 4, 1)},
    "key_value_gradient": {64: (16, 32, 4, 2), 128: (16, 16, 4, 1)},
    "decode": {64: (0, 32, 4, 2), 128: (0, 32, 4, 2), 256: (0, 16, 8, 1)},
}


def tile(kernel: str, BLOCK_D: int, dtype: torch.dtype, device: torch.device) -> dict:
    """The tile of a kernel for heads of BLOCK_D, a power of two, on this device."""
    width = max(64, BLOCK_D)
    if dtype == torch.float32:
        sizes = FLOAT32[kernel][width]
    else:
        sizes = HALF[kernel][width]
        if architecture(device) >= 90:
            sizes = HOPPER.get(kernel, {}).get(width, sizes)
    BLOCK_T, BLOCK_S, num_warps, num_stages = sizes
    queries = {"BLOCK_T": BLOCK_T} if BLOCK_T else {}  # decoding has one
    return {**queries, "BLOCK_S": BLOCK_S, "num_warps": num_warps, "num_stages": num_stages}


@functools.lru_cache
def architecture(device: torch.device) -> int:
    """80 for an A100, 89 for an RTX 4090, 90 for an H100; 80 where there is no GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
