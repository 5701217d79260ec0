"""Known mistakes in lessons/exercises/e06_mlp.py."""

import torch
import torch.nn.functional as F
from torch import nn

from lessons.mistakes.base import mistake
from minillava import language_model


def mlp_variant(forward, bias=False):
    class MLP(language_model.MLP):
        def __init__(self, config):
            super().__init__(config)
            if bias:
                self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    MLP.forward = forward
    return MLP


for sentence, forward in {
    "silu is on the up branch; it is the gate that is squashed": lambda self, x: self.down_proj(
        self.gate_proj(x) * F.silu(self.up_proj(x))
    ),
    "the branches are added; the gate multiplies": lambda self, x: self.down_proj(
        F.silu(self.gate_proj(x)) + self.up_proj(x)
    ),
    "your gate is a sigmoid; silu(z) is z * sigmoid(z)": lambda self, x: self.down_proj(
        torch.sigmoid(self.gate_proj(x)) * self.up_proj(x)
    ),
    "your gate is a GELU; LLaMA's is silu": lambda self, x: self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x)),
    "your gate is a ReLU; LLaMA's is silu": lambda self, x: self.down_proj(F.relu(self.gate_proj(x)) * self.up_proj(x)),
    "silu runs over the product; it is for the gate alone": lambda self, x: self.down_proj(
        F.silu(self.gate_proj(x) * self.up_proj(x))
    ),
    "up_proj is not used: nothing passes the gate but the gate": lambda self, x: self.down_proj(
        F.silu(self.gate_proj(x))
    ),
    "x is added here already; the layer adds it, and twice is once too often": lambda self, x: (
        x + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
    ),
}.items():
    mistake("mlp", "MLP", sentence)(mlp_variant(forward))


mistake("mlp", "MLP", "down_proj has a bias, but LLaMA's linear maps have none: bias=False")(
    mlp_variant(language_model.MLP.forward, True)
)
