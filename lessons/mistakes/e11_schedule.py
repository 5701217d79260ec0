"""Known mistakes in lessons/exercises/e11_schedule.py."""

import math

from lessons.mistakes.base import mistake


def schedule_variant(
    rise=lambda step, W: (step + 1) / W,
    fall=lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    whole=False,
    least=1,
    warm=None,
):
    def learning_rate(step, config):
        W = max(least, round(config.max_steps * config.warmup_ratio)) if warm is None else warm(config)
        if step < W:
            return config.learning_rate * rise(step, W)
        return config.learning_rate * fall(
            step / config.max_steps if whole else (step - W) / max(1, config.max_steps - W)
        )

    return learning_rate


for sentence, options in {
    "the first step has the rate 0 and learns nothing: it is (step + 1) / W": {"rise": lambda step, W: step / W},
    "the warm-up is missing: the rate has its peak from the first step on": {"rise": lambda step, W: 1.0},
    "the rate falls as a straight line; it is half a cosine": {"fall": lambda share: 1 - share},
    "the rate stays at its peak after the warm-up; it falls as half a cosine": {"fall": lambda share: 1.0},
    "the 0.5 is missing: the rate jumps to twice its peak after the warm-up": {
        "fall": lambda share: 1 + math.cos(math.pi * share)
    },
    "that is a whole cosine: the rate comes back up at the end; the angle goes to pi, not to 2 pi": {
        "fall": lambda share: 0.5 * (1 + math.cos(2 * math.pi * share))
    },
    "that is a quarter of a cosine: cos goes from 1 to -1, and 1 + cos from 2 to 0": {
        "fall": lambda share: math.cos(math.pi * share / 2)
    },
    "the cosine begins at step 0; it begins where the warm-up ends, or the rate jumps there": {"whole": True},
    "the sign is wrong: after the warm-up the rate begins at 0 and rises": {
        "fall": lambda share: 0.5 * (1 - math.cos(math.pi * share))
    },
    "the warm-up may be 0 steps in yours; it has at least one": {
        "least": 0,
        "fall": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    },
    "warmup_ratio is a share of the steps, not a number of steps": {
        "warm": lambda config: max(1, round(config.warmup_ratio))
    },
}.items():
    mistake("schedule", "learning_rate", sentence)(schedule_variant(**options))
