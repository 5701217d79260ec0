"""What lessons/exercises/e04_bpe.py is tried on."""

from itertools import pairwise

import torch

from lessons import specs
from lessons.trials.base import SEEDS, Case, Property, draw, integers

WORDS = ("lower", "abab", "aaaaa", "▁cat", "x", "", "abcabcab", "ababa", "banana")


RANKS = {
    "a few merges": {
        ("l", "o"): 3,
        ("lo", "w"): 1,
        ("e", "r"): 0,
        ("low", "er"): 5,
        ("▁", "c"): 2,
        ("a", "t"): 4,
        ("▁c", "at"): 6,
    },
    "merges that overlap": {
        ("a", "a"): 2,
        ("aa", "a"): 1,
        ("aa", "aa"): 0,
        ("a", "b"): 4,
        ("b", "a"): 3,
        ("ba", "b"): 5,
        ("ab", "ab"): 6,
    },
    "merges that make one another possible": {
        ("a", "b"): 9,
        ("ab", "c"): 0,
        ("c", "ab"): 4,
        ("n", "a"): 2,
        ("a", "na"): 1,
        ("na", "na"): 3,
    },
    "no merges": {},
}


def cases():
    def case(name, ranks):
        def run(parts):
            given = [list(word) for word in WORDS]
            return [parts.merge_pieces(pieces, dict(ranks)) for pieces in given], given

        return Case(name, run)

    return [case(name, ranks) for name, ranks in RANKS.items()]


def properties():
    def drawn(seed, length):
        word = [
            ("a", "b", "c")[i]
            for i in torch.randint(3, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        ]
        pairs = [(x, y) for x in ("a", "b", "c", "ab", "bc", "ca") for y in ("a", "b", "c", "ab")]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed + 1)).tolist()
        return word, {pairs[i]: rank for rank, i in enumerate(order[: seed % len(pairs)])}

    def whole(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            word, ranks = drawn(seed, length)
            assert "".join(parts.merge_pieces(list(word), ranks)) == "".join(word)

    def done(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            word, ranks = drawn(seed, length)
            tokens = parts.merge_pieces(list(word), ranks)
            assert not any(pair in ranks for pair in pairwise(tokens))
            assert tokens == specs.merge_pieces(list(word), ranks)

    return [
        Property("the tokens joined are the word", whole),
        Property("no two neighbours that could be joined are left", done),
    ]
