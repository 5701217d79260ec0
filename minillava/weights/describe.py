"""What is in a weights folder, from its JSON files and the headers of its safetensors: `python -m minillava.weights
show FOLDER`.

No tensor is read. A folder of any kind that the project loads: a LLaVA, a plain LLaMA, a CLIP or its tower.
"""

import math
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from minillava import weights
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.inputs.processor import Processor
from minillava.language_model import LanguageModel
from minillava.model import Llava
from minillava.vision import VisionTransformer
from minillava.weights.generation_config import sampling_defaults, with_end_tokens
from minillava.weights.hf_config import read_text_config, read_vision_config


def describe(path: str | Path, vision: str | Path | None = None) -> list[tuple[str, str]]:
    """(name, value) pairs to print; UserError for a folder that could not be loaded either. `vision` as in `load`."""
    folder = weights.find_folder(path)
    values = weights._config_values(folder)
    rows = [("folder", str(folder)), ("model", values["model_type"])]
    if values["model_type"] in ("llama", "clip", "clip_vision_model"):
        build, prefix, part = _part(values)
    else:
        prefix, part = "", weights._read_config(folder, vision)
        build = partial(Llava, part)
    with torch.device("meta"):
        module = build()
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    sources = weights.find_sources(folder, wanted, vision)
    rows += [] if prefix else [("layout", weights.find_layout(weights.tensor_files(folder), wanted))]
    rows += _parts(part)
    rows += [("parameters", _counted(wanted)), ("stored as", _stored(sources))]
    return rows + (_speech(folder, part) if prefix != "vision_tower." else [])


def _part(values: dict):
    """How to build a plain language model or vision tower, what it is called in a LLaVA, and its config."""
    if values["model_type"] == "llama":
        config = read_text_config(values)
        return partial(LanguageModel, config), "language_model.", config
    config = read_vision_config(values)
    return partial(VisionTransformer, config), "vision_tower.", config


def _parts(config) -> list[tuple[str, str]]:
    if isinstance(config, VisionConfig):
        size = f"{config.image_size} x {config.image_size} pixels in patches of {config.patch_size}"
        return [
            (
                "vision tower",
                f"{config.num_hidden_layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, {size}",
            )
        ]
    if isinstance(config, TextConfig):
        heads = f"{config.num_attention_heads} heads ({config.num_key_value_heads} for keys and values)"
        words = f"{config.vocab_size} token ids, context {config.max_position_embeddings}"
        return [("language model", f"{config.num_hidden_layers} layers, width {config.hidden_size}, {heads}, {words}")]
    tokens = f"{config.num_image_tokens} tokens a picture" + (
        ", more by its tiles" if config.image_grid_pinpoints else ""
    )
    projector = ("projector", f"{config.projector_type}, from feature layer {config.vision_feature_layer}, {tokens}")
    return [*_parts(config.vision_config), projector, *_parts(config.text_config)]


def _counted(wanted: dict) -> str:
    """The parameters of each part; the copy of a tied head is not among them."""
    counts = Counter()
    for name, tensor in wanted.items():
        counts[name.split(".")[0]] += math.prod(tensor.shape)
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    return parts if len(counts) == 1 else f"{sum(counts.values()):,} ({parts})"


def _stored(sources: dict) -> str:
    numbers = weights._dtypes(sources)
    return ", ".join(f"{kind} ({count:,} numbers)" for kind, count in sorted(numbers.items()))


def _speech(folder: Path, config) -> list[tuple[str, str]]:
    """How turns are written, what ends an answer, and how the model's makers sample."""
    rows = []
    if isinstance(config, LlavaConfig):
        template = Processor.from_folder(folder, config).template
        rows.append(
            ("template", template if isinstance(template, str) else f"{template.name}, with a system prompt of its own")
        )
    ends = with_end_tokens(getattr(config, "text_config", config), folder).eos_token_id
    defaults = sampling_defaults(folder)
    shown = ", ".join(f"{name} {value}" for name, value in defaults.items()) or "none"
    return [
        *rows,
        ("end tokens", str(ends)),
        ("sampling", f"{shown} (the makers' defaults, shown and not used)" if defaults else shown),
    ]
