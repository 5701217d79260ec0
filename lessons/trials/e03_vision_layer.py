"""What lessons/exercises/e03_vision_layer.py is tried on."""

import torch

from lessons import specs
from lessons.trials.base import SEEDS, Case, Property, close, draw, filled, integers, random, weights_like
from minillava.config import VisionConfig
from minillava.vision import VisionLayer


def vision_config():
    return VisionConfig(hidden_size=12, intermediate_size=20, num_attention_heads=3, layer_norm_eps=0.05)


def cases():
    def case(B, T, seed):
        def run(parts):
            layer = filled(parts.VisionLayer(vision_config()), VisionLayer(vision_config()), seed)
            return layer(random(B, T, 12, seed=seed + 7), "eager").detach()

        def expected():
            return specs.vision_layer(
                weights_like(VisionLayer(vision_config()), seed), random(B, T, 12, seed=seed + 7), 3, 0.05
            )

        return Case(f"x of {B} x {T} x 12", run, expected)

    return [case(1, 3, 0), case(2, 5, 1), case(3, 1, 2)]


def properties():
    def nothing(parts):
        @draw(T=integers(1, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            layer = filled(parts.VisionLayer(vision_config()), VisionLayer(vision_config()), seed % 50)
            with torch.no_grad():
                for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                    linear.weight.zero_()
                    linear.bias.zero_()
            x = random(1, T, 12, seed=seed)
            assert close(layer(x, "eager").detach(), x)

    def order(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            layer = filled(parts.VisionLayer(vision_config()), VisionLayer(vision_config()), seed % 50)
            x, turned = random(1, T, 12, seed=seed), torch.randperm(T, generator=torch.Generator().manual_seed(seed))
            assert close(layer(x[:, turned], "eager").detach(), layer(x, "eager").detach()[:, turned])

    return [
        Property("a layer whose two parts write zeros changes nothing", nothing),
        Property(
            "a layer does not know where a patch is: patches in another order give the same, in that order", order
        ),
    ]
