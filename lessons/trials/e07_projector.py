"""What lessons/exercises/e07_projector.py is tried on."""

from lessons import specs
from lessons.trials.base import Case, Property, close, draw, filled, integers, llava_config, random, weights_like
from minillava.projector import Projector


def cases():
    def case(kind, B, P, seed):
        def run(parts):
            made = filled(parts.Projector(llava_config(kind)), Projector(llava_config(kind)), seed)
            return made(random(B, P, 6, seed=seed + 3)).detach()

        def expected():
            return specs.projector(weights_like(Projector(llava_config(kind)), seed), random(B, P, 6, seed=seed + 3))

        return Case(f"{kind}, features of {B} x {P} x 6", run, expected)

    return [case("mlp2x_gelu", 1, 4, 0), case("mlp2x_gelu", 3, 5, 1), case("linear", 2, 3, 2)]


def properties():
    def alone(parts):
        @draw(P=integers(2, 6), seed=integers(0, 50))
        def test(P, seed):
            made = filled(parts.Projector(llava_config()), Projector(llava_config()), seed)
            features = random(1, P, 6, seed=seed)
            assert close(made(features).detach()[:, :1], made(features[:, :1]).detach())

    def straight(parts):
        @draw(seed=integers(0, 50))
        def test(seed):
            made = filled(parts.Projector(llava_config("linear")), Projector(llava_config("linear")), seed)
            a, b = random(1, 1, 6, seed=seed), random(1, 1, 6, seed=seed + 1)
            assert close(made((a + b) / 2).detach(), (made(a) + made(b)).detach() / 2)

    return [
        Property("each patch is projected by itself", alone),
        Property("the linear projector maps the middle of two vectors to the middle", straight),
    ]
