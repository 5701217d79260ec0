"""The micro-batches of several processes, so that all run the same layers equally often: each layer needs all of them
(distributed.py).

What the processes hold is not alike: one has fewer rows than another, or rows without a picture where the others have
some. Who lacks a micro-batch computes a blank row that counts nothing; who lacks a picture gets a row with a blank one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.config import LlavaConfig
from minillava.distributed import gather, world_size
from minillava.inputs.conversation import IGNORE_INDEX
from minillava.training.tensors import micro_batches, num_supervised, pictures_of

Part = tuple[dict[str, Tensor], int]


def in_step(batch: dict[str, Tensor], size: int, config: LlavaConfig, cached: bool) -> tuple[list[Part], int]:
    """The micro-batches of this process, each with the number of its supervised tokens, and the number of those of all
    processes.

    batch: this process's rows of the step's batch; empty if it has none. `size`: rows of a micro-batch (0: all).
    `cached`: whether pictures come as vision_features."""
    parts = [(part, num_supervised(part["labels"])) for part in micro_batches(batch, size, config)] if batch else []
    parts = [(part, count) for part, count in parts if count]  # one without a supervised token has no loss
    counts = gather(sum(count for _, count in parts), len(parts), any(map(has_picture, (part for part, _ in parts))))
    if world_size() > 1:
        most, with_pictures = int(counts[:, 1].max()), bool(counts[:, 2].any())
        row = blank_row(config, with_pictures, cached)
        parts += [(supervised_at_the_end(row), 0)] * (most - len(parts))
        parts = [
            (part if has_picture(part) or not with_pictures else with_row(part, row), count) for part, count in parts
        ]
    return parts, int(counts[:, 0].sum())


def has_picture(part: dict[str, Tensor]) -> bool:
    return "pixel_values" in part or "vision_features" in part


def blank_row(config: LlavaConfig, with_picture: bool, cached: bool) -> dict[str, Tensor]:
    """A batch of one row, with a black picture or none, and without a supervised token."""
    picture = blank_picture(config, cached) if with_picture else {}
    input_ids = torch.tensor([[config.image_token_id] * sum(pictures_of(picture, config)[0]) + [0, 0]])  # (1, T)
    return {
        "input_ids": input_ids,
        "labels": torch.full_like(input_ids, IGNORE_INDEX),
        "attention_mask": torch.ones_like(input_ids),
        **picture,
    }


def blank_picture(config: LlavaConfig, cached: bool) -> dict[str, Tensor]:
    """What the batches give for a picture, all zeros."""
    vision, side = config.vision_config, config.vision_config.image_size
    if cached:
        return {"vision_features": torch.zeros(1, config.num_image_tokens, vision.hidden_size)}  # (1, P, C)
    size = {"image_sizes": torch.tensor([[side, side]])} if config.image_grid_pinpoints else {}  # LLaVA-NeXT
    num_views = sum(pictures_of(size, config)[1]) if size else 1
    return {"pixel_values": torch.zeros(num_views, vision.num_channels, side, side), **size}


def supervised_at_the_end(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same row with a loss, which its reader multiplies by 0."""
    labels = row["labels"].clone()
    labels[:, -1] = 0
    return {**row, "labels": labels}


def with_row(part: dict[str, Tensor], row: dict[str, Tensor]) -> dict[str, Tensor]:
    """A micro-batch without pictures and a blank row with one, padded on the right to the same length."""
    width = max(part["input_ids"].shape[1], row["input_ids"].shape[1])
    joined = dict(row)
    for name, padding in (("input_ids", 0), ("labels", IGNORE_INDEX), ("attention_mask", 0)):
        joined[name] = torch.cat(
            [F.pad(tensor, (0, width - tensor.shape[1]), value=padding) for tensor in (part[name], row[name])]
        )  # (B + 1, T)
    return joined
