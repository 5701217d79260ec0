"""What lessons/exercises/e04_label_mask.py is tried on."""

import torch

from lessons.trials.base import SEEDS, Case, Property, draw, integers
from minillava.inputs.conversation import IGNORE_INDEX


def cases():
    def case(name, ids, offsets, supervised):
        return Case(name, lambda parts: parts.label_mask(list(ids), list(offsets), list(supervised)))

    no, yes = False, True
    return [
        case("three tokens of which two answer", [7, 8, 9], [(0, 3), (3, 5), (5, 6)], [no, no, no, no, yes, yes]),
        case("a token without characters", [3, 4, 5, 6], [(0, 0), (0, 2), (2, 2), (2, 4)], [no, yes, yes, yes]),
        case(
            "a token that begins before the answer",
            [11, 12, 13],
            [(0, 2), (2, 5), (5, 7)],
            [no, no, no, yes, yes, no, no],
        ),
        case(
            "a token that ends behind the answer", [21, 22, 23], [(0, 1), (1, 4), (4, 6)], [yes, yes, yes, no, no, yes]
        ),
        case("a conversation of no tokens", [], [], []),
        case("two answers", list(range(50, 58)), [(i, i + 1) for i in range(8)], [no, no, yes, yes, no, yes, no, no]),
    ]


def properties():
    def drawn(seed, length):
        widths = torch.randint(0, 4, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        offsets, at = [], 0
        for width in widths:
            offsets.append((at, at + width))
            at += width
        return list(range(100, 100 + length)), offsets, at

    def all_or_nothing(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            ids, offsets, characters = drawn(seed, length)
            assert parts.label_mask(ids, offsets, [False] * characters) == [IGNORE_INDEX] * length
            expected = [i if end > start else IGNORE_INDEX for i, (start, end) in zip(ids, offsets)]
            assert parts.label_mask(ids, offsets, [True] * characters) == expected

    def own(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            ids, offsets, characters = drawn(seed, length)
            labels = parts.label_mask(ids, offsets, [i % 3 == seed % 3 for i in range(characters)])
            assert len(labels) == length and all(
                label in (token_id, IGNORE_INDEX) for label, token_id in zip(labels, ids)
            )

    return [
        Property("where all is an answer every token pays, where nothing is none does", all_or_nothing),
        Property("a label is the token's own id or -100", own),
    ]
