"""The projector: from what the vision tower says to what the language model reads, for each patch by itself.

    LLaVA      ("linear"):      y = linear_1(x)
    LLaVA-1.5  ("mlp2x_gelu"):  y = linear_2(gelu(linear_1(x)))          the exact GELU, not its tanh approximation

linear_1 goes from config.vision_config.hidden_size to config.text_config.hidden_size, linear_2 from there to the same
width; both have a bias. `config.projector_type` says which of the two it is. With "linear", linear_2 must be None, or
loading the weights fails.

Shapes: features (B, P, C_vision) -> (B, P, C).

    >>> config = LlavaConfig(VisionConfig(hidden_size=6, num_attention_heads=2), TextConfig(hidden_size=8, num_attention_heads=2))
    >>> Projector(config)(torch.zeros(1, 49, 6)).shape
    torch.Size([1, 49, 8])

About 6 lines. Check it: python -m lessons.check projector
"""

import torch  # noqa: F401
from torch import nn

from minillava.config import LlavaConfig, TextConfig, VisionConfig  # noqa: F401

REPLACES = "minillava.projector.Projector"


class Projector(nn.Module):
    def __init__(self, config: LlavaConfig):
        super().__init__()
        raise NotImplementedError("Projector has to make linear_1 and linear_2")

    def forward(self, features):
        raise NotImplementedError("Projector.forward has to map each patch to the language model's width")
