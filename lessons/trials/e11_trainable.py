"""What lessons/exercises/e11_trainable.py is tried on."""

import torch

from lessons.trials.base import Case, Property, draw, integers, llava_config
from minillava.model import Llava


def small_llava() -> Llava:
    torch.manual_seed(0)
    return Llava(llava_config())


def cases():
    def case(name, stages, before):
        def run(parts):
            model = small_llava()
            model.requires_grad_(before)
            given = [parts.set_trainable(model, stage) for stage in stages]
            return [name for name, p in model.named_parameters() if p.requires_grad], [value is None for value in given]

        return Case(name, run)

    return [
        case("stage 1", (1,), True),
        case("stage 2", (2,), True),
        case("stage 2, when all was frozen before", (2,), False),
        case("stage 1 after stage 2", (2, 1), True),
        case("stage 2 after stage 1", (1, 2), True),
    ]


def properties():
    def any_order(parts):
        @draw(stages=integers(0, 63))
        def test(stages):
            model, order = small_llava(), [1 + (stages >> i & 1) for i in range(6)]
            for stage in order:
                parts.set_trainable(model, stage)
            learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
            assert learning == {"projector"} | ({"language_model"} if order[-1] == 2 else set())

    return [Property("what learns depends on the stage alone, not on the stages before", any_order)]
