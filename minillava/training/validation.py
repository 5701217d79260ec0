"""Validation: records that are never trained on, and the loss on them.

The split is by picture: a model that was asked one question about a picture has seen it. The side of a picture follows
from the seed and its name alone, so it stays what it is when records are added, removed, or put in another order.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minillava.data.records import picture_name
from minillava.distributed import all_gather, is_first
from minillava.errors import UserError
from minillava.model import Llava
from minillava.training.batches import Batches, Item
from minillava.training.packing import evenly_cut
from minillava.training.precision import autocast
from minillava.training.samples import JsonSamples
from minillava.training.tensors import to


def split(samples: JsonSamples, share: float, seed: int) -> tuple[JsonSamples, JsonSamples]:
    """The records to train on, and those to validate on: about `share` of the pictures.

    UserError where there would be none of either.
    """
    held = {index for index, record in enumerate(samples.records) if is_held_out(record, share, seed)}
    if len(held) in (0, len(samples)):
        side = "train" if held else "validate"
        raise UserError(
            f"--validation-share {share} leaves none of {len(samples)} records to {side} on: choose another share or --seed"
        )
    print(f"{len(held)} of {len(samples)} records are not trained on, but for validation")
    training, validation = copy(samples), copy(samples)
    training.leave_out(held)
    validation.leave_out(set(range(len(samples))) - held)
    return training, validation


def is_held_out(record: dict, share: float, seed: int) -> bool:
    """Whether a record is for validation: its hash is a number from 0 to 1, the same for all records of a picture."""
    name = picture_name(record)
    if name is not None:
        name = unicodedata.normalize("NFC", name).replace("\\", "/")
        key = ["picture", os.path.normpath(name)]  # however its name is written
    elif record.get("id") not in (None, ""):
        key = ["id", str(record["id"])]
    else:
        key = ["text", record["conversations"]]
    # hash() of a string is another one in each process
    digest = hashlib.sha256(json.dumps([seed, *key]).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class Validation(Batches):
    """The batches of the validation records, round after round the same ones in the same order, and the mean loss over
    them.
    """

    def __init__(self, samples: JsonSamples, training: Batches):
        config = replace(training.config, pack=False)
        super().__init__(samples, training.processor, config, training.context, training.features)
        self.left_out = training.left_out  # one list for both, which the training's batches report
        order = np.lexsort((samples.num_bytes, samples.has_picture)).tolist()  # of like length
        self.of_round = evenly_cut(order, -(-len(samples) // config.batch_size))
        self.num_made = 0

    def rows(self, step: int) -> list[list[Item]]:
        return [[item] for item in self._items(self.of_round[step % len(self.of_round)])]

    def close(self) -> None:
        self.ahead.close()

    @torch.no_grad()
    def mean_loss(self, model: Llava, loss: Callable[[dict[str, Tensor]], Tensor]) -> float:
        """Over all supervised tokens of all records, each of which counts alike; `loss` gives the mean of a batch by
        `model`, which is left in evaluation mode. UserError where none of the records can be used.
        """
        device = next(model.parameters()).device
        model.eval()
        total, tokens = 0.0, 0
        for _ in tqdm(self.of_round, desc="validating", leave=False, disable=None if is_first() else True):
            parts, num_tokens = self.counted_parts(self.num_made, model.config)
            self.num_made += 1
            for part, count in parts:
                with autocast(self.config.dtype, device):
                    total += loss(to(part, device)).item() * count
            tokens += num_tokens
        if not tokens:
            raise UserError("none of the records for validation can be used")
        return all_gather(total).sum().item() / tokens
