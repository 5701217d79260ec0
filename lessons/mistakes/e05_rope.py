"""Known mistakes in lessons/exercises/e05_rope.py."""

import torch

from lessons.mistakes.base import mistake
from minillava.language_model import apply_rope


@mistake(
    "rope", "apply_rope", "this is the interleaved layout: it pairs i with i + 1; these weights pair i with i + D / 2"
)
def interleaved(x, cos, sin):
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    half = cos.shape[-1] // 2
    return x * cos[..., :half].repeat_interleave(2, -1) + turned * sin[..., :half].repeat_interleave(2, -1)


def rope_variant(turn):
    def apply_rope(x, cos, sin):
        first, second = x.chunk(2, -1)
        return turn(x, first, second, cos, sin)

    return apply_rope


for sentence, turn in {
    "you turn the other way: the minus sign belongs to x[i + D/2] sin, in the first half": lambda x, a, b, cos, sin: (
        x * cos + torch.cat([b, -a], -1) * sin
    ),
    "the minus sign is missing: yours is no rotation, and lengths change": lambda x, a, b, cos, sin: (
        x * cos + torch.cat([b, a], -1) * sin
    ),
    "the halves are not exchanged: the sine must multiply the other number of the pair": lambda x, a, b, cos, sin: (
        x * cos + torch.cat([-a, b], -1) * sin
    ),
    "cos and sin have changed places": lambda x, a, b, cos, sin: x * sin + torch.cat([-b, a], -1) * cos,
    "the cosine alone only shrinks x; the other half of each pair, times the sine, has to be added": lambda x, a, b, cos, sin: (
        x * cos
    ),
    "every head is turned as if it were a position: cos and sin (T, D) belong to the axis of T, not of H": lambda x, a, b, cos, sin: (
        x * cos[: x.shape[1], None] + torch.cat([-b, a], -1) * sin[: x.shape[1], None]
    ),
}.items():
    mistake("rope", "apply_rope", sentence)(rope_variant(turn))


@mistake("rope", "apply_rope", "you change x itself; give back a new tensor")
def in_place(x, cos, sin):
    turned = apply_rope(x, cos, sin)
    x.copy_(turned)
    return x


def tables_variant(
    positions=lambda start, end: torch.arange(start, end), spread=lambda a: torch.cat([a, a], -1), late=True, double=1.0
):
    def rope_tables(frequencies, start, end, dtype, device):
        places = positions(start, end).float()
        if not late:
            places, frequencies = places.to(dtype), frequencies.to(dtype)
        angles = spread(places[:, None] * frequencies * double)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    return rope_tables


for sentence, options in {
    "your positions always begin at 0: with a cache, the next token would stand at the first place again": {
        "positions": lambda start, end: torch.arange(end - start)
    },
    "your positions begin at 1: position 0 must not be turned at all": {
        "positions": lambda start, end: torch.arange(start, end) + 1
    },
    "each angle stands twice in a row in your tables (a a b b); here the D / 2 angles stand in a row, and then again (a b a b)": {
        "spread": lambda a: a.repeat_interleave(2, -1)
    },
    "your tables are only D / 2 wide; both numbers of a pair need the angle, so the row stands there twice": {
        "spread": lambda a: a
    },
    "you compute the angles in the low precision: bfloat16 knows no position 297, so neighbours get the same angle; cast last": {
        "late": False
    },
    "the tables hold one row too many: `end` itself is not in them": {
        "positions": lambda start, end: torch.arange(start, end + 1)
    },
}.items():
    mistake("rope", "rope_tables", sentence)(tables_variant(**options))
