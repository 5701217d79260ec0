"""RMSNorm: bring every vector to the same size, whatever its size was.

    y = x / sqrt(mean(x^2) + eps) * weight

The mean is over the last axis. Nothing is subtracted, nothing is added. Compute it in float32, go back to x's dtype,
and only then multiply by the weight: the square of 300 is too large for float16.

Shapes: x (..., C), weight (C,), eps a float -> (..., C), in the dtype of x.

    >>> x = torch.tensor([3.0, 4.0])                    # mean of the squares 12.5, its root 3.5355
    >>> rms_norm(x, torch.ones(2), 1e-6)
    tensor([0.8485, 1.1314])

About 3 lines. Check it: python -m lessons.check rms_norm
"""

import torch  # noqa: F401
from torch import Tensor

REPLACES = "minillava.language_model.rms_norm"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise NotImplementedError("rms_norm has to divide x by its root mean square")
