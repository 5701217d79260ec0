"""A processor's files, in transformers' format: `AutoProcessor.from_pretrained` reads what `save_processor` writes, and
`load_processor` reads what transformers writes, and the original LLaVA's folders.
"""

import json
import re
from pathlib import Path

from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.files import read_json, write_atomically, write_json
from minillava.inputs.chat_template import folder_template
from minillava.inputs.conversation import TEMPLATES, Template, find_template
from minillava.inputs.image_settings import BICUBIC, read_image_settings
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer


# ------------------------------------------------------------ reading
def load_processor(folder: str | Path, config: LlavaConfig, template: str | Template | None = None) -> Processor:
    """Read tokenizer.json and how pictures are prepared: preprocessor_config.json, or the "image_processor" of
    processor_config.json, where transformers 5 puts it.

    The template is the one asked for, or the folder's `conversation_template`, or the one that its chat template is
    found to be, or "llava_hf". The original LLaVA's folders have none of these files: they mean "v1", and
    `image_aspect_ratio` of their config.json says whether to pad.
    """
    folder = Path(folder)
    outer, inner, original = (
        read_json(folder / name) if (folder / name).exists() else {}
        for name in ("processor_config.json", "preprocessor_config.json", "config.json")
    )
    nested = outer.get("image_processor")
    pictures = {**(nested if isinstance(nested, dict) else {}), **inner}
    shape = original.get("image_aspect_ratio")
    if shape not in (None, "square", "pad", "anyres"):
        raise UserError(f"config.json: image_aspect_ratio {shape!r} is not supported, only square, pad and anyres.")
    _check_anyres(pictures, config)
    settings = read_image_settings(pictures, config.vision_config.image_size, shape == "pad")
    default = "llava_hf" if outer or inner else "v1"
    template = template or pictures.get("conversation_template") or folder_template(folder, default)
    return Processor.for_model(Tokenizer.from_file(folder), config, template=template, **vars(settings))


def _check_anyres(pictures: dict, config: LlavaConfig) -> None:
    """LLaVA-NeXT's sizes are in two files, which must agree, and its tiles are made by one filter alone."""
    sizes, resample = pictures.get("image_grid_pinpoints"), pictures.get("resample", BICUBIC)
    if not config.image_grid_pinpoints:
        return
    if sizes is not None and sizes != [list(size) for size in config.image_grid_pinpoints]:
        raise UserError(
            "preprocessor_config.json and config.json differ in image_grid_pinpoints: pictures would not fit."
        )
    if resample != BICUBIC:
        tiles = f"LLaVA-NeXT's tiles are bicubic ({BICUBIC}) here"
        raise UserError(f"preprocessor_config.json says resample = {resample!r}, but {tiles}.")


# ------------------------------------------------------------ writing
def save_processor(processor: Processor, folder: str | Path) -> None:
    """Write the tokenizer's and the processor's files."""
    folder, template, tokenizer = Path(folder), find_template(processor.template), processor.tokenizer
    tokenizer.save(folder / "tokenizer.json")
    write_json(folder / "preprocessor_config.json", _picture_values(processor))
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaNextProcessor" if processor.image_grid_pinpoints else "LlavaProcessor",
            "image_token": tokenizer.names["image"],
            "patch_size": processor.patch_size,
            "num_additional_image_tokens": 1,  # CLS, which the strategy "default" drops again
            "vision_feature_select_strategy": processor.vision_feature_select_strategy,
        },
    )
    write_atomically(folder / "chat_template.jinja", chat_template(template, tokenizer))


def _picture_values(processor: Processor) -> dict:
    """preprocessor_config.json."""
    square = {"height": processor.image_size, "width": processor.image_size}
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if processor.squash else {"shortest_edge": processor.image_size},
        "resample": processor.resample,
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }
    if processor.image_grid_pinpoints:
        pinpoints = [list(pair) for pair in processor.image_grid_pinpoints]
        values |= {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints}
    elif processor.pad:
        values |= {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    template = find_template(processor.template)
    return values | ({"conversation_template": template.name} if template == TEMPLATES.get(template.name) else {})


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
