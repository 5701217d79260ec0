"""A batch as tensors, and its micro-batches: parts that are computed one after the other, with the gradient of the
whole.

The loss of a batch is a mean over its supervised tokens. A mean of the micro-batches' means would be another one: it
would count a token of a short answer more than one of a long answer. So each micro-batch counts by its share of the
supervised tokens.

Several processes (distributed.py) must run the same layers equally often, and what they hold is not alike: one has
fewer rows than another, or rows without a picture where the others have some. A process that lacks a micro-batch
computes a blank row that counts nothing; one that lacks a picture gets a row with a blank one.
"""

from collections.abc import Iterator
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.anyres import Tiling
from minillava.config import LlavaConfig
from minillava.distributed import all_gather, world_size
from minillava.inputs.conversation import IGNORE_INDEX, Encoded
from minillava.language_model import first_tokens

Batch = dict[str, Tensor]


# ------------------------------------------------------------ from samples to tensors
def collate(rows: list[list[Encoded]]) -> Batch:
    """Rows of one sample, or of several that are packed one after the other, padded on the right with id 0.

    input_ids, labels, attention_mask (B, T) int64. The tokens of a row's samples are numbered 1, 1, 2, 2, 2, ... in
    attention_mask, and see their own sample alone. Positions go on from sample to sample, which changes nothing, since
    RoPE is relative. The last token of a sample must not learn to predict the first of the next one, so a sample's
    first label is -100.
    """
    T = max(sum(len(sample.input_ids) for sample in row) for row in rows)
    batch = {name: torch.zeros(len(rows), T, dtype=torch.int64) for name in ("input_ids", "labels", "attention_mask")}
    batch["labels"].fill_(IGNORE_INDEX)
    for number, row in enumerate(rows):
        ids = [i for sample in row for i in sample.input_ids]
        labels = [label for sample in row for label in (IGNORE_INDEX, *sample.labels[1:])]
        numbers = [n for n, sample in enumerate(row, 1) for _ in sample.input_ids]
        for name, values in (("input_ids", ids), ("labels", labels), ("attention_mask", numbers)):
            batch[name][number, : len(values)] = torch.tensor(values)
    return batch


def sample_starts(numbers: Tensor | None) -> Tensor | None:
    """From where on each token of a batch may see: the beginning of its sample, (B, T) of sample numbers, and 0 on
    padding -> (B, T). Rows of one sample each are the model's own case, `first_tokens`.
    """
    if numbers is None or numbers.max() <= 1:
        return first_tokens(numbers)
    begins = torch.ones_like(numbers, dtype=torch.bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    positions = torch.arange(numbers.shape[1], device=numbers.device)
    return (positions * begins).cummax(-1).values  # (B, T)


def to(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


# ------------------------------------------------------------ micro-batches
def micro_batches(batch: Batch, size: int, config: LlavaConfig) -> Iterator[Batch]:
    """The batch in parts of `size` rows (0: all in one), each without the padding that none of its rows needs, and with
    its own pictures.
    """
    rows = len(batch["input_ids"])
    if not 0 < size < rows:
        yield batch
        return
    # Tokens of pictures before each row; and for so many, how many pictures these are.
    tokens_before = [0, *accumulate((batch["input_ids"] == config.image_token_id).sum(1).tolist())]
    tokens, views = pictures_of(batch, config)
    pictures_before = {count: number for number, count in enumerate([0, *accumulate(tokens)])}
    views_before = [0, *accumulate(views)]
    for first in range(0, rows, size):
        end = min(first + size, rows)
        width = int(batch["attention_mask"][first:end].any(0).nonzero().max()) + 1  # padding is on the right
        part = {name: batch[name][first:end, :width] for name in ("input_ids", "labels", "attention_mask")}
        a, b = (pictures_before[tokens_before[row]] for row in (first, end))
        if b > a:
            names = [name for name in ("pixel_values", "vision_features") if name in batch]
            part |= {name: batch[name][views_before[a] : views_before[b]] for name in names}
            part |= {"image_sizes": batch["image_sizes"][a:b]} if "image_sizes" in batch else {}
        yield part


def pictures_of(batch: Batch, config: LlavaConfig) -> tuple[list[int], list[int]]:
    """How many tokens, and how many views among pixel_values, each picture of the batch has."""
    if "image_sizes" in batch:
        vision = config.vision_config
        grid = (config.image_grid_pinpoints, vision.image_size, vision.patch_size)
        tilings = [Tiling.of(size, *grid) for size in batch["image_sizes"].tolist()]
        return [tiling.num_tokens for tiling in tilings], [tiling.num_views for tiling in tilings]
    count = len(batch.get("pixel_values", batch.get("vision_features", ())))
    return [config.num_image_tokens] * count, [1] * count


def num_supervised(labels: Tensor) -> int:
    """How many tokens pay loss: the first of a row never does, since nothing comes before it."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


# ------------------------------------------------------------ in several processes
def in_step(batch: Batch, size: int, config: LlavaConfig, cached: bool) -> tuple[list[tuple[Batch, int]], int]:
    """The micro-batches of this process, each with the number of its supervised tokens, and the number of those of all
    processes.

    batch: this process's rows of the step's batch; empty if it has none. `size`: rows of a micro-batch (0: all).
    `cached`: whether pictures come as vision_features.
    """
    parts = [(part, num_supervised(part["labels"])) for part in micro_batches(batch, size, config)] if batch else []
    parts = [(part, count) for part, count in parts if count]  # one without a supervised token has no loss
    counts = all_gather(sum(count for _, count in parts), len(parts), any(has_picture(part) for part, _ in parts))
    if world_size() > 1:
        most, with_pictures = int(counts[:, 1].max()), bool(counts[:, 2].any())
        row = blank_row(config, with_pictures, cached)
        parts += [(supervised_at_the_end(row), 0)] * (most - len(parts))
        parts = [(part if has_picture(part) or not with_pictures else with_row(part, row), n) for part, n in parts]
    return parts, int(counts[:, 0].sum())


def has_picture(part: Batch) -> bool:
    return "pixel_values" in part or "vision_features" in part


def blank_row(config: LlavaConfig, with_picture: bool, cached: bool) -> Batch:
    """A batch of one row, with a black picture or none, and without a supervised token."""
    picture = blank_picture(config, cached) if with_picture else {}
    input_ids = torch.tensor([[config.image_token_id] * sum(pictures_of(picture, config)[0]) + [0, 0]])  # (1, T)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids), **picture}


def blank_picture(config: LlavaConfig, cached: bool) -> Batch:
    """What the batches give for a picture, all zeros."""
    vision, E = config.vision_config, config.vision_config.image_size
    if cached:
        return {"vision_features": torch.zeros(1, config.num_image_tokens, vision.hidden_size)}  # (1, P, C)
    size = {"image_sizes": torch.tensor([[E, E]])} if config.image_grid_pinpoints else {}  # LLaVA-NeXT
    num_views = sum(pictures_of(size, config)[1]) if size else 1
    return {"pixel_values": torch.zeros(num_views, vision.num_channels, E, E), **size}


def supervised_at_the_end(row: Batch) -> Batch:
    """The same row with a loss, which its reader multiplies by 0."""
    labels = row["labels"].clone()
    labels[:, -1] = 0
    return {**row, "labels": labels}


def with_row(part: Batch, row: Batch) -> Batch:
    """A micro-batch without pictures and a blank row with one, padded on the right to the same length."""
    width = max(part["input_ids"].shape[1], row["input_ids"].shape[1])
    joined = dict(row)
    for name, padding in (("input_ids", 0), ("labels", IGNORE_INDEX), ("attention_mask", 0)):
        tensors = [F.pad(tensor, (0, width - tensor.shape[1]), value=padding) for tensor in (part[name], row[name])]
        joined[name] = torch.cat(tensors)  # (B + 1, T)
    return joined
