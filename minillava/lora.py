"""LoRA: each linear layer W of the language model stays as it is, and a change of low rank is learnt beside it.

LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685), section 4.1; LLaVA-1.5's own recipe has r 128,
alpha 256, dropout 0.05, on every linear layer of the decoder but the head. The change is (alpha / r) B A: A begins at
random and B at zero, so training begins at the model as it was; afterwards the change can be added to W, and costs
nothing.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.distributed import full_tensor
from minillava.language_model import LanguageModel


class LoRALinear(nn.Module):
    """W x + (alpha / r) B A dropout(x), where A and B alone learn. x (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear, r: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        self.scale, self.dropout = alpha / r, dropout
        out_features, in_features = self.weight.shape
        bound = 1 / math.sqrt(in_features)
        self.lora_A = nn.Parameter(
            torch.empty(r, in_features, device=self.weight.device).uniform_(-bound, bound)
        )  # (r, in)
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, device=self.weight.device))  # (out, r)

    def forward(self, x):
        change = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)  # (..., r)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(change, self.lora_B)  # (..., out)

    def merged(self) -> Tensor:
        """W + (alpha / r) B A: the weight (out, in) of one linear layer that does the same."""
        return merge(full_tensor(self.weight), full_tensor(self.lora_A), full_tensor(self.lora_B), self.scale)


@torch.no_grad()
def merge(weight: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
    """weight (out, in) + scale B (out, r) A (r, in), summed in float32, in the type of `weight`."""
    return (weight.float() + scale * (lora_B.float() @ lora_A.float())).to(weight.dtype)  # (out, in)


def add_lora(language_model: LanguageModel, r: int, alpha: float, dropout: float, seed: int) -> None:
    """Freeze the language model and give every linear layer of its decoder a change that learns.

    The head and the embeddings stay as they are.
    """
    language_model.requires_grad_(False)
    torch.manual_seed(seed)
    for layer in language_model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                setattr(part, name, LoRALinear(child, r, alpha, dropout))


def merged_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the same model without LoRA, whose changes are added to the weights, one after the other."""
    adapted = {f"{name}.weight": child for name, child in module.named_modules() if isinstance(child, LoRALinear)}
    for name, tensor in module.state_dict().items():
        if not name.endswith((".lora_A", ".lora_B")):
            yield name, adapted[name].merged() if name in adapted else full_tensor(tensor)
