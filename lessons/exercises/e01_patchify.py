"""Cut pictures into patches: the first step from a picture to "words".

A picture of E x E pixels is cut into a grid of patches of p x p pixels. Patch number 0 is at the top left, number 1 to
its right, and so on, row by row: patch r * (E / p) + c holds the rows r p ... r p + p - 1 and the columns c p ... c p +
p - 1. A patch's numbers stand channel by channel (first all red ones, row by row, then the green ones, then the blue
ones).

Shapes: pixel_values (B, 3, E, E), patch_size p -> (B, P, 3 * p * p), where P = (E / p)^2. The tower multiplies the
result by a matrix.

    >>> pixel_values = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    >>> patchify(pixel_values, 2)[0, 1]
    tensor([2., 3., 6., 7., 2., 3., 6., 7., 2., 3., 6., 7.])

About 4 lines, without a loop: view, permute, flatten. Check it: python -m lessons.check patchify
"""

import torch  # noqa: F401
from torch import Tensor

REPLACES = "minillava.vision.patchify"


def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    raise NotImplementedError("patchify has to cut pixel_values into patches")
