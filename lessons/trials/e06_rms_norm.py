"""What lessons/exercises/e06_rms_norm.py is tried on."""

import torch

from lessons.trials.base import SEEDS, Case, Property, close, draw, integers, random


def cases():
    def case(*shape, eps=1e-6, dtype=torch.float32, scale=1.0):
        def run(parts):
            x = random(*shape, seed=len(shape), dtype=dtype, scale=scale)
            return parts.rms_norm(x, (random(shape[-1], seed=5) + 2).to(dtype), eps), x

        size = " x ".join(map(str, shape))
        return Case(f"x of {size}, {str(dtype).removeprefix('torch.')}, eps {eps:g}, numbers of about {scale:g}", run)

    return [
        case(2, 4),
        case(2, 3, 7),
        case(5),
        case(2, 3, 6, eps=0.5),
        case(1, 2, 3, 5, eps=1e-6, scale=1e-3),
        case(3, 8, dtype=torch.float16, scale=300.0),
        case(40, 33, dtype=torch.bfloat16),
    ]


def properties():
    def size(parts):
        @draw(width=integers(1, 16), seed=integers(0, SEEDS))
        def test(width, seed):
            x = random(3, width, seed=seed) + 1.5
            y = parts.rms_norm(x, torch.ones(width), 0.0)
            assert close(y.pow(2).mean(-1), torch.ones(3), 1e-3)

    def scale(parts):
        @draw(width=integers(1, 16), factor=integers(2, 1000), seed=integers(0, SEEDS))
        def test(width, factor, seed):
            x, weight = random(2, width, seed=seed) + 1.5, random(width, seed=seed + 1)
            assert close(parts.rms_norm(factor * x, weight, 0.0), parts.rms_norm(x, weight, 0.0))

    return [
        Property("with a weight of ones the mean square becomes 1", size),
        Property("a vector and a thousand times the vector give the same", scale),
    ]
