"""Packing: several samples in a row of the batch, one after the other, so that next to nothing is padding.

Attention stays inside each sample: their tokens are numbered 1, 1, 2, 2, 2, ... in attention_mask (`sample_starts`).
Positions go on from sample to sample, which changes nothing, since RoPE is relative. The last token of a sample must not
learn to predict the first of the next one, so a row's samples begin with a label of -100."""

import heapq
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from minillava.inputs.conversation import IGNORE_INDEX, Encoded
from minillava.language_model import first_tokens
from minillava.training.samples import LengthGroups, collate, evenly_cut


def pack(samples: list, length: Callable[[object], int], capacity: int, multiple: int = 1) -> list[list]:
    """Rows of samples that are at most `capacity` tokens long and about equally long; only a sample longer than that
    has a longer row, alone.

    There are as few rows as a multiple of `multiple` allows. The longest sample that is left goes to the row that is
    still the shortest (Graham, Bounds on Multiprocessing Timing Anomalies, 1969): a batch is padded to its longest row,
    so equal rows matter more than full ones."""
    ordered = sorted(samples, key=length, reverse=True)
    capacity = max(capacity, length(ordered[0]) if ordered else 0)
    fewest = -(-sum(map(length, samples)) // capacity)
    num_rows = max(1, -(-fewest // multiple)) * multiple
    while True:
        rows = [(0, number, []) for number in range(num_rows)]  # (tokens, number, samples): already a heap
        for sample in ordered:
            tokens, number, row = rows[0]
            row.append(sample)
            heapq.heapreplace(rows, (tokens + length(sample), number, row))
        if max(tokens for tokens, _, _ in rows) <= capacity:
            return [row for _, _, row in sorted(rows) if row]
        num_rows += multiple


class Packs(LengthGroups):
    """The batches of a training by step, each a list of rows of packed samples: about as many samples a step as without
    packing, in fewer rows.
    """

    def __init__(
        self, samples_of: Callable[[int], list], length: Callable[[object], int], capacity: int, group: int = 8
    ):
        super().__init__(samples_of, length, group)
        self.capacity = capacity

    def arrange(self, samples: list) -> list[list]:
        """Rows of like length to a batch, and as many to each."""
        return evenly_cut(pack(samples, self.length, self.capacity, self.group), self.group)


def collate_rows(rows: list[list[Encoded]]) -> dict[str, Tensor]:
    """Rows of one or more samples each, padded on the right: input_ids, labels and attention_mask (B, T) int64, as
    `data.dataset.collate`.
    """
    batch = collate([_joined(row) for row in rows])
    for numbers, row in zip(batch["attention_mask"], rows, strict=True):
        lengths = torch.tensor([len(sample.input_ids) for sample in row])
        numbers[: lengths.sum()] = torch.repeat_interleave(torch.arange(1, len(row) + 1), lengths)  # 1, 1, 2, 2, 2, ...
    return batch


def _joined(row: list[Encoded]) -> Encoded:
    """A row's samples as one; the first label of each is no target."""
    ids = [i for sample in row for i in sample.input_ids]
    labels = [label for sample in row for label in (IGNORE_INDEX, *sample.labels[1:])]
    return replace(row[0], input_ids=ids, labels=labels)


def sample_starts(numbers: Tensor) -> Tensor | None:
    """What each token of a batch may see from: of rows whose tokens are numbered by their sample, and 0 on padding,
    (B, T) -> (B, T), where its sample begins. Rows of one sample each are the model's own case, `first_tokens`.
    """
    if numbers.max() <= 1:
        return first_tokens(numbers)
    begins = torch.ones_like(numbers, dtype=torch.bool)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    positions = torch.arange(numbers.shape[1], device=numbers.device)
    return (positions * begins).cummax(-1).values  # (B, T)
