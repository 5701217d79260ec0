"""What lessons/exercises/e08_sample.py is tried on."""

import torch
from torch import Tensor

from lessons import specs
from lessons.trials.base import SEEDS, Case, Property, draw, integers, random

DRAWS = 3000


def frequencies_of(ids: Tensor, V: int) -> Tensor:
    """How often each id was drawn, of DRAWS: (B, V), with exact zeros for those that never were, and -1 added to those."""
    counts = torch.stack([torch.bincount(row, minlength=V) for row in ids]).double() / DRAWS
    return torch.where(counts == 0, -1.0, counts)


def cases():
    logits = torch.tensor([[0.45, 0.25, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.3, 0.4]]).log()  # (2, V)
    tied = torch.tensor([[0.3, 0.2, 0.2, 0.2, 0.1]]).log()

    def case(name, rows, **options):
        def run(parts):
            many = rows.repeat_interleave(DRAWS, 0)
            ids = parts.sample(many, **options, generator=torch.Generator().manual_seed(5))
            if ids.shape != (len(many),):
                return ids
            return frequencies_of(ids.view(-1, DRAWS), rows.shape[1])

        def expected():
            p = specs.distribution(rows, **{"temperature": 0.0, "top_k": 0, "top_p": 1.0, **options})
            return torch.where(p == 0, -1.0, p)

        return Case(name, run, expected, tolerance=0.04)

    def plain(name, rows, **options):
        return Case(name, lambda parts: parts.sample(rows.clone(), **options))

    def kinds(parts):
        ids = parts.sample(torch.zeros(200, 2), temperature=1.0, top_p=0.5, generator=torch.Generator().manual_seed(5))
        return len(ids.unique())

    return [
        plain("two rows at temperature 0", logits),
        case("temperature 1", logits, temperature=1.0),
        case("temperature 0.5", logits, temperature=0.5),
        case("top_k 2", logits, temperature=1.0, top_k=2),
        case("top_k 1", logits, temperature=1.5, top_k=1),
        case("top_k 2, where three tie for the second place", tied, temperature=1.0, top_k=2),
        case("top_k 9 of 5", logits, temperature=1.0, top_k=9),
        case("top_p 0.6", logits, temperature=1.0, top_p=0.6),
        case("top_p 0.01", logits, temperature=1.0, top_p=0.01),
        Case("two equally likely ids and top_p 0.5, how many of them are drawn", kinds, lambda: 1),
        case("top_k 3 and top_p 0.8 together", logits, temperature=1.0, top_k=3, top_p=0.8),
        case("temperature 2 and top_p 0.7", logits, temperature=2.0, top_p=0.7),
        case("a temperature of 1e-300, whose quotients overflow", logits * 1e10, temperature=1e-300),
        plain("float16 at temperature 0", (logits * 3).half()),
    ]


def properties():
    def allowed(parts):
        @draw(V=integers(2, 12), k=integers(1, 12), seed=integers(0, SEEDS))
        def test(V, k, seed):
            logits = random(3, V, seed=seed, scale=2.0)
            ids = parts.sample(logits.clone(), temperature=1.0, top_k=k, generator=torch.Generator().manual_seed(seed))
            rank = (logits > logits.gather(1, ids[:, None])).sum(1)
            assert ids.dtype == torch.int64 and bool((rank < k).all())

    def nucleus(parts):
        @draw(V=integers(2, 12), percent=integers(1, 99), seed=integers(0, SEEDS))
        def test(V, percent, seed):
            logits = random(3, V, seed=seed, scale=2.0)
            ids = parts.sample(
                logits.clone(), temperature=1.0, top_p=percent / 100, generator=torch.Generator().manual_seed(seed)
            )
            p = specs.distribution(logits, 1.0, 0, percent / 100)
            assert bool((p.gather(1, ids[:, None]) > 0).all())

    def again(parts):
        @draw(seed=integers(0, SEEDS))
        def test(seed):
            logits = random(20, 9, seed=seed)
            first, second = (
                parts.sample(logits.clone(), temperature=1.0, generator=torch.Generator().manual_seed(seed))
                for _ in range(2)
            )
            assert torch.equal(first, second)

    return [
        Property("only the k likeliest are drawn", allowed),
        Property("nothing outside of the top_p is drawn", nucleus),
        Property("a generator with the same seed draws the same", again),
    ]
