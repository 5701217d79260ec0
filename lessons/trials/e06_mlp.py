"""What lessons/exercises/e06_mlp.py is tried on."""

import torch

from lessons import specs
from lessons.trials.base import Case, Property, close, draw, filled, integers, random, text_config, weights_like
from minillava.language_model import MLP


def cases():
    def case(B, T, seed, scale=1.0):
        def run(parts):
            mlp = filled(parts.MLP(text_config()), MLP(text_config()), seed)
            return mlp(random(B, T, 12, seed=seed + 3, scale=scale)).detach()

        def expected():
            return specs.mlp(weights_like(MLP(text_config()), seed), random(B, T, 12, seed=seed + 3, scale=scale))

        return Case(f"x of {B} x {T} x 12", run, expected)

    return [case(1, 2, 0), case(2, 3, 1), case(3, 1, 2, 5.0)]


def properties():
    def zero(parts):
        @draw(T=integers(1, 5), seed=integers(0, 50))
        def test(T, seed):
            mlp = filled(parts.MLP(text_config()), MLP(text_config()), seed)
            assert close(mlp(torch.zeros(1, T, 12)).detach(), torch.zeros(1, T, 12))

    def alone(parts):
        @draw(T=integers(2, 5), seed=integers(0, 50))
        def test(T, seed):
            mlp = filled(parts.MLP(text_config()), MLP(text_config()), seed)
            x = random(1, T, 12, seed=seed)
            assert close(mlp(x).detach()[:, :1], mlp(x[:, :1]).detach())

    return [Property("nothing in, nothing out", zero), Property("each position is computed by itself", alone)]
