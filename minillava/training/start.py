"""What a training starts from: a whole LLaVA, or a tower and a language model with a new projector between them."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from minillava import weights
from minillava.config import LlavaConfig
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.projector import Projector
from minillava.training.checkpoint import newest_whole, places
from minillava.training.recipes import TrainConfig


def resolved(config: TrainConfig) -> TrainConfig:
    """The same config, in which the folder to start from has its name: a resumed run's is that from which it was begun,
    whatever has been trained since.
    """
    if config.weights or config.vision or config.stage == 1:
        return config if not config.weights else replace(config, weights=absolute(config.weights))
    out = Path(config.out)
    if config.resume and any(path.exists() for age in (0, 1) for path in places(out, age)):
        start = json.loads(newest_whole(out)[1]["settings"]).get("start")
        if start:
            return replace(config, weights=start)
    trained = Path("runs/stage1/model.safetensors").exists()
    return replace(config, weights=absolute("runs/stage1" if trained else "weights/tiny-stage1"))


def absolute(name: str) -> str:
    """A folder's name as it is from everywhere; a name on the Hub as it is."""
    folder = weights.find_folder(name)
    return os.path.abspath(folder) if os.path.isdir(name) or str(folder) != name else name


def starting_point(config: TrainConfig, mapped: bool = False) -> tuple[Llava, Processor]:
    """The model and processor to start from.

    `mapped`: on the CPU, with the numbers left in the files as they are, until
    `shard_parameters` takes those that a process keeps.
    """
    options = dict(device="cpu", dtype="mapped") if mapped else dict(device=config.device, dtype="float32")
    if config.weights:
        print(f"starting from {config.weights}")
        model, processor = weights.load(config.weights, **options)
        template = config.template or processor.template
        return model, replace(processor, template=template, pad=pads(config, processor.pad))
    vision, language = config.vision or "weights/tiny-vision", config.language or "weights/tiny-language"
    vision_tower = weights.load_vision_tower(vision, feature_layer=config.vision_feature_layer, **options)
    tokenizer = Tokenizer.from_file(weights.find_folder(language)).extended("<image>", "<pad>")
    language_model = weights.load_language_model(language, **options)
    language_model = weights.extend_vocabulary(language_model, tokenizer.vocab_size)
    model_config = LlavaConfig(
        vision_tower.config,
        language_model.config,
        tokenizer.image_id,
        vision_feature_layer=config.vision_feature_layer,
        projector_type=config.projector or "mlp2x_gelu",
    )
    torch.manual_seed(config.seed)
    projector = Projector(model_config).to(next(language_model.parameters()).device)
    with torch.device("meta"):  # a whole new model would take the memory of a second language model
        model = Llava(model_config)
    model.vision_tower, model.projector, model.language_model = vision_tower, projector, language_model
    template = config.template or "llava_hf"
    return model, Processor.for_model(tokenizer, model_config, template=template, pad=pads(config, False))


def context_of(config: TrainConfig, model: Llava) -> int:
    """Tokens that a sample, or a packed row, may hold at most."""
    return min(model.config.text_config.max_position_embeddings, config.max_length or sys.maxsize)


def pads(config: TrainConfig, otherwise: bool) -> bool:
    """Whether pictures are filled up to a square."""
    return config.image_aspect_ratio == "pad" if config.image_aspect_ratio else otherwise


def units(model: Llava) -> list[nn.Module]:
    """The layers: what is gathered, or computed again, as a whole."""
    return [*model.vision_tower.layers, *model.language_model.layers]
