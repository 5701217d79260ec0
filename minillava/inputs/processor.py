"""From turns and a picture to the model's inputs, `input_ids` and `pixel_values`.

    processor("What is this?", "cat.png") -> {"input_ids": (1, T) int64, "pixel_values": (1, 3, E, E) float32}

The picture's placeholder ids stand before the first question; the model puts image features in their place. The folder
format is transformers': `AutoProcessor.from_pretrained` reads what `save` writes, and `from_folder` reads what
transformers writes."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minillava.anyres import Tiling, cut_views
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.files import read_json, write_atomically, write_json
from minillava.inputs.chat_template import folder_template
from minillava.inputs.conversation import TEMPLATES, Template, Turn, encode, find_template
from minillava.inputs.image import CLIP_MEAN, CLIP_STD, open_image, preprocess
from minillava.inputs.image_settings import BICUBIC, read_image_settings
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
        shape asks for. None, no picture, takes none."""
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
        picture that cannot be read."""
        turns = [("user", question_or_turns)] if isinstance(question_or_turns, str) else list(question_or_turns)
        picture = None if image is None else open_image(image)
        ids = self.encode(turns, self.count_image_tokens(picture and picture.size), add_generation_prompt)
        return {"input_ids": torch.tensor([ids], dtype=torch.int64), **self._image_inputs(picture)}  # (1, T)

    def encode(self, turns: Sequence[Turn], num_image_tokens: int, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, of whose picture the number of placeholders is known already."""
        return encode(self.tokenizer, self.template, turns, num_image_tokens, add_generation_prompt).input_ids

    def image_inputs(self, image: str | Path | Image.Image | None) -> dict[str, Tensor]:
        """One picture for the model: pixel_values (1, 3, E, E) float32, or LLaVA-NeXT's views (N, 3, E, E) and
        image_sizes (1, 2) int64."""
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

    # ------------------------------------------------------------ folders
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

    @classmethod
    def from_folder(
        cls, folder: str | Path, config: LlavaConfig, template: str | Template | None = None
    ) -> "Processor":
        """Read tokenizer.json and how pictures are prepared.

        That is preprocessor_config.json, or the "image_processor" of processor_config.json, where transformers 5 puts
        it. The template is the one asked for, or the folder's `conversation_template`, or the one that its chat
        template is found to be, or "llava_hf". The original LLaVA's folders have none of these files: they mean "v1",
        and `image_aspect_ratio` of their config.json says whether to pad."""
        folder = Path(folder)
        outer, inner, original = (
            read_json(folder / name) if (folder / name).is_file() else {}
            for name in ("processor_config.json", "preprocessor_config.json", "config.json")
        )
        nested = outer.get("image_processor")
        pictures = {**(nested if isinstance(nested, dict) else {}), **inner}
        _check_original(original)
        _check_anyres(pictures, config)
        settings = read_image_settings(
            pictures, config.vision_config.image_size, original.get("image_aspect_ratio") == "pad"
        )
        stored = (
            template
            or pictures.get("conversation_template")
            or folder_template(folder, "llava_hf" if outer or inner else "v1")
        )
        return cls.for_model(Tokenizer.from_file(folder), config, template=stored, **vars(settings))

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's and the processor's files, which `from_folder` and transformers' AutoProcessor read."""
        folder, template, tokenizer = Path(folder), find_template(self.template), self.tokenizer
        kind, special = ("LlavaImageProcessor", {"do_pad": True}) if self.pad else ("CLIPImageProcessor", {})
        if self.image_grid_pinpoints:
            kind, special = (
                "LlavaNextImageProcessor",
                {"image_grid_pinpoints": [list(pair) for pair in self.image_grid_pinpoints]},
            )
        tokenizer.save(folder / "tokenizer.json")
        write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": kind,
                "do_convert_rgb": True,
                "do_resize": True,
                "size": {"height": self.image_size, "width": self.image_size}
                if self.squash
                else {"shortest_edge": self.image_size},
                "resample": self.resample,
                "do_center_crop": True,
                "crop_size": {"height": self.image_size, "width": self.image_size},
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": list(self.mean),
                "image_std": list(self.std),
                **special,
                **({"conversation_template": template.name} if template == TEMPLATES.get(template.name) else {}),
            },
        )
        write_json(
            folder / "processor_config.json",
            {
                "processor_class": "LlavaNextProcessor" if self.image_grid_pinpoints else "LlavaProcessor",
                "image_token": tokenizer.names["image"],
                "patch_size": self.patch_size,
                "num_additional_image_tokens": 1,  # CLS, which the strategy "default" drops again
                "vision_feature_select_strategy": self.vision_feature_select_strategy,
            },
        )
        write_atomically(folder / "chat_template.jinja", chat_template(template, tokenizer))


def _check_original(config: dict) -> None:
    """What the original's config.json says of pictures."""
    shape = config.get("image_aspect_ratio")
    if shape not in (None, "square", "pad", "anyres"):
        raise UserError(
            f"config.json says image_aspect_ratio = {shape!r}, but only square, pad and anyres can be followed."
        )


def _check_anyres(pictures: dict, config: LlavaConfig) -> None:
    """LLaVA-NeXT's sizes are in two files, which must agree, and its tiles are made by one filter alone."""
    sizes = pictures.get("image_grid_pinpoints")
    if not config.image_grid_pinpoints:
        return
    if sizes is not None and sizes != [list(size) for size in config.image_grid_pinpoints]:
        raise UserError(
            "preprocessor_config.json and config.json differ in image_grid_pinpoints: the pictures would not fit the model."
        )
    if pictures.get("resample", BICUBIC) != BICUBIC:
        raise UserError(
            f"preprocessor_config.json says resample = {pictures['resample']!r}, but LLaVA-NeXT's tiles are bicubic ({BICUBIC}) here."
        )


def chat_template(template: Template, tokenizer: Tokenizer) -> str:
    """The template in Jinja, for transformers' `apply_chat_template`."""

    def quoted(text: str) -> str:
        names = {"<s>": tokenizer.names["bos"], "</s>": tokenizer.names["eos"]}
        return "{{ " + json.dumps(re.sub("</?s>", lambda match: names[match[0]], text), ensure_ascii=False) + " }}"

    before, *after = template.user.split("{}")
    cue, end = template.assistant.split("{}")
    image = quoted(tokenizer.names["image"] + ("\n" if after else ""))
    image = "{% for part in content if part.type == 'image' %}" + image + "{% endfor %}"
    text = "{% for part in content if part.type == 'text' %}{{ part.text }}{% endfor %}"
    return "".join(
        [
            quoted(template.system),
            "{% for message in messages %}",
            "{% set content = [{'type': 'text', 'text': message.content}] if message.content is string else message.content %}",
            "{% if message.role == 'user' %}",
            "{% if not loop.first %}" + quoted(template.between) + "{% endif %}" + quoted(before) + image,
            text + quoted(after[0]) if after else "",
            "{% else %}" + quoted(cue) + text + quoted(end) + "{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}" + quoted(cue.removesuffix(" ")) + "{% endif %}",
        ]
    )
