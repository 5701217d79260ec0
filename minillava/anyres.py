"""LLaVA-NeXT's "anyres": a large picture seen twice, whole and small, and in full size, tile by tile.

LLaVA-1.6 (January 2024). The picture is fitted into the best of a few allowed sizes (the grid pinpoints), letterboxed with black and cut into
S x S tiles; in front of them goes the whole picture squashed to S x S. Each of these V views passes the tower and the projector alone. The
tiles' features are then laid out as they lie in the picture, the letterbox's are cut away, and a learnt `image_newline` ends every row.
Picture -> views (V, 3, S, S) -> features (V, P, C) -> rows (R, C), where R depends on the picture's shape.
"""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How one picture is cut: `rows` x `columns` tiles of `side` x `side` patches; `top` rows and `left` columns at either end are letterbox."""

    rows: int
    columns: int
    side: int
    top: int
    left: int

    @property
    def height(self) -> int:
        return self.rows * self.side - 2 * self.top

    @property
    def width(self) -> int:
        return self.columns * self.side - 2 * self.left

    @property
    def views(self) -> int:
        return 1 + self.rows * self.columns

    @property
    def tokens(self) -> int:
        """R: the small whole, then every row of patches and its newline."""
        return self.side**2 + self.height * (self.width + 1)

    @classmethod
    def of(cls, size: tuple[int, int], pinpoints, image_size: int, patch_size: int) -> "Tiling":
        """For a picture of `size` (width, height); `pinpoints` are (height, width), as in the files."""
        (width, height), side = size, image_size // patch_size
        full_height, full_width = best_pinpoint(size, pinpoints)
        rows, columns = full_height // image_size, full_width // image_size
        if width / height > columns / rows:  # rounded as the original rounds: a hair below a whole number counts as that number
            return cls(rows, columns, side, top=(rows * side - int(round(height * (columns * side / width), 7))) // 2, left=0)
        return cls(rows, columns, side, top=0, left=(columns * side - int(round(width * (rows * side / height), 7))) // 2)


def best_pinpoint(size: tuple[int, int], pinpoints) -> tuple[int, int]:
    """The (height, width) that keeps most of the picture's pixels, and of those the one that wastes least."""
    width, height = size

    def worth(pinpoint) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return tuple(max(pinpoints, key=worth))


def views(picture: Image.Image, pinpoints, image_size: int) -> list[Image.Image]:
    """The picture squashed to S x S, and its tiles row by row."""
    height, width = best_pinpoint(picture.size, pinpoints)
    across, down = width / picture.width, height / picture.height
    fitted = (width, min(math.ceil(picture.height * across), height)) if across < down else (min(math.ceil(picture.width * down), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(picture.resize(fitted, Image.Resampling.BICUBIC), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    corners = [(x, y) for y in range(0, height, image_size) for x in range(0, width, image_size)]
    tiles = [canvas.crop((x, y, x + image_size, y + image_size)) for x, y in corners]
    return [picture.resize((image_size, image_size), Image.Resampling.BICUBIC), *tiles]


def arrange(features: Tensor, tiling: Tiling, newline: Tensor) -> Tensor:
    """One picture's features (V, P, C), the whole first, and `image_newline` (C,) -> (R, C), as they are read."""
    whole, tiles = features[0], features[1:]
    C, (rows, columns, side) = features.shape[-1], (tiling.rows, tiling.columns, tiling.side)
    tiles = tiles.view(rows, columns, side, side, C).transpose(1, 2)  # (rows, side, columns, side, C)
    field = tiles.reshape(rows * side, columns * side, C)
    field = field[tiling.top : rows * side - tiling.top, tiling.left : columns * side - tiling.left]  # (height, width, C)
    ends = newline.to(field.dtype).expand(tiling.height, 1, C)
    return torch.cat([whole, torch.cat([field, ends], 1).flatten(0, 1)])  # (R, C)
