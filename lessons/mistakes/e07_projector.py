"""Known mistakes in lessons/exercises/e07_projector.py."""

import torch.nn.functional as F
from torch import nn

from lessons.mistakes.base import mistake
from minillava import vision


def projector_variant(between=F.gelu, always=False, never=False, last=False, biased=True, residual=False):
    class Projector(nn.Module):
        def __init__(self, config):
            super().__init__()
            width = config.text_config.hidden_size
            self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=biased)
            two = (config.projector_type == "mlp2x_gelu" or always) and not never
            self.linear_2 = nn.Linear(width, width, bias=biased) if two else None

        def forward(self, features):
            x = self.linear_1(features)
            if self.linear_2 is None:
                return x
            y = self.linear_2(between(x))
            y = y + x if residual else y
            return F.gelu(y) if last else y

    return Projector


for sentence, options in {
    "the GELU between the two maps is missing: two linear maps in a row are only one": {"between": lambda x: x},
    "your GELU is the tanh approximation; LLaVA's is the exact one": {
        "between": lambda x: F.gelu(x, approximate="tanh")
    },
    "between the maps stands a ReLU; LLaVA-1.5 has a GELU": {"between": F.relu},
    "between the maps stands the tower's quick GELU; the projector has the exact one": {"between": vision.quick_gelu},
    "a GELU follows the second map, too: the embeddings could hardly be negative": {"last": True},
    "linear_2 is there even when projector_type is linear: then it must be None": {"always": True},
    "linear_2 is never there; with projector_type mlp2x_gelu there are two maps": {"never": True},
    "your maps have no bias; LLaVA's have one": {"biased": False},
    "you add the first map's output to the second's: the projector has no residual path": {"residual": True},
}.items():
    mistake("projector", "Projector", sentence)(projector_variant(**options))
