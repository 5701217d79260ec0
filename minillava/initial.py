"""The random numbers that a new model's embeddings begin with."""

import torch
from torch import Tensor


def normal(*shape: int, std: float) -> Tensor:
    """Normal numbers of mean 0; on the meta device a tensor without numbers, since drawing them there imports sympy, a second at each start."""
    numbers = torch.empty(*shape)
    return numbers if numbers.is_meta else torch.randn(*shape).mul_(std)
