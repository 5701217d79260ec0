"""What is in a weights folder, from its JSON files and the headers of its safetensors: `python -m minillava.weights
show FOLDER`.

No tensor is read. A folder of any kind that the project loads: a LLaVA, a plain LLaMA, a CLIP or its tower.
"""

import math
from collections import Counter
from pathlib import Path

import torch

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.language_model import LanguageModel
from minillava.model import Llava
from minillava.vision import VisionTransformer
from minillava.weights.folders import find_folder, read_config_json
from minillava.weights.hf_config import TOWERS, read_text_config, read_vision_config
from minillava.weights.layouts import find_layout
from minillava.weights.loading import as_in_files, llava_config
from minillava.weights.processor_files import load_processor
from minillava.weights.tensor_files import count_numbers, find_sources, tensor_files


def describe(path: str | Path, vision: str | Path | None = None) -> list[tuple[str, str]]:
    """(name, value) pairs to print; UserError for a folder that could not be loaded either. `vision` as in `load`."""
    folder = find_folder(path)
    values = read_config_json(folder)
    kind, tower = values["model_type"], None
    if kind in TOWERS:
        config = read_vision_config(values)
    elif kind == "llama":
        config = as_in_files(read_text_config(values), folder)
    else:
        config, tower = llava_config(folder, vision)
    build, prefix = BUILD[type(config)]
    with torch.device("meta"):
        module = build(config)
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    sources = find_sources(folder, wanted, tower)
    rows = [("folder", str(folder)), ("model", kind)]
    rows += [] if prefix else [("layout", find_layout(tensor_files(folder), wanted))]
    rows += _parts(config)
    rows += [("parameters", _counted(wanted)), ("stored as", _stored(sources))]
    return rows if isinstance(config, VisionConfig) else rows + _speech(folder, config)


BUILD = {  # and what the part is called in a LLaVA
    LlavaConfig: (Llava, ""),
    TextConfig: (LanguageModel, "language_model."),
    VisionConfig: (VisionTransformer, "vision_tower."),
}


def _parts(config: LlavaConfig | TextConfig | VisionConfig) -> list[tuple[str, str]]:
    if isinstance(config, LlavaConfig):
        tokens = (
            f"{config.num_image_tokens} tokens a picture{', more by its tiles' * bool(config.image_grid_pinpoints)}"
        )
        projector = f"{config.projector_type}, from feature layer {config.vision_feature_layer}, {tokens}"
        return [*_parts(config.vision_config), ("projector", projector), *_parts(config.text_config)]
    layers, heads = f"{config.num_hidden_layers} layers, width {config.hidden_size}", config.num_attention_heads
    if isinstance(config, VisionConfig):
        size = f"{config.image_size} x {config.image_size} pixels in patches of {config.patch_size}"
        return [("vision tower", f"{layers}, {heads} heads, {size}")]
    heads = f"{heads} heads ({config.num_key_value_heads} for keys and values)"
    words = f"{config.vocab_size} token ids, context {config.max_position_embeddings}"
    return [("language model", f"{layers}, {heads}, {words}")]


def _counted(wanted: dict) -> str:
    """The parameters of each part; the copy of a tied head is not among them."""
    counts = Counter()
    for name, tensor in wanted.items():
        counts[name.split(".")[0]] += math.prod(tensor.shape)
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    return parts if len(counts) == 1 else f"{sum(counts.values()):,} ({parts})"


def _stored(sources: dict) -> str:
    numbers = count_numbers(sources)
    return ", ".join(f"{kind} ({count:,} numbers)" for kind, count in sorted(numbers.items()))


def _speech(folder: Path, config: LlavaConfig | TextConfig) -> list[tuple[str, str]]:
    """How turns are written, and what ends an answer."""
    rows = []
    if isinstance(config, LlavaConfig):
        template = load_processor(folder, config).template
        named = template if isinstance(template, str) else f"{template.name}, with a system prompt of its own"
        rows.append(("template", named))
    return [*rows, ("end tokens", str(getattr(config, "text_config", config).eos_token_id))]
