"""LLaVA's two stages.

Visual Instruction Tuning (arXiv 2304.08485), section 4.2; LLaVA-1.5 (arXiv 2310.03744), section 3.
Stage 1, feature alignment: only the projector learns, from one question and answer about each picture.
Stage 2, visual instruction tuning: projector and language model learn, from conversations.
The vision tower is frozen in both. The loss is on the answers and their end tokens alone.
"""

import math
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import checkpoint as activation_checkpoint

from minillava import weights
from minillava.distributed import agree, is_first, processes, rank, shard_parameters, unsharded, world_size
from minillava.errors import UserError
from minillava.generation import stream
from minillava.inputs.processor import Processor
from minillava.lora import add_lora
from minillava.model import Llava
from minillava.training.batches import Batches
from minillava.training.check_data import check_data, leave_out_unusable
from minillava.training.features import FeatureCache
from minillava.training.loss import MANY_LOGITS, chunked_loss, next_token_loss
from minillava.training.precision import autocast, held_types, product_dtype
from minillava.training.recipes import STAGES, TrainConfig, change_trainable
from minillava.training.run import Run, fingerprint, own_folder
from minillava.training.samples import JsonSamples, SceneSamples
from minillava.training.scoring import cases, score_pictures
from minillava.training.start import context_of, resolved, starting_point, units
from minillava.training.tensors import Batch, sample_starts, to
from minillava.training.validation import Validation, split
from minillava.weights.adapter import save_adapter

__all__ = ["STAGES", "TrainConfig", "loss", "set_trainable", "train"]


# ------------------------------------------------------------ what is learnt
def set_trainable(model: Llava, stage: int) -> None:
    """Freeze every parameter but those that learn in this stage."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(STAGES[stage].trained)


def loss(model: Llava, batch: Batch) -> Tensor:
    """Mean cross-entropy of the supervised tokens.

    batch: input_ids, labels (-100 = no loss), attention_mask (B, T) int64; pixel_values (N, 3, E, E), and image_sizes
    for LLaVA-NeXT; or vision_features (N, P, C), which the tower gave before. Raises ValueError where no token is
    supervised or pictures do not fit the prompt.
    """
    if "vision_features" in batch:
        embeds = model.merge(batch["input_ids"], model.project(batch["vision_features"]))  # (B, T, C)
    else:
        embeds = model.embed(batch["input_ids"], batch.get("pixel_values"), batch.get("image_sizes"))  # (B, T, C)
    many_logits = embeds.shape[0] * embeds.shape[1] * model.language_model.config.vocab_size > MANY_LOGITS
    function = chunked_loss if many_logits and torch.is_grad_enabled() else next_token_loss
    return function(model.language_model, embeds, batch["labels"], sample_starts(batch.get("attention_mask")))


class LossModule(nn.Module):
    """`loss` as a module: several processes gather parameters where a module is called (distributed.py)."""

    def __init__(self, model: Llava):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return loss(self.model, batch)


# ------------------------------------------------------------ the training
def train(config: TrainConfig) -> None:
    """Run one stage of LLaVA's training and leave a weights folder in `config.out`; in one process, or as one of those
    that torchrun started.
    """
    with processes(weights.find_device(config.device)) as device:
        if config.check_data:
            return check_data(config) if is_first() else None
        with own_folder(config):
            train_on(device, config)


def train_on(device: torch.device, config: TrainConfig) -> None:
    """The training itself, on the device of this process."""
    # The model, and what of it learns.
    config = agree(lambda: resolved(config))
    model, processor = agree(lambda: starting_point(config, mapped=True))
    for part in (model.vision_tower, model.language_model):
        part.attention = weights.find_attention("auto", device)
    set_trainable(model, config.stage)
    if config.lora_r:
        add_lora(model.language_model, config.lora_r, config.lora_alpha, config.lora_dropout, config.seed)
    change_trainable(model, config.train, config.freeze)
    if config.checkpoint_activations:
        checkpoint_layers(model)
    frozen = fingerprint(model)

    # The samples, and their batches.
    context = context_of(config, model)
    samples, held_out = agree(lambda: read_samples(config, processor, context))
    if config.epochs:
        steps = config.epochs * samples.steps_per_epoch(config.batch_size, config.pack)
        config = replace(config, max_steps=max(1, math.ceil(steps)))
    features = cached_features(config, model, processor, device, samples, held_out)
    batches = Batches(samples, processor, config, context, features)
    validation = Validation(held_out, batches) if held_out else None
    scenes = [] if config.data else cases("val", 40)

    # Its parameters, in the types and on the devices that compute with them.
    root, products = LossModule(model), product_dtype(config.dtype, device)
    shard_parameters(root, units(model), device, held_types(root, products), products)

    def save(folder: str | Path = config.out) -> None:
        weights.save(model, processor, folder, "bfloat16")
        if config.lora_r:
            adapter = config.lora_r, config.lora_alpha, config.lora_dropout
            save_adapter(model, config.weights, *adapter, Path(folder) / "adapter")

    # The loop.
    with (
        closing(batches),
        closing(validation) if validation else nullcontext(),
        Run(model, config, save, frozen) as run,
    ):
        for step in run.steps():
            losses = []
            model.train()
            torch.manual_seed((config.seed + step) * world_size() + rank())  # from which dropout draws
            for batch, share in batches.parts(step, model.config):  # micro-batches, whose losses add up to the step's
                with autocast(config.dtype, device):
                    part = root(to(batch, device)) * share
                part.backward()
                losses.append(part.item())
            run.update(losses)
            if run.due:
                with run.notes() as notes, unsharded(root):
                    if validation:
                        notes["validation_loss"] = validation.mean_loss(model, root)
                        if notes["validation_loss"] < run.metrics.lowest("validation_loss"):
                            save(Path(config.out) / "best")
                    model.eval()
                    with autocast(config.dtype, device, cache_enabled=False):  # a CUDA graph makes its own copies
                        if scenes:
                            notes["scores"] = score_pictures(model, processor, scenes)
                        notes["answers"] = sample_answers(model, processor, samples, step)


def checkpoint_layers(model: Llava) -> None:
    """Let each layer keep its input alone, and run again in the backward pass: a third more time for a fraction of the
    memory.

    Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
    """
    for layer in units(model):
        layer.forward = partial(activation_checkpoint.checkpoint, layer.forward, use_reentrant=False)


def read_samples(config: TrainConfig, processor: Processor, context: int) -> tuple:
    """The samples to train on, and with a validation share those to validate on, or None."""
    if not config.data:
        return SceneSamples(config.stage), None
    samples = JsonSamples(config.data, config.images, config.skip_broken)
    leave_out_unusable(samples, processor, context, needs_picture=config.stage == 1)
    return split(samples, config.validation_share, config.seed) if config.validation_share else (samples, None)


def cached_features(config: TrainConfig, model: Llava, processor: Processor, device, *parts) -> FeatureCache | None:
    """The frozen tower's features of all pictures, if `--cache-features` asks for them."""
    if not config.cache_features:
        return None
    model.vision_tower.to(device, torch.float32)
    features = FeatureCache(config.cache_features, model, processor, config.dtype)
    pictures = (part[i].picture for part in parts if part for i in np.flatnonzero(part.has_picture))
    features.fill(pictures, config.workers, config.skip_broken)
    return features


def sample_answers(model: Llava, processor: Processor, samples, step: int, count: int = 3) -> dict[str, str]:
    """What the model answers, at this step, to a few first questions of its own data: {question: answer}."""
    answers = {}
    for index in samples.some(count, step):
        sample = samples[index]
        question = sample.turns[0][1] or f"a caption like {sample.turns[1][1]!r}"
        try:
            answer = "".join(stream(model, processor, processor(sample.turns[:1], sample.picture), max_new_tokens=40))
        except UserError as error:  # a question longer than the context, a picture that cannot be read
            answer = str(error)
        answers[question[:200]] = answer.strip().split("\n")[0]
    return answers
