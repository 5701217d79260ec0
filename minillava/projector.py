"""The projector: from the tower's width to the language model's, for each patch by itself.

LLaVA (arXiv 2304.08485, section 4.1) has one linear map; LLaVA-1.5 (arXiv 2310.03744, section 3.2) two, with a GELU
between. (B, P, C_vision) -> (B, P, C).
"""

import torch.nn.functional as F
from torch import nn

from minillava.config import LlavaConfig


class Projector(nn.Module):
    def __init__(self, config: LlavaConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.linear_2 = nn.Linear(width, width) if config.projector_type == "mlp2x_gelu" else None

    def forward(self, features):
        x = self.linear_1(features)  # (B, P, C)
        return x if self.linear_2 is None else self.linear_2(F.gelu(x))
