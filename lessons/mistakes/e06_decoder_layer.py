"""Known mistakes in lessons/exercises/e06_decoder_layer.py."""

from lessons.mistakes.base import FIRST_RESIDUAL, NO_RESIDUAL, NORMED_RESIDUAL, PARALLEL, POST_NORM, mistake
from minillava import language_model


def decoder_variant(forward, eps=None):
    class DecoderLayer(language_model.DecoderLayer):
        def __init__(self, config):
            super().__init__(config)
            if eps is not None:
                self.input_layernorm, self.post_attention_layernorm = (
                    language_model.RMSNorm(config.hidden_size, eps) for _ in range(2)
                )

    if forward:
        DecoderLayer.forward = forward
    return DecoderLayer


def decoder_forward(first, second):
    def forward(self, x, cos, sin, layer, cache, start, implementation):
        def attend(y, layer=layer, start=start):
            return self.self_attn(y, cos, sin, layer, cache, start, implementation)

        middle = first(self, x, attend)
        return second(self, x, middle, attend)

    return forward


def own_first(self, x, attend):
    return x + attend(self.input_layernorm(x))


for sentence, first, second in (
    (
        NO_RESIDUAL,
        lambda self, x, attend: attend(self.input_layernorm(x)),
        lambda self, x, y, attend: self.mlp(self.post_attention_layernorm(y)),
    ),
    (
        POST_NORM,
        lambda self, x, attend: self.input_layernorm(x + attend(x)),
        lambda self, x, y, attend: self.post_attention_layernorm(y + self.mlp(y)),
    ),
    (
        NORMED_RESIDUAL,
        lambda self, x, attend: self.input_layernorm(x) + attend(self.input_layernorm(x)),
        lambda self, x, y, attend: self.post_attention_layernorm(y) + self.mlp(self.post_attention_layernorm(y)),
    ),
    (PARALLEL, own_first, lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(x))),
    (
        "input_layernorm is used twice; the MLP has a norm of its own, post_attention_layernorm",
        own_first,
        lambda self, x, y, attend: y + self.mlp(self.input_layernorm(y)),
    ),
    (
        "the norms have changed places: input_layernorm is before attention, post_attention_layernorm before the MLP",
        lambda self, x, attend: x + attend(self.post_attention_layernorm(x)),
        lambda self, x, y, attend: y + self.mlp(self.input_layernorm(y)),
    ),
    (
        "the norm before the MLP is missing; it is the one with the misleading name, post_attention_layernorm",
        own_first,
        lambda self, x, y, attend: y + self.mlp(y),
    ),
    (
        "the norm before attention is missing",
        lambda self, x, attend: x + attend(x),
        lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(y)),
    ),
    (FIRST_RESIDUAL, own_first, lambda self, x, y, attend: x + self.mlp(self.post_attention_layernorm(y))),
    (
        "every layer writes into the cache of layer 0: pass `layer` on",
        lambda self, x, attend: x + attend(self.input_layernorm(x), layer=0),
        lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(y)),
    ),
    (
        "`start` is not passed on: padding on the left is visible",
        lambda self, x, attend: x + attend(self.input_layernorm(x), start=None),
        lambda self, x, y, attend: y + self.mlp(self.post_attention_layernorm(y)),
    ),
):
    mistake("decoder_layer", "DecoderLayer", sentence)(decoder_variant(decoder_forward(first, second)))


mistake("decoder_layer", "DecoderLayer", "your norms have eps 1e-6 built in; take it from config.rms_norm_eps")(
    decoder_variant(None, 1e-6)
)
