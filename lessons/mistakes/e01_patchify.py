"""Known mistakes in lessons/exercises/e01_patchify.py."""

from lessons.mistakes.base import mistake


@mistake(
    "patchify",
    "patchify",
    "the picture is reshaped without a permute: your patches are strips of whole rows of pixels, not squares",
)
def strips(pixel_values, patch_size):
    B, channels, E, _ = pixel_values.shape
    return pixel_values.reshape(B, (E // patch_size) ** 2, channels * patch_size**2)


@mistake(
    "patchify",
    "patchify",
    "your patches go down the columns of the grid; patch number 1 is to the right of patch 0, not below it",
)
def columns_first(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 3, 2, 1, 4, 5).flatten(3).flatten(1, 2)


@mistake(
    "patchify",
    "patchify",
    "the colours stand last in your patches (r, g, b of each pixel); all reds come first, then greens, then blues",
)
def channels_last(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


@mistake("patchify", "patchify", "each of your patches is transposed: within a patch, too, the pixels stand row by row")
def transposed(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 1, 5, 4).flatten(3).flatten(1, 2)


@mistake(
    "patchify",
    "patchify",
    "you take every (E / p)-th pixel; a patch is a square of neighbours: split E into (E / p, p), not (p, E / p)",
)
def every_nth(pixel_values, patch_size):
    B, channels, E, _ = pixel_values.shape
    x = pixel_values.reshape(B, channels, patch_size, E // patch_size, patch_size, E // patch_size)
    return x.permute(0, 3, 5, 1, 2, 4).flatten(3).flatten(1, 2)


@mistake(
    "patchify",
    "patchify",
    "your grid is two-dimensional: flatten its rows and columns into one axis, (B, P, 3 * p * p)",
)
def unflattened(pixel_values, patch_size):
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3)
