"""What lessons/exercises/e11_schedule.py is tried on."""

from itertools import pairwise

from lessons.trials.base import Case, Property, draw, integers
from minillava.training.recipes import LoopConfig


def cases():
    def case(peak, steps, warmup):
        config = LoopConfig(learning_rate=peak, max_steps=steps, warmup_ratio=warmup)
        return Case(
            f"{steps} steps, {warmup:g} of them warm-up, peak {peak:g}",
            lambda parts: [parts.learning_rate(step, config) for step in range(steps + 1)],
            tolerance=1e-6,
        )

    settings = [
        (1.0, 10, 0.2),
        (4e-3, 33, 0.1),
        (2.0, 20, 0.0),
        (1.0, 1, 0.03),
        (0.5, 7, 1.0),
        (1.0, 25, 0.5),
        (3.0, 4, 0.75),
    ]
    return [case(*three) for three in settings]


def properties():
    def shape(parts):
        @draw(steps=integers(2, 60), percent=integers(0, 100))
        def test(steps, percent):
            config = LoopConfig(learning_rate=3.0, max_steps=steps, warmup_ratio=percent / 100)
            rates, warmup = (
                [parts.learning_rate(step, config) for step in range(steps)],
                max(1, round(steps * percent / 100)),
            )
            assert all(0 < rate <= 3.0 + 1e-9 for rate in rates) and abs(rates[warmup - 1] - 3.0) < 1e-9
            assert all(a < b for a, b in pairwise(rates[:warmup]))
            assert all(a > b for a, b in pairwise(rates[warmup:]))

    return [Property("the rate is above 0, rises to the peak and falls from there", shape)]
