"""From turns and a picture to the model's inputs, `input_ids` and `pixel_values`.

    processor("What is this?", "cat.png") -> {"input_ids": (1, T) int64, "pixel_values": (1, 3, E, E) float32}

The picture's placeholder ids stand before the first question; the model puts image features in their place. Its files
are read and written in weights/processor_files.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minillava.anyres import Tiling, cut_views
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.inputs.conversation import Template, Turn, encode, find_template
from minillava.inputs.image import CLIP_MEAN, CLIP_STD, open_image, preprocess
from minillava.inputs.image_settings import BICUBIC
from minillava.inputs.tokenizer import CONTROL_TOKENS, Tokenizer


@dataclass(frozen=True)
class Processor:
    """Tokenizer, conversation template and image preprocessing of one model. Immutable."""

    tokenizer: Tokenizer
    image_size: int
    patch_size: int
    vision_feature_select_strategy: str = "default"
    template: str | Template = "llava_hf"
    pad: bool = False
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    resample: int = BICUBIC
    squash: bool = False  # resized to E x E, whatever the shape
    image_grid_pinpoints: tuple = ()  # LLaVA-NeXT's

    def __post_init__(self):
        find_template(self.template)

    def count_image_tokens(self, image: str | Path | Image.Image | tuple[int, int] | None) -> int:
        """How many placeholder ids a picture takes, or any of this (width, height): P, in LLaVA-NeXT as many as its
        shape asks for. None, no picture, takes none.
        """
        if image is None:
            return 0
        if self.image_grid_pinpoints:
            size = image if isinstance(image, tuple) else open_image(image).size
            return Tiling.of(size, self.image_grid_pinpoints, self.image_size, self.patch_size).num_tokens
        return (self.image_size // self.patch_size) ** 2 + (self.vision_feature_select_strategy == "full")

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.image_id

    def __call__(
        self,
        question_or_turns: str | Sequence[Turn],
        image: str | Path | Image.Image | None = None,
        add_generation_prompt: bool = True,
    ) -> dict[str, Tensor]:
        """One question (a str) or a whole conversation, with a picture before its first question or without one.

        Returns input_ids (1, T) int64, and for a picture pixel_values (1, 3, E, E) float32 (LLaVA-NeXT: see
        `image_inputs`). "<image>" or "</s>" in a turn stays text. Raises UserError for turns out of order and for a
        picture that cannot be read.
        """
        turns = [("user", question_or_turns)] if isinstance(question_or_turns, str) else list(question_or_turns)
        picture = None if image is None else open_image(image)
        ids = self.encode(turns, self.count_image_tokens(picture and picture.size), add_generation_prompt)
        return {"input_ids": torch.tensor([ids], dtype=torch.int64), **self._image_inputs(picture)}  # (1, T)

    def encode(self, turns: Sequence[Turn], num_image_tokens: int, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, of whose picture the number of placeholders is known already."""
        return encode(self.tokenizer, self.template, turns, num_image_tokens, add_generation_prompt).input_ids

    def image_inputs(self, image: str | Path | Image.Image | None) -> dict[str, Tensor]:
        """One picture for the model: pixel_values (1, 3, E, E) float32, or LLaVA-NeXT's views (N, 3, E, E) and
        image_sizes (1, 2) int64.
        """
        return self._image_inputs(None if image is None else open_image(image))

    def _image_inputs(self, picture: Image.Image | None) -> dict[str, Tensor]:
        if picture is None:
            return {}
        if not self.image_grid_pinpoints:
            pixels = preprocess(picture, self.image_size, self.pad, self.mean, self.std, self.resample, self.squash)
            return {"pixel_values": pixels[None]}  # (1, 3, E, E)
        views = cut_views(picture, self.image_grid_pinpoints, self.image_size)
        pixel_values = torch.stack(
            [preprocess(view, self.image_size, False, self.mean, self.std) for view in views]
        )  # (N, 3, E, E)
        return {"pixel_values": pixel_values, "image_sizes": torch.tensor([picture.size])}  # (1, 2)

    @classmethod
    def for_model(cls, tokenizer: Tokenizer, config: LlavaConfig, **options) -> "Processor":
        """The processor that fits `config`; a tokenizer without `<image>` and `<pad>` gets them after its last id."""
        if CONTROL_TOKENS["image"] not in tokenizer.controls:
            tokenizer = tokenizer.extended(CONTROL_TOKENS["image"], CONTROL_TOKENS["pad"])
        if tokenizer.image_id != config.image_token_id:
            raise UserError(
                f"The tokenizer's <image> has the id {tokenizer.image_id}, but config.json says {config.image_token_id}."
            )
        vision = config.vision_config
        strategy, pinpoints = config.vision_feature_select_strategy, config.image_grid_pinpoints
        return cls(tokenizer, vision.image_size, vision.patch_size, strategy, image_grid_pinpoints=pinpoints, **options)
