"""What lessons/exercises/e02_attention.py is tried on."""

import torch

from lessons.trials.base import SEEDS, Case, Property, close, draw, integers, random


def cases():
    def case(name, B, H, K, T, S, D, causal, start=None, scale=1.0):
        def run(parts):
            q, k, v = (
                random(B, H, T, D, seed=1, scale=scale),
                random(B, K, S, D, seed=2, scale=scale),
                random(B, K, S, D, seed=3),
            )
            return parts.eager_attention(q, k, v, causal=causal, start=None if start is None else torch.tensor(start))

        return Case(name, run)

    return [
        case("one head, all keys visible", 1, 1, 1, 3, 3, 4, False),
        case("2 rows, 3 heads, T = 4, S = 5, all keys visible", 2, 3, 3, 4, 5, 6, False),
        case("a prompt that reads itself (causal, T = S = 5)", 2, 2, 2, 5, 5, 3, True),
        case("3 queries after 4 cached positions (causal, T = 3, S = 7)", 1, 2, 2, 3, 7, 8, True),
        case("one query against a cache (T = 1, S = 6)", 1, 2, 2, 1, 6, 5, True),
        case("4 query heads that share 2 key/value heads", 2, 4, 2, 3, 3, 4, True),
        case("rows padded on the left (start = 0, 2, 3)", 3, 2, 1, 5, 5, 4, True, (0, 2, 3)),
        case("one query, rows padded on the left (start = 0, 2)", 2, 2, 2, 1, 4, 4, True, (0, 2)),
        case("scores of several hundred", 1, 2, 2, 4, 4, 4, True, None, 30.0),
    ]


def properties():
    def mean(parts):
        @draw(T=integers(1, 5), extra=integers(0, 3), seed=integers(0, SEEDS))
        def test(T, extra, seed):
            q, k, v = (
                random(1, 2, T, 4, seed=seed),
                random(1, 2, T + extra, 4, seed=seed + 1),
                torch.full((1, 2, T + extra, 4), 7.0),
            )
            assert close(parts.eager_attention(q, k, v, causal=True), torch.full((1, 2, T, 4), 7.0))

    def future(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            q, k, v = (random(1, 2, T, 4, seed=seed + i) for i in range(3))
            before = parts.eager_attention(q, k, v, causal=True)[:, :, :-1]
            k2, v2 = k.clone(), v.clone()
            k2[:, :, -1], v2[:, :, -1] = 5.0, -5.0
            assert close(parts.eager_attention(q, k2, v2, causal=True)[:, :, :-1], before)

    def order(parts):
        @draw(S=integers(1, 6), seed=integers(0, SEEDS))
        def test(S, seed):
            q, k, v = (
                random(1, 1, 3, 4, seed=seed),
                random(1, 1, S, 4, seed=seed + 1),
                random(1, 1, S, 4, seed=seed + 2),
            )
            order = torch.randperm(S, generator=torch.Generator().manual_seed(seed))
            moved = parts.eager_attention(q, k[:, :, order], v[:, :, order], causal=False)
            assert close(moved, parts.eager_attention(q, k, v, causal=False))

    return [
        Property("the weights of a query sum to 1", mean),
        Property("what comes later does not change what came before", future),
        Property("without a mask the order of the keys does not matter", order),
    ]
