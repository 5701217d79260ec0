"""The learning rate of each step: a warm-up, then half a cosine down to zero.

With peak = config.learning_rate, N = config.max_steps and W = max(1, round(N * config.warmup_ratio)) steps of warm-up:

    step < W:   peak * (step + 1) / W                                   so that no step has the rate 0, and step W - 1 has the peak
    otherwise:  peak * 0.5 * (1 + cos(pi * (step - W) / max(1, N - W)))

Steps count from 0. Returns a float.

    >>> config = LoopConfig(learning_rate=1.0, max_steps=10, warmup_ratio=0.2)
    >>> [round(learning_rate(step, config), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]

About 4 lines. Check it: python -m lessons.check schedule
"""

import math  # noqa: F401

from minillava.training.recipes import LoopConfig

REPLACES = "minillava.training.optimizers.learning_rate"


def learning_rate(step: int, config: LoopConfig) -> float:
    raise NotImplementedError("learning_rate has to rise, then fall as half a cosine")
