"""One layer of the decoder: look at what stands before, then think for yourself; both are added to the residual stream.

    x = x + self_attn(input_layernorm(x), ...)
    x = x + mlp(post_attention_layernorm(x))

`post_attention_layernorm` is the norm before the MLP, whatever its name makes you think. The names are those of the
weights' files, and your class loads the real weights. self_attn takes, after x, what forward was given, in the same
order: cos, sin, layer, cache, start, implementation.

Shapes: x (B, T, C) -> (B, T, C). `config` has hidden_size (C) and rms_norm_eps.

    >>> layer = DecoderLayer(TextConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2))
    >>> layer(torch.zeros(1, 3, 8), torch.ones(3, 4), torch.zeros(3, 4), 0, None, None, "eager").shape, layer.input_layernorm.eps
    (torch.Size([1, 3, 8]), 1e-06)

About 6 lines. Check it: python -m lessons.check decoder_layer
"""

import torch  # noqa: F401
from torch import nn

from minillava.config import TextConfig
from minillava.language_model import MLP, Attention, RMSNorm  # noqa: F401  (Attention(config), MLP(config), RMSNorm(width, eps))

REPLACES = "minillava.language_model.DecoderLayer"


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        raise NotImplementedError(
            "DecoderLayer has to make input_layernorm, self_attn, post_attention_layernorm and mlp"
        )

    def forward(self, x, cos, sin, layer, cache, start, implementation):
        raise NotImplementedError("DecoderLayer.forward has to run the two parts")
