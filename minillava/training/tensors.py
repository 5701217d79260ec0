"""Gradient accumulation: a batch in micro-batches, one after the other, with the gradient of the whole.

The loss of a batch is a mean over its supervised tokens. A mean of the micro-batches' means would be another one: it
would count a token of a short answer more than one of a long answer. So each micro-batch counts by its share of the
batch's supervised tokens."""

from collections.abc import Iterator
from itertools import accumulate

from torch import Tensor

from minillava.anyres import Tiling
from minillava.config import LlavaConfig
from minillava.inputs.conversation import IGNORE_INDEX


def micro_batches(batch: dict[str, Tensor], size: int, config: LlavaConfig) -> Iterator[dict[str, Tensor]]:
    """The batch in parts of `size` rows (0: all in one), each without the padding that none of its rows needs, and with
    its own pictures.
    """
    rows = len(batch["input_ids"])
    if not 0 < size < rows:
        yield batch
        return
    # of pictures, before each row
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
            part |= {
                name: batch[name][views_before[a] : views_before[b]]
                for name in ("pixel_values", "vision_features")
                if name in batch
            }
            part |= {"image_sizes": batch["image_sizes"][a:b]} if "image_sizes" in batch else {}
        yield part


def pictures_of(batch: dict[str, Tensor], config: LlavaConfig) -> tuple[list[int], list[int]]:
    """How many tokens, and how many views among pixel_values, each picture of the batch has."""
    if "image_sizes" in batch:
        vision = config.vision_config
        sizes, grid = batch["image_sizes"].tolist(), (config.image_grid_pinpoints, vision.image_size, vision.patch_size)
        tilings = [Tiling.of(size, *grid) for size in sizes]
        return [tiling.num_tokens for tiling in tilings], [tiling.num_views for tiling in tilings]
    count = len(batch.get("pixel_values", batch.get("vision_features", ())))
    return [config.num_image_tokens] * count, [1] * count


def num_supervised(labels: Tensor) -> int:
    """How many tokens pay loss: the first of a row never does, since nothing comes before it."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())
