"""What lessons/exercises/e01_patchify.py is tried on."""

import torch
import torch.nn.functional as F

from lessons.trials.base import SEEDS, Case, Property, close, draw, integers, random


def cases():
    def case(B, side, p):
        E = side * p
        pixels = torch.arange(B * 3 * E * E, dtype=torch.float32).view(B, 3, E, E)
        return Case(
            f"{B} pictures of {E} x {E} pixels in patches of {p}", lambda parts: parts.patchify(pixels.clone(), p)
        )

    return [case(1, 2, 2), case(2, 3, 2), case(3, 1, 4), case(1, 4, 3), case(2, 5, 1)]


def properties():
    def back(parts):
        @draw(B=integers(1, 3), side=integers(1, 4), p=integers(1, 4), seed=integers(0, SEEDS))
        def test(B, side, p, seed):
            pixels = random(B, 3, side * p, side * p, seed=seed)
            patches = parts.patchify(pixels.clone(), p)  # (B, P, 3 * p * p)
            assert close(F.fold(patches.transpose(1, 2), side * p, p, stride=p), pixels)

    return [Property("the patches, put back in their places, are the picture", back)]
