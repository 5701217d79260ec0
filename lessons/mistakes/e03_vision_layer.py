"""Known mistakes in lessons/exercises/e03_vision_layer.py."""

from torch import nn

from lessons.mistakes.base import FIRST_RESIDUAL, NO_RESIDUAL, NORMED_RESIDUAL, PARALLEL, POST_NORM, mistake
from minillava import vision


def vision_layer_variant(forward, eps=None):
    class VisionLayer(vision.VisionLayer):
        def __init__(self, config):
            super().__init__(config)
            if eps is not None:
                self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(config.hidden_size, eps) for _ in range(2))

    if forward:
        VisionLayer.forward = forward
    return VisionLayer


def vision_no_residual(self, x, implementation):
    x = self.self_attn(self.layer_norm1(x), implementation)
    return self.mlp(self.layer_norm2(x))


def vision_post_norm(self, x, implementation):
    x = self.layer_norm1(x + self.self_attn(x, implementation))
    return self.layer_norm2(x + self.mlp(x))


def vision_residual_of_normed(self, x, implementation):
    x = self.layer_norm1(x)
    x = x + self.self_attn(x, implementation)
    x = self.layer_norm2(x)
    return x + self.mlp(x)


def vision_parallel(self, x, implementation):
    return x + self.self_attn(self.layer_norm1(x), implementation) + self.mlp(self.layer_norm2(x))


def vision_one_norm(self, x, implementation):
    x = x + self.self_attn(self.layer_norm1(x), implementation)
    return x + self.mlp(self.layer_norm1(x))


def vision_mlp_first(self, x, implementation):
    x = x + self.mlp(self.layer_norm2(x))
    return x + self.self_attn(self.layer_norm1(x), implementation)


def vision_last_residual(self, x, implementation):
    first = x + self.self_attn(self.layer_norm1(x), implementation)
    return x + self.mlp(self.layer_norm2(first))


for sentence, forward in {
    NO_RESIDUAL: vision_no_residual,
    POST_NORM: vision_post_norm,
    NORMED_RESIDUAL: vision_residual_of_normed,
    PARALLEL: vision_parallel,
    "layer_norm1 is used twice; the MLP has a norm of its own, layer_norm2": vision_one_norm,
    "the MLP runs before attention; the patches look at one another first": vision_mlp_first,
    FIRST_RESIDUAL: vision_last_residual,
}.items():
    mistake("vision_layer", "VisionLayer", sentence)(vision_layer_variant(forward))


mistake("vision_layer", "VisionLayer", "your norms have eps 1e-5 built in; take it from config.layer_norm_eps")(
    vision_layer_variant(None, 1e-5)
)
