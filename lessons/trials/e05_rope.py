"""What lessons/exercises/e05_rope.py is tried on."""

import torch

from lessons import specs
from lessons.trials.base import SEEDS, Case, Property, close, draw, frequencies, integers, random


def cases():
    def tables(D, start, end, dtype=torch.float32):
        name = f"the tables of positions {start} to {end - 1}, D = {D}, {str(dtype).removeprefix('torch.')}"
        return Case(name, lambda parts: parts.rope_tables(frequencies(D), start, end, dtype, "cpu"))

    def turn(B, H, T, D, start=0):
        def run(parts):
            x = random(B, H, T, D, seed=D)
            cos, sin = specs.rope_tables(frequencies(D), start, start + T, torch.float32, "cpu")
            return parts.apply_rope(x, cos, sin), x

        return Case(f"{B} x {H} heads of width {D} at positions {start} to {start + T - 1}", run)

    return [
        tables(8, 0, 4),
        turn(1, 1, 3, 8),
        tables(6, 5, 12),
        turn(2, 3, 5, 6, 4),
        turn(1, 2, 1, 10, 30),
        turn(1, 1, 4, 2, 1),
        tables(4, 7, 8),
        tables(8, 290, 300, torch.bfloat16),
    ]


def properties():
    def turned(parts, x, position):
        return parts.apply_rope(
            x, *parts.rope_tables(frequencies(x.shape[-1]), position, position + x.shape[2], torch.float32, "cpu")
        )

    def norm(parts):
        @draw(half=integers(1, 8), position=integers(0, 1000), seed=integers(0, SEEDS))
        def test(half, position, seed):
            x = random(1, 2, 3, 2 * half, seed=seed)
            assert close(turned(parts, x, position).norm(dim=-1), x.norm(dim=-1))

    def relative(parts):
        @draw(
            half=integers(1, 8),
            m=integers(0, 50),
            distance=integers(0, 50),
            shift=integers(0, 100),
            seed=integers(0, SEEDS),
        )
        def test(half, m, distance, shift, seed):
            q, k = random(1, 1, 1, 2 * half, seed=seed), random(1, 1, 1, 2 * half, seed=seed + 1)
            here = (turned(parts, q, m + distance) * turned(parts, k, m)).sum()
            there = (turned(parts, q, m + distance + shift) * turned(parts, k, m + shift)).sum()
            assert close(there, here, 1e-3)

    def still(parts):
        @draw(half=integers(1, 8), seed=integers(0, SEEDS))
        def test(half, seed):
            x = random(1, 2, 1, 2 * half, seed=seed)
            assert close(turned(parts, x, 0), x)

    return [
        Property("turning keeps the length of every vector", norm),
        Property("q . k depends on how far apart the two are, not on where", relative),
        Property("nothing is turned at position 0", still),
    ]
