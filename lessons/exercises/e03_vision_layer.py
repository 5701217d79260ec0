"""One layer of the vision tower: the patches look at one another, then each thinks for itself.

    x = x + self_attn(layer_norm1(x))
    x = x + mlp(layer_norm2(x))

The norm stands before each part and outside of the residual path ("pre-norm"): what flows through the tower is only
ever added to. The names are those of the weights' files, and your class loads the real weights: `layer_norm1`,
`self_attn`, `layer_norm2`, `mlp`.

Shapes: x (B, 1 + P, C) -> (B, 1 + P, C). `config` has hidden_size (C) and layer_norm_eps. `implementation` is a string
that self_attn wants to have.

    >>> layer = VisionLayer(VisionConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2))
    >>> layer(torch.zeros(1, 5, 8), "eager").shape, layer.layer_norm1.eps
    (torch.Size([1, 5, 8]), 1e-05)

About 6 lines. Check it: python -m lessons.check vision_layer
"""

import torch  # noqa: F401
from torch import nn

from minillava.config import VisionConfig
from minillava.vision import VisionAttention, VisionMLP  # noqa: F401  (VisionAttention(config), VisionMLP(config))

REPLACES = "minillava.vision.VisionLayer"


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        raise NotImplementedError("VisionLayer has to make layer_norm1, self_attn, layer_norm2 and mlp")

    def forward(self, x, implementation):
        raise NotImplementedError("VisionLayer.forward has to run the two parts")
