"""What lessons/exercises/e03_contrastive.py is tried on."""

import torch

from lessons.trials.base import SEEDS, Case, Property, close, draw, integers, random


def cases():
    def scores(B, P, N, C, scale, bias, size=1.0):
        def run(parts):
            patches, texts = random(B, P, C, seed=B, scale=size), random(N, C, seed=N + 50, scale=3.0)
            return parts.phrase_scores(patches, texts, torch.tensor(scale), torch.tensor(bias))

        return Case(f"scores of {B} pictures of {P} patches and {N} phrases", run)

    def loss(B, N, size):
        def run(parts):
            true = random(B, N, seed=4) > 0.5
            return parts.contrastive_loss(random(B, N, seed=9, scale=size), true)

        return Case(f"the loss of {B} pictures and {N} phrases, scores of about {size:g}", run)

    return [
        scores(1, 2, 1, 3, 1.0, 0.0),
        scores(2, 4, 5, 6, 10.0, -10.0),
        scores(3, 1, 2, 4, 2.0, 0.5, 20.0),
        scores(2, 3, 3, 4, 120.0, -3.0),
        loss(1, 3, 1.0),
        loss(3, 5, 1.0),
        loss(2, 7, 200.0),
    ]


def properties():
    def length(parts):
        @draw(B=integers(1, 3), N=integers(1, 4), seed=integers(0, SEEDS))
        def test(B, N, seed):
            patches, texts, scale, bias = (
                random(B, 3, 5, seed=seed),
                random(N, 5, seed=seed + 1),
                torch.tensor(4.0),
                torch.tensor(-1.0),
            )
            assert close(
                parts.phrase_scores(7 * patches, texts / 3, scale, bias),
                parts.phrase_scores(patches, texts, scale, bias),
            )

    def mirror(parts):
        @draw(B=integers(1, 4), N=integers(1, 5), seed=integers(0, SEEDS))
        def test(B, N, seed):
            scores, true = random(B, N, seed=seed, scale=3.0), random(B, N, seed=seed + 1) > 0
            loss = parts.contrastive_loss(scores, true)
            assert loss >= 0 and close(parts.contrastive_loss(-scores, ~true), loss)

    return [
        Property("the lengths of the vectors do not matter", length),
        Property("the loss is never negative, and yes at a score is no at its opposite", mirror),
    ]
