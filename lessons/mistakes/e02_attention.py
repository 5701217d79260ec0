"""Known mistakes in lessons/exercises/e02_attention.py."""

import math

import torch

from lessons.mistakes.base import mistake
from minillava import attention as product_attention


def attention_variant(
    scale=lambda D: math.sqrt(D), axis=-1, share="each", offset=None, masked="before", padding=True, blind="zeros"
):
    """eager_attention, wrong in one place."""

    def eager_attention(q, k, v, *, causal, start=None):
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            repeat = (
                (lambda x: x.repeat_interleave(groups, 1)) if share == "each" else (lambda x: x.repeat(1, groups, 1, 1))
            )
            k, v = repeat(k), repeat(v)
        scores = q @ k.transpose(-2, -1) / scale(q.shape[-1])
        T, S = q.shape[2], k.shape[2]
        mask = product_attention.visible(T, S, causal, start if padding else None, q.device)
        if causal and offset is not None:
            mask = torch.ones(T, S, dtype=torch.bool).tril(offset(T, S))
            if start is not None:
                mask = mask & (torch.arange(S) >= start[:, None])[:, None, None]
        if mask is None:
            return scores.softmax(axis) @ v
        if masked == "before":
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min if blind != "nan" else -math.inf).softmax(
                axis
            )
        else:
            weights = scores.softmax(axis)
        if masked == "after" or (start is not None and blind == "zeros"):
            weights = weights.masked_fill(~mask, 0)
        return weights @ v

    return eager_attention


for sentence, options in {
    "the scores are not divided by sqrt(D): they grow with the width of the head, and softmax becomes a choice of one": {
        "scale": lambda D: 1.0
    },
    "the scores are divided by D; it is the square root of D": {"scale": lambda D: D},
    "your softmax runs over the queries; the weights of one query, over the keys (the last axis), must sum to 1": {
        "axis": -2
    },
    "your mask starts at the first key, but the queries are the LAST T of the S positions: a cached prefix is theirs to see": {
        "offset": lambda T, S: 0
    },
    "your mask is off by one: a query may see itself (the diagonal), not only what stands before it": {
        "offset": lambda T, S: S - T - 1
    },
    "your mask is off by one: a query sees the key after its own, and so the word that it should predict": {
        "offset": lambda T, S: S - T + 1
    },
    "the mask is missing: every query sees every key, what comes later too": {"offset": lambda T, S: S},
    "you mask after the softmax: what is left no longer sums to 1; put a very low score in the place of masked scores before it": {
        "masked": "after"
    },
    "query head h reads key/value head h mod K; the heads are shared in groups, (repeat_interleave, not repeat)": {
        "share": "blocks"
    },
    "you leave out `start`: padding on the left is visible to the words behind it": {"padding": False},
    "a query that may see no key gives NaN, since softmax of nothing but -inf is 0 / 0; it has to give zeros": {
        "blind": "nan"
    },
    "a query that may see no key gives a mean of the padding; it has to give zeros": {"blind": "mean"},
}.items():
    mistake("attention", "eager_attention", sentence)(attention_variant(**options))
