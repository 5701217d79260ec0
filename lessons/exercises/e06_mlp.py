"""The MLP of a LLaMA layer (SwiGLU): one branch decides how much of the other passes.

    y = down_proj(silu(gate_proj(x)) * up_proj(x))         silu(z) = z * sigmoid(z)

Three linear maps without bias, named as in the weights' files, so that your class loads the real weights: `gate_proj`
and `up_proj` from config.hidden_size (C) to config.intermediate_size, `down_proj` back.

Shapes: x (B, T, C) -> (B, T, C).

    >>> mlp = MLP(TextConfig(hidden_size=8, intermediate_size=20, num_attention_heads=2))
    >>> mlp(torch.zeros(1, 3, 8)).abs().sum().item(), mlp.down_proj.weight.shape
    (0.0, torch.Size([8, 20]))

About 5 lines. Check it: python -m lessons.check mlp
"""

import torch  # noqa: F401
from torch import nn

from minillava.config import TextConfig

REPLACES = "minillava.language_model.MLP"


class MLP(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        raise NotImplementedError("MLP has to make gate_proj, up_proj and down_proj")

    def forward(self, x):
        raise NotImplementedError("MLP.forward has to compute down_proj(silu(gate_proj(x)) * up_proj(x))")
