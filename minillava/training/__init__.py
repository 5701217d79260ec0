"""LLaVA's two stages.

Visual Instruction Tuning (arXiv 2304.08485), section 4.2; LLaVA-1.5 (arXiv 2310.03744), section 3.
Stage 1, feature alignment: only the projector learns, from one question and answer about each picture.
Stage 2, visual instruction tuning: projector and language model learn, from conversations.
The vision tower is frozen in both. The loss is on the answers and their end tokens alone.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillava import weights
from minillava.arguments import option
from minillava.config import LlavaConfig
from minillava.distributed import gathered, is_first, place, processes, rank, together, world_size
from minillava.errors import UserError
from minillava.generation import stream
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.lora import add_lora
from minillava.model import Llava
from minillava.projector import Projector
from minillava.training.batches import Batches, killed_workers_told
from minillava.training.check_data import check_data, leave_out_unusable
from minillava.training.features import FeatureCache
from minillava.training.loss import MANY_LOGITS, chunked_loss
from minillava.training.precision import held_types
from minillava.training.recipes import RECIPES, STAGES, change_trainable, steps_of
from minillava.training.run import LoopConfig, autocast, fit, next_token_loss, product_dtype
from minillava.training.samples import JsonSamples, SceneSamples
from minillava.training.scoring import cases, score_pictures
from minillava.training.validation import Validation, split
from minillava.vision import VisionTransformer
from minillava.weights.adapter import save_adapter


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """The flags of train.py."""

    stage: int = option(
        0,
        "1: the projector learns from captions; 2: projector and language model learn from conversations",
        choices=(1, 2),
    )
    recipe: str = option(
        "tiny", "settings of the papers, which other flags change; all but tiny need --data", choices=tuple(RECIPES)
    )
    data: str = option("", "LLaVA JSON; without it, endless scenes of the tiny world")
    images: str = option("", "folder in which the pictures of --data lie")
    weights: str = option(
        "", "folder of the LLaVA to start from (stage 2: runs/stage1 if it is there, else weights/tiny-stage1)"
    )
    vision: str = option("", "folder of a CLIP tower to start from, with --language (stage 1: weights/tiny-vision)")
    language: str = option("", "folder of a LLaMA to start from, with --vision (stage 1: weights/tiny-language)")
    projector: str = option("", "kind of a new projector (default mlp2x_gelu)", choices=("linear", "mlp2x_gelu"))
    vision_feature_layer: int = option(
        -2, "layer of the tower that a new projector reads; LLaVA reads the last but one"
    )
    template: str = option("", "conversation template; plain is LLaVA-1.5's stage 1; without it, the starting folder's")
    image_aspect_ratio: str = option(
        "", "square cuts one out of a picture, pad fills it up (default the folder's)", choices=("square", "pad")
    )
    max_length: int = option(0, "tokens a sample may hold at most (0: the model's context)")
    epochs: float = option(0.0, "passes over --data, in place of --max-steps")
    micro_batch_size: int = option(
        0,
        "samples, or packed rows, that are computed at once; the gradient is that of the whole batch (0: all at once)",
    )
    projector_learning_rate: float = option(0.0, "of the projector alone (0: as all others)")
    train: str = option(
        "", "what learns besides the stage's own: tower, projector, language_model, or names, with commas between"
    )
    freeze: str = option("", "what does not learn, named as for --train")
    lora_r: int = option(
        0, "train LoRA's changes of this rank in place of the language model (0: the language model itself)"
    )
    lora_alpha: float = option(16.0, "LoRA's changes count alpha / r times")
    lora_dropout: float = option(0.0, "share of a layer's inputs that LoRA does not read, drawn anew at each step")
    device: str = option("auto", "cpu, cuda, or auto")
    skip_missing: bool = option(False, "leave out records whose pictures are not in --images")
    cache_features: str = option(
        "", "folder for the frozen tower's features of all pictures, so that they are computed once"
    )
    check_data: bool = option(
        False, "read every record and picture of --data, say what is wrong with which, and train nothing"
    )
    skip_broken: bool = option(
        False, "leave out records with broken pictures, and list them in OUT; else the training stops there"
    )
    checkpoint_activations: bool = option(
        False, "compute each layer again in the backward pass, in place of keeping what it computed"
    )
    pack: bool = option(
        False, "several samples in a row of the batch, one after the other, so that next to nothing is padding"
    )
    pack_length: int = option(0, "tokens a packed row may hold (0: the model's context)")
    workers: int = option(
        0, "processes that read texts and pictures ahead, with the same batches in the same order (0: a thread)"
    )
    validation_share: float = option(
        0.0, "share of the pictures of --data that are not trained on; the loss on them is measured at each save"
    )

    def __post_init__(self):
        super().__post_init__()
        if bool(self.vision) != bool(self.language):
            raise UserError("--vision and --language go together: give both folders, or neither")
        if self.weights and self.vision:
            raise UserError("--weights names a whole LLaVA: leave out --vision and --language, or leave out --weights")
        new_projector = self.vision or (self.stage == 1 and not self.weights)
        if not new_projector and (self.projector or self.vision_feature_layer != -2):
            raise UserError(
                "--projector and --vision-feature-layer are for a new projector, with --vision and --language"
            )
        if self.images and not self.data:
            raise UserError("--images needs --data, the JSON that names the pictures")
        if self.recipe != "tiny" and not (self.data and (self.weights or self.vision)):
            raise UserError(
                f"--recipe {self.recipe} needs --data, and the model to start from: --vision and --language, or --weights"
            )
        for name in ("pack_length", "workers", "max_length", "micro_batch_size"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        self._expect("lora_r", self.lora_r >= 0, "0 or more")
        self._expect("lora_alpha", 0 < self.lora_alpha < math.inf, "above 0")
        self._expect("lora_dropout", 0 <= self.lora_dropout < 1, "from 0 to below 1")
        if self.lora_r and (self.stage == 1 or self.vision):
            raise UserError(
                "--lora-r is for stage 2, from a whole LLaVA that the adapter belongs to: give --stage 2, and its folder with --weights"
            )
        if self.lora_dropout and not self.lora_r:
            raise UserError("--lora-dropout is for LoRA: give its rank with --lora-r")
        for name in ("epochs", "projector_learning_rate"):
            self._expect(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._expect("validation_share", 0 <= self.validation_share < 1, "from 0 to below 1")
        for name in ("check_data", "cache_features", "epochs", "validation_share"):
            if getattr(self, name) and not self.data:
                raise UserError(f"--{name.replace('_', '-')} needs --data: the scenes of the tiny world never end")
        if self.pack_length and not self.pack:
            raise UserError("--pack-length is for --pack")

    def rate_factor(self, name: str) -> float:
        return (
            self.projector_learning_rate / self.learning_rate
            if self.projector_learning_rate and name.startswith("projector.")
            else 1.0
        )

    def settings(self) -> dict:
        """The file of the data may have changed under its name, which its size nearly always tells."""
        settings = {
            name: value
            for name, value in super().settings().items()
            if name not in ("workers", "skip_broken", "check_data")
        }
        settings["cache_features"] = bool(self.cache_features)  # wherever they lie
        return {**settings, "size of the data": os.path.getsize(self.data) if os.path.exists(self.data) else 0}


def loss(model: Llava, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the supervised tokens.

    batch: input_ids, labels (-100 = no loss), attention_mask (B, T) int64; pixel_values (N, 3, E, E), and image_sizes
    for LLaVA-NeXT; or vision_features (N, P, C), which the tower gave before. Raises ValueError where no token is
    supervised or pictures do not fit the prompt."""
    if "vision_features" in batch:
        embeds = model.merge(batch["input_ids"], model.project(batch["vision_features"]))  # (B, T, C)
    else:
        embeds = model.embed(batch["input_ids"], batch.get("pixel_values"), batch.get("image_sizes"))  # (B, T, C)
    many_logits = embeds.shape[0] * embeds.shape[1] * model.language_model.config.vocab_size > MANY_LOGITS
    function = chunked_loss if many_logits and torch.is_grad_enabled() else next_token_loss
    return function(model.language_model, embeds, batch["labels"], batch.get("attention_mask"))


def set_trainable(model: Llava, stage: int) -> None:
    """Freeze every parameter but those that learn in this stage."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(STAGES[stage].trained)


class LossModule(nn.Module):
    """`loss` as a module: several processes gather parameters where a module is called (distributed.py)."""

    def __init__(self, model: Llava):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return loss(self.model, batch)


def train(config: TrainConfig) -> None:
    """Run one stage of LLaVA's training and leave a weights folder in `config.out`; in one process, or as one of those
    that torchrun started.
    """
    with processes(weights.find_device(config.device)) as device:
        train_on(device, config)


def train_on(device: torch.device, config: TrainConfig) -> None:
    """The training itself, on the device of this process."""
    model, processor = together(lambda: starting_point(config, mapped=True))
    for part in (model.vision_tower, model.language_model):
        part.attention = weights.find_attention("auto", device)
    set_trainable(model, config.stage)
    if config.lora_r:
        add_lora(model.language_model, config.lora_r, config.lora_alpha, config.lora_dropout, config.seed)
    change_trainable(model, config.train, config.freeze)
    if config.checkpoint_activations:
        checkpoint_layers(model)
    context = min(model.config.text_config.max_position_embeddings, config.max_length or sys.maxsize)
    if config.check_data:
        return check_data(config, processor, context) if is_first() else None
    parts = together(lambda: read_samples(config, processor, context))
    samples = parts[0]
    if config.epochs:
        config = replace(config, max_steps=steps_of(config.epochs, len(samples), config.batch_size))
    features = None
    if config.cache_features:
        model.vision_tower.to(device, torch.float32)
        features = FeatureCache(config.cache_features, model, processor, config.dtype)
        features.fill(
            (part[i].picture for part in parts for i in np.flatnonzero(part.has_picture)),
            config.workers,
            config.skip_broken,
        )
    batches = Batches(samples, processor, config, context, features)
    validation = Validation(parts[1], batches) if config.validation_share else None
    held_out = [] if config.data else cases("val", 40)
    root = LossModule(model)
    products = product_dtype(config.dtype, device)
    place(
        root, (*model.vision_tower.layers, *model.language_model.layers), device, held_types(root, products), products
    )

    def batch_loss(step: int) -> Iterator[Tensor]:
        """A loss for each micro-batch.

        They add up to the loss of the whole batch, of which several processes take the mean of their sums.
        """
        parts, total = batches.parts(step, model.config)
        if not total:
            raise UserError(f"none of the records of step {step} can be used")
        if config.lora_dropout:
            model.train()
            # a run that was resumed drops the same as one that was not
            torch.manual_seed((config.seed + step) * world_size() + rank())
        for part, count in parts:
            yield root({name: tensor.to(device) for name, tensor in part.items()}) * (count * world_size() / total)

    def save(folder: str | Path = config.out) -> None:
        weights.save(model, processor, folder, "bfloat16")
        if config.lora_r:
            save_adapter(
                model,
                starting_folder(config),
                config.lora_r,
                config.lora_alpha,
                config.lora_dropout,
                Path(folder) / "adapter",
            )

    def watch(step: int) -> dict:
        model.eval()
        # a CUDA graph must make the copies in bfloat16 itself
        with gathered(root), autocast(config.dtype, device, cache_enabled=False):
            scores = {"scores": score_pictures(model, processor, held_out)} if held_out else {}
            return sample_answers(model, processor, samples, step) | scores

    def validate(lowest: float) -> float:
        with gathered(root):
            mean_loss = validation.mean_loss(model, root)
        if mean_loss < lowest:
            save(Path(config.out) / "best")
        return mean_loss

    try:
        with killed_workers_told():
            fit(model, batch_loss, config, save, watch, validate=validate if validation else None)
    finally:
        if validation:
            validation.stop()
        batches.close()


def checkpoint_layers(model: Llava) -> None:
    """Let each layer keep its input alone, and run again in the backward pass: a third more time for a fraction of the
    memory.

    Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
    """
    for layer in (*model.vision_tower.layers, *model.language_model.layers):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def read_samples(config: TrainConfig, processor: Processor, context: int) -> tuple:
    """The samples to train on, and with a validation share those to validate on."""
    if not config.data:
        return (SceneSamples(config.stage),)
    samples = JsonSamples(config.data, config.images, config.skip_missing)
    leave_out_unusable(samples, processor, context, needs_picture=config.stage == 1)
    return split(samples, config.validation_share, config.seed) if config.validation_share else (samples,)


def starting_point(config: TrainConfig, mapped: bool = False) -> tuple[Llava, Processor]:
    """The model and processor to start from: a whole LLaVA, or a tower and a language model with a new projector
    between them.

    `mapped`: on the CPU, with the numbers left in the files as they are, until `place` takes those that a process
    keeps."""
    options = dict(device="cpu", dtype="mapped") if mapped else dict(device=config.device, dtype="float32")
    if folder := starting_folder(config):
        print(f"starting from {folder}")
        model, processor = weights.load(folder, **options)
        return model, replace(
            processor, template=config.template or processor.template, pad=pads(config, processor.pad)
        )
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
    # draws numbers before the projector does, as a whole new model would: a seed stays what it was
    VisionTransformer(vision_tower.config)
    projector = Projector(model_config).to(next(language_model.parameters()).device)
    with torch.device("meta"):  # a whole new model would take the memory of a second language model
        model = Llava(model_config)
    model.vision_tower, model.projector, model.language_model = vision_tower, projector, language_model
    return model, Processor.for_model(
        tokenizer, model_config, template=config.template or "llava_hf", pad=pads(config, False)
    )


def starting_folder(config: TrainConfig) -> str:
    """The folder of the whole LLaVA to start from; empty where a new one is put together."""
    if config.weights or config.vision or config.stage == 1:
        return config.weights
    return "runs/stage1" if Path("runs/stage1/model.safetensors").exists() else "weights/tiny-stage1"


def pads(config: TrainConfig, otherwise: bool) -> bool:
    """Whether pictures are filled up to a square."""
    return config.image_aspect_ratio == "pad" if config.image_aspect_ratio else otherwise


def sample_answers(model: Llava, processor: Processor, samples, step: int, count: int = 3) -> dict[str, str]:
    """What the model answers, at this step, to a few first questions of its own data: {question: answer}."""
    answers = {}
    for index in samples.indices(step + 1, count, seed=0):
        sample = samples[index]
        question = sample.turns[0][1] or f"a caption like {sample.turns[1][1]!r}"
        try:
            answer = "".join(stream(model, processor, processor(sample.turns[:1], sample.picture), max_new_tokens=40))
        except UserError as error:  # a question longer than the context, a picture that cannot be read
            answer = str(error)
        answers[question[:200]] = answer.strip().split("\n")[0]
    return answers
