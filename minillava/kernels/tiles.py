"""The tiles: how many queries and keys a program of a kernel holds at once, its warps, and how many tiles it loads ahead."""

import torch


def tile(kernel, D, dtype, device):
    return dict(BLOCK_T=64, BLOCK_S=64 if D <= 128 else 32, num_warps=4, num_stages=2)
