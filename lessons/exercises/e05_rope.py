"""Rotary positions (RoPE): a word's place is an angle by which its queries and keys are turned.

A head of width D is D / 2 pairs of numbers: number i goes with number i + D / 2. At position m, pair i is turned by the
angle a = m * frequencies[i]:

    first  = x[i] cos(a) - x[i + D/2] sin(a)
    second = x[i + D/2] cos(a) + x[i] sin(a)

rope_tables gives cos and sin of all angles, for the positions start ... end - 1. Each row is the D / 2 cosines, and
then the same again, so that row and head have one width. Compute the angles in float32, and cast the tables to `dtype`
last. apply_rope turns queries or keys by them.

Shapes: frequencies (D / 2,) -> cos, sin (T, D), T = end - start; x (B, H, T, D), cos, sin (T, D) -> (B, H, T, D).

    >>> cos, sin = rope_tables(torch.tensor([1.0]), 1, 2, torch.float32, "cpu")       # one pair, at position 1
    >>> apply_rope(torch.tensor([[[[1.0, 0.0]]]]), cos, sin)
    tensor([[[[0.5403, 0.8415]]]])

About 3 lines and 2 lines. Check it: python -m lessons.check rope
"""

import torch
from torch import Tensor

REPLACES = ("minillava.language_model.rope_tables", "minillava.language_model.apply_rope")


def rope_tables(frequencies: Tensor, start: int, end: int, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("rope_tables has to compute cos and sin of position * frequency")


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    raise NotImplementedError("apply_rope has to turn each pair (i, i + D / 2) of x")
