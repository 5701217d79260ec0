"""Known mistakes in lessons/exercises/e08_sample.py."""

import math

import torch

from lessons.mistakes.base import mistake
from minillava import generation


def sample_variant(
    heat=lambda x, t: x / t,
    greedy=True,
    k=generation.keep_top_k,
    p=generation.keep_top_p,
    order="kp",
    choose=None,
    shift=True,
):
    def sample(logits, temperature=0.0, top_k=0, top_p=1.0, generator=None):
        if temperature == 0:
            return logits.argmax(-1) if greedy is True else greedy(logits)
        logits = logits.double()
        logits = heat(logits - logits.max(-1, keepdim=True).values if shift else logits.float(), temperature)
        for name in order:
            if name == "k" and 0 < top_k < logits.shape[-1]:
                logits = k(logits, top_k)
            if name == "p" and top_p < 1:
                logits = p(logits, top_p)
        if choose:
            return choose(logits, generator)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[..., 0]

    return sample


def top_p_without_crossing(logits, p):
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    drop = ordered.softmax(-1).cumsum(-1) > p
    drop[..., 0] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def top_p_unsorted(logits, p):
    ordered, _ = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    drop = probabilities.cumsum(-1) - probabilities >= p
    drop[..., 0] = False
    return logits.masked_fill(drop, -math.inf)


def top_p_by_height(logits, p):
    probabilities = logits.softmax(-1)
    return logits.masked_fill((probabilities < p) & (probabilities < probabilities.amax(-1, keepdim=True)), -math.inf)


for sentence, options in {
    "you multiply by the temperature; dividing by a high one makes the choices more alike": {
        "heat": lambda x, t: x * t
    },
    "the temperature is not used": {"heat": lambda x, t: x},
    "at temperature 0 nothing is drawn: take the likeliest id": {
        "greedy": lambda x: torch.multinomial(x.float().softmax(-1), 1, generator=torch.Generator().manual_seed(0))[
            ..., 0
        ]
    },
    "top_k is not used": {"k": lambda x, k: x},
    "top_k keeps k + 1 ids": {"k": lambda x, k: generation.keep_top_k(x, min(k + 1, x.shape[-1]))},
    "of ids that tie for place k some are dropped; they all stay": {
        "k": lambda x, k: torch.full_like(x, -math.inf).scatter(-1, x.topk(k).indices, x.topk(k).values)
    },
    "top_p is not used": {"p": lambda x, p: x},
    "top_p drops the id that crosses the line; what is kept has to sum to at least top_p": {
        "p": top_p_without_crossing
    },
    "top_p's mask is in the order of the sorted ids: bring it back to the ids' own order (scatter)": {
        "p": top_p_unsorted
    },
    "top_p is compared with each probability; it is compared with the sum of the likelier ones": {"p": top_p_by_height},
    "top_p cuts before top_k; top_k comes first": {"order": "pk"},
    "you take the likeliest id at every temperature; above 0 it is drawn": {"choose": lambda x, g: x.argmax(-1)},
    "a tiny temperature overflows: subtract the largest logit first, and compute in float64": {"shift": False},
    "you draw from equal chances: multinomial needs the softmax of the logits": {
        "choose": lambda x, g: torch.multinomial((x > -math.inf).double(), 1, generator=g)[..., 0]
    },
    "your ids have the shape (B, 1); (B,) is asked for": {
        "greedy": lambda x: x.argmax(-1, keepdim=True),
        "choose": lambda x, g: torch.multinomial(x.softmax(-1), 1, generator=g),
    },
}.items():
    mistake("sample", "sample", sentence)(sample_variant(**options))
