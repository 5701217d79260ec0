"""What lessons/exercises/e11_loss.py is tried on."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from lessons.trials.base import (
    SEEDS,
    Case,
    Property,
    Raises,
    close,
    draw,
    integers,
    random,
)
from minillava.inputs.conversation import IGNORE_INDEX


class SmallLanguageModel:
    """What the loss needs of a language model, small enough to be sure of: a hidden state that knows the start, and a
    linear head.
    """

    def __init__(self, dtype=torch.float32, V: int = 11, C: int = 6):
        self.config, self.dtype, self.weight = SimpleNamespace(hidden_size=C, vocab_size=V), dtype, random(V, C, seed=1)

    def hidden_states(self, inputs_embeds, start=None, cache=None):
        positions = torch.arange(1, inputs_embeds.shape[1] + 1)
        seen = 0.0 if start is None else (positions - start[:, None]).clamp(min=0)[..., None] / 4
        return inputs_embeds + seen * inputs_embeds.sign()  # (B, T, C)

    def logits(self, hidden):
        return F.linear(hidden, self.weight).to(self.dtype)  # (..., V)


def cases():
    def case(name, labels, dtype=torch.float32, start=None, expected=None, tolerance=1e-5, scale=1.0):
        def run(parts):
            target = torch.tensor(labels)
            embeds = random(*target.shape, 6, seed=target.numel(), scale=scale)
            starts = None if start is None else torch.tensor(start)
            return parts.next_token_loss(SmallLanguageModel(dtype), embeds, target, starts), target

        return Case(name, run, expected, tolerance)

    no = IGNORE_INDEX
    return [
        case("one row, all labels targets", [[1, 2, 3, 4]]),
        case("two rows with different numbers of targets", [[no, no, 5, 6, 7], [no, no, no, no, 3]]),
        case("a first label that nothing predicts", [[9, no, 2, no], [8, 1, no, no]]),
        case("rows padded on the left", [[no, no, no, 4, 5], [no, no, 3, 0, 1]], start=[2, 0]),
        case("logits in bfloat16", [[no, 3, 4, 5, 6, 7, 8], [1, 2, no, 4, 5, no, 10]], torch.bfloat16, tolerance=1e-4),
        case("an id 0 among the targets", [[no, 0, 4, 0, no]]),
        case("no target at all", [[no, no, no]], expected=lambda: Raises("ValueError")),
        case(
            "a target only at position 0, which nothing predicts", [[7, no, no]], expected=lambda: Raises("ValueError")
        ),
    ]


def properties():
    def uniform(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            labels = torch.randint(0, 11, (2, T), generator=torch.Generator().manual_seed(seed))
            loss = parts.next_token_loss(SmallLanguageModel(), torch.zeros(2, T, 6), labels)
            assert abs(float(loss) - math.log(11)) < 1e-5

    def last(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            embeds, labels = (
                random(1, T, 6, seed=seed),
                torch.randint(0, 11, (1, T), generator=torch.Generator().manual_seed(seed)),
            )
            changed = embeds.clone()
            changed[:, -1] += 3.0
            model = SmallLanguageModel()
            assert close(parts.next_token_loss(model, changed, labels), parts.next_token_loss(model, embeds, labels))

    return [
        Property("a model that finds all ids equally likely has the loss log(V)", uniform),
        Property("what the model says at the last position is compared with nothing", last),
    ]
