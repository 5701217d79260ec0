"""LLaVA-NeXT's "anyres": a large picture enters as several views, once whole and small, and once in full size, tile by
tile.

LLaVA-NeXT (LLaVA-1.6, January 2024). The picture is fitted into the best of a few allowed sizes (the grid pinpoints),
its margins are filled with black, and it is cut into tiles of E x E; before them goes the whole picture, squashed to E
x E. Each of these views passes the tower and the projector by itself. The tiles' features are then laid out as the
tiles lie in the picture, the margins' are cut away, and a learnt `image_newline` ends every row of patches. Picture ->
views (N, 3, E, E) -> features (N, P, C) -> (R, C), where R depends on the picture's shape.
"""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from minillava.config import VisionConfig


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: `rows` x `columns` tiles of `side` x `side` patches, with margins of `top` and `left`
    patches at either end.
    """

    rows: int
    columns: int
    side: int
    top: int
    left: int

    @property
    def height(self) -> int:
        """Rows of patches that show the picture and not a margin."""
        return self.rows * self.side - 2 * self.top

    @property
    def width(self) -> int:
        return self.columns * self.side - 2 * self.left

    @property
    def num_views(self) -> int:
        return 1 + self.rows * self.columns

    @property
    def num_tokens(self) -> int:
        """R of one picture: the small whole, then every row of patches and its newline."""
        return self.side**2 + self.height * (self.width + 1)

    @classmethod
    def of(cls, size: tuple[int, int], pinpoints, image_size: int, patch_size: int) -> "Tiling":
        """For a picture of `size` (width, height); `pinpoints` are (height, width), as in the files."""
        (width, height), side = size, image_size // patch_size
        full_height, full_width = best_pinpoint(size, pinpoints)
        rows, columns = full_height // image_size, full_width // image_size
        # rounded as the original rounds: a hair below a whole number counts as that number
        if width / height > columns / rows:
            shown = int(round(height * (columns * side / width), 7))
            return cls(rows, columns, side, top=(rows * side - shown) // 2, left=0)
        shown = int(round(width * (rows * side / height), 7))
        return cls(rows, columns, side, top=0, left=(columns * side - shown) // 2)


def best_pinpoint(size: tuple[int, int], pinpoints) -> tuple[int, int]:
    """The (height, width) that keeps most of the picture's pixels, and of those the one that wastes least."""
    width, height = size

    def preference(pinpoint) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return tuple(max(pinpoints, key=preference))


def cut_views(picture: Image.Image, pinpoints, image_size: int) -> list[Image.Image]:
    """The picture squashed to E x E, and its tiles row by row."""
    height, width = best_pinpoint(picture.size, pinpoints)
    across, down = width / picture.width, height / picture.height
    fitted = (min(math.ceil(picture.width * down), width), height)
    if across < down:
        fitted = (width, min(math.ceil(picture.height * across), height))
    canvas = Image.new("RGB", (width, height))
    corner = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    canvas.paste(picture.resize(fitted, Image.Resampling.BICUBIC), corner)
    corners = [(x, y) for y in range(0, height, image_size) for x in range(0, width, image_size)]
    tiles = [canvas.crop((x, y, x + image_size, y + image_size)) for x, y in corners]
    return [picture.resize((image_size, image_size), Image.Resampling.BICUBIC), *tiles]


def arrange(features: Tensor, image_sizes: Tensor | None, newline: Tensor, pinpoints, vision: VisionConfig) -> Tensor:
    """All pictures' views (N, P, C), and their image_sizes (pictures, 2) -> (R, C), as they are read.

    ValueError if the two do not fit.
    """
    sizes = [] if image_sizes is None else image_sizes.tolist()
    tilings = [Tiling.of(size, pinpoints, vision.image_size, vision.patch_size) for size in sizes]
    counts = [tiling.num_views for tiling in tilings]
    if sum(counts) != len(features):
        raise ValueError(
            f"pixel_values holds {len(features)} views, but pictures of the image_sizes {sizes} have {sum(counts)}"
        )
    pictures = zip(features.split(counts), tilings, strict=True)
    return torch.cat([arrange_one(views, tiling, newline) for views, tiling in pictures])  # (R, C)


def arrange_one(features: Tensor, tiling: Tiling, newline: Tensor) -> Tensor:
    """One picture's views (N, P, C), the whole first, and `image_newline` (C,) -> (R, C)."""
    whole, tiles = features[0], features[1:]
    C, (rows, columns, side) = features.shape[-1], (tiling.rows, tiling.columns, tiling.side)
    tiles = tiles.view(rows, columns, side, side, C).transpose(1, 2)  # (rows, side, columns, side, C)
    grid = tiles.reshape(rows * side, columns * side, C)
    grid = grid[tiling.top : rows * side - tiling.top, tiling.left : columns * side - tiling.left]  # (height, width, C)
    ends = newline.to(grid.dtype).expand(tiling.height, 1, C)
    return torch.cat([whole, torch.cat([grid, ends], 1).flatten(0, 1)])  # (R, C)
