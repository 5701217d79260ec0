"""What a folder's preprocessor_config.json says is done to a picture: followed, or refused in one sentence, key by key.

The keys are those of transformers' CLIPImageProcessor and LlavaImageProcessor; what is left out takes CLIP's way, at
the tower's size.
"""

import math
from dataclasses import dataclass

from minillava.errors import UserError
from minillava.inputs.image import CLIP_MEAN, CLIP_STD

BICUBIC = 3  # PIL's number; 0 nearest, 1 lanczos, 2 bilinear, 4 box, 5 hamming
KINDS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor", "LlavaNextImageProcessor")
MOST = 1e9  # numbers beyond this (or NaN) are no settings


@dataclass(frozen=True)
class ImageSettings:
    """How pixels are made: `squash` resizes to E x E whatever the shape, else the shorter edge becomes E and the middle
    is cut out.
    """

    pad: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: int = BICUBIC
    squash: bool = False


def read_image_settings(values: dict, image_size: int, pad_by_default: bool = False) -> ImageSettings:
    """The settings of a preprocessor_config.json's object; UserError for one that is not supported."""
    kind = (
        str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
        .removesuffix("Fast")
        .removesuffix("Pil")
    )
    if kind and kind not in KINDS:
        raise _unsupported("image_processor_type", kind, " and ".join(KINDS[::2]))
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"):
        if values.get(key) is not None and not isinstance(values[key], bool):
            raise _unsupported(key, values[key], "true and false")
    if values.get("do_resize") is False:
        raise _unsupported("do_resize", False, "true")
    squash = _is_squashed(values.get("size"), image_size)
    _check_crop(values, image_size, squash)
    pad = values.get("do_pad")
    # CLIP's own do_pad fills up a batch
    pad = pad_by_default if pad is None else pad and kind in ("", "LlavaImageProcessor")
    mean, std = _normalization(values, pad)
    return ImageSettings(pad, mean, std, _resample(values.get("resample")), squash)


def _is_squashed(size, image_size: int) -> bool:
    """`size` is an edge or {"shortest_edge"}, or the {"height", "width"} of the result."""
    size = {key: edge for key, edge in size.items() if edge is not None} if isinstance(size, dict) else size
    if size is None or size in (image_size, {"shortest_edge": image_size}):
        return False
    if size in ({"height": image_size, "width": image_size}, [image_size, image_size]):
        return True
    raise _unsupported(
        "size", size, f"a shortest edge of {image_size} (the vision tower's), or a height and width of {image_size},"
    )


def _check_crop(values: dict, image_size: int, squash: bool) -> None:
    crop = values.get("crop_size")
    if values.get("do_center_crop") is False:
        if not squash:
            raise _unsupported("do_center_crop", False, "true")
    elif crop is not None and crop not in (
        image_size,
        {"height": image_size, "width": image_size},
        [image_size, image_size],
    ):
        raise UserError(
            f"preprocessor_config.json cuts pictures to {crop}, but the vision tower takes {image_size} x {image_size}."
        )
    if values.get("do_pad") and values.get("pad_size") not in (
        None,
        image_size,
        {"height": image_size, "width": image_size},
    ):
        raise _unsupported("pad_size", values["pad_size"], f"{image_size} x {image_size}")


def _resample(value) -> int:
    if value is None:
        return BICUBIC
    if isinstance(value, bool) or value not in range(6):
        raise _unsupported("resample", value, "0 to 5 (PIL's filters)")
    return int(value)


def _normalization(values: dict, pad: bool) -> tuple[tuple, tuple]:
    """(level * factor - mean) / std, written as (level / 255 - mean') / std'."""
    plain = values.get("do_normalize") is False
    mean = (0.0,) * 3 if plain else _triple(values, "image_mean", CLIP_MEAN)
    std = (1.0,) * 3 if plain else _triple(values, "image_std", CLIP_STD)
    if 0 in std:
        raise UserError("preprocessor_config.json divides by an image_std of 0.")
    factor = values.get("rescale_factor")
    factor = 1 if values.get("do_rescale") is False else 1 / 255 if factor is None else factor
    if not _is_number(factor) or factor == 0:
        raise _unsupported("rescale_factor", factor, "a number, such as 1/255,")
    if math.isclose(factor, 1 / 255, rel_tol=1e-6) and not plain:
        return mean, std
    if pad:
        raise UserError(
            "preprocessor_config.json pads with the mean colour, and changes what a level means: only one of them is supported."
        )
    return tuple(m / (255 * factor) for m in mean), tuple(s / (255 * factor) for s in std)


def _triple(values: dict, key: str, default: tuple) -> tuple:
    """Three numbers, or one for all channels."""
    given = values.get(key)
    given = default if given is None else [given] * 3 if _is_number(given) else given
    if not (isinstance(given, list | tuple) and len(given) == 3 and all(map(_is_number, given))):
        raise UserError(f"preprocessor_config.json must give three numbers for {key}, not {given!r}.")
    return tuple(map(float, given))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _unsupported(key: str, value, supported: str) -> UserError:
    return UserError(f"preprocessor_config.json says {key} = {value!r}, but only {supported} can be followed.")
