"""In which types a training holds its numbers.

What learns is held in float32, since bfloat16's three digits would lose most of an update, and so are norms and
embeddings, which are not multiplied as matrices. A frozen matrix is held in the type of the matrix products: in
bfloat16 it is the very matrix that autocast would make of it at each use, in half the memory."""

import torch
from torch import nn

from minillava.lora import LoRALinear


def held_types(module: nn.Module, products: torch.dtype) -> dict[str, torch.dtype]:
    """{parameter's name: type} for matrix products in the type `products`."""
    multiplied = {
        p
        for part in module.modules()
        if isinstance(part, nn.Linear | nn.Conv2d | LoRALinear)
        for p in part.parameters(recurse=False)
    }
    return {
        name: torch.float32 if p.requires_grad or p not in multiplied else products
        for name, p in module.named_parameters()
    }
