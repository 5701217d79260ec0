"""In which types a training computes and holds its numbers.

What learns is held in float32, since bfloat16's three digits would lose most of an update, and so are norms and
embeddings, which are not multiplied as matrices. A frozen matrix is held in the type of the matrix products: in
bfloat16 it is the very matrix that autocast would make of it at each use, in half the memory.
"""

import torch
from torch import Tensor, nn

from minillava.lora import LoRALinear
from minillava.weights.loading import has_bfloat16


def product_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """In what matrix products are computed: "auto" is bfloat16 where the machine has instructions for it."""
    if dtype == "auto":
        fast = has_bfloat16(device)
        dtype = "bfloat16" if fast else "float32"
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def autocast(dtype: str, device: torch.device, **options):
    """Matrix products in bfloat16 where that is asked for or faster; weights, norms and the loss stay in float32."""
    return torch.autocast(
        device.type, torch.bfloat16, enabled=product_dtype(dtype, device) == torch.bfloat16, **options
    )


def held_types(module: nn.Module, products: torch.dtype) -> dict[str, torch.dtype]:
    """{parameter's name: type} in which a training holds its numbers, for matrix products in the type `products`."""
    multiplied: set[Tensor] = set()
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | LoRALinear):
            multiplied.update(part.parameters(recurse=False))
    return {
        name: torch.float32 if p.requires_grad or p not in multiplied else products
        for name, p in module.named_parameters()
    }
