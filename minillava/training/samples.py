"""Training samples: LLaVA's JSON with a folder of pictures, or scenes made as they are needed; and a batch of them as
tensors.

The JSON is the original's: a list of {"id", "image" (absent in text-only samples), "conversations": [{"from": "human" |
"gpt", "value": ...}]}, the first question holding "<image>" once; records.py reads it. A sample is (turns, picture or
None); which samples a step sees follows from seed and step alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from minillava.data.questions import caption_request, conversation
from minillava.data.records import (
    named,
    picture_name,
    read_records,
    read_turns,
    sign_of_a_picture,
    tell_unnamed,
    without_mark,
)
from minillava.data.scenes import sample_scene
from minillava.errors import UserError
from minillava.files import FolderListings, check_name
from minillava.inputs.conversation import IGNORE_INDEX, Encoded, Turn


@dataclass(frozen=True)
class Sample:
    turns: list[Turn]
    picture: object = None  # a PIL image or a path; None in a text-only sample


class SceneSamples:
    """Endless scenes: stage 1 asks for a list or a description, stage 2 holds a conversation.

    Sample i is the same on every machine.
    """

    def __init__(self, stage: int):
        self.make_turns = {1: caption_request, 2: conversation}[stage]
        self.stage = stage

    def __getitem__(self, index: int) -> Sample:
        scene = sample_scene(index)
        return Sample(self.make_turns(scene, np.random.default_rng([self.stage, index])), scene.render())

    def indices(self, step: int, batch_size: int, seed: int) -> list[int]:
        first = (seed << 32) + step * batch_size  # each seed has its own scenes
        return list(range(first, first + batch_size))

    def label(self, index: int) -> dict:
        """How a report names the sample."""
        return {"scene": index}


class Epochs:
    """The order of samples that are used again and again: every one once an epoch, each epoch in an order of its own."""

    def __init__(self, has_picture: np.ndarray):
        self.has_picture = has_picture  # (samples,) bool
        self._orders: dict[tuple, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.has_picture)

    def indices(self, step: int, batch_size: int, seed: int, pictures: bool | None = None) -> list[int]:
        """The samples of a step; `pictures` chooses among those with a picture (True) or without one (False)."""
        count = len(self) if pictures is None else int((self.has_picture == pictures).sum())
        positions = range(step * batch_size, (step + 1) * batch_size)
        return [int(self._order(seed, position // count, pictures)[position % count]) for position in positions]

    def _order(self, seed: int, epoch: int, pictures: bool | None) -> np.ndarray:
        """The indices of one epoch, in its order. The last few are kept; two threads may ask, for batches and for
        sample answers.
        """
        orders, key = self._orders, (seed, epoch, pictures)
        if key not in orders:
            indices = np.arange(len(self)) if pictures is None else np.flatnonzero(self.has_picture == pictures)
            orders = {**dict(list(orders.items())[-3:]), key: np.random.default_rng([seed, epoch]).permutation(indices)}
            self._orders = orders
        return orders[key]


class JsonSamples(Epochs):
    """LLaVA's JSON.

    Everything that can be checked without opening the pictures is checked here, before the training starts.
    """

    def __init__(self, path: str | Path, images: str | Path | None, skip_missing: bool = False):
        self.records = read_records(Path(path))
        super().__init__(np.zeros(len(self.records), dtype=bool))
        self.images = Path(images) if images else None
        self.num_bytes = np.zeros(len(self.records), dtype=np.int64)  # of the turns, as UTF-8
        self.names: list[str | None] = []  # of their pictures, as they are on the disk
        folders, unnamed, missing = FolderListings(), [], {}  # {index of a record: its picture that is not there}
        for index, record in enumerate(tqdm(self.records, desc="checking the records", leave=False, disable=None)):
            try:
                turns, name = turns_and_picture(record, self.images)
            except UserError as error:
                raise UserError(f"{path}: {named(index, record)}: {error}") from None
            self.num_bytes[index] = sum(len(text.encode(errors="replace")) for _, text in turns)
            self.has_picture[index] = name is not None
            self.names.append(name and folders.find(self.images, name))
            if name is None and (sign := sign_of_a_picture(record, turns)):
                unnamed.append(f"{named(index, record)}: {sign}")
            if name is not None and self.names[index] is None:
                missing[index] = f"{named(index, record)}: {name[:80]}"
        tell_unnamed(path, len(self.records), unnamed)
        if missing:
            count = f"{len(missing)} of {len(self.records)} pictures are not in {self.images}"
            first = next(iter(missing.values()))
            if not skip_missing:
                raise UserError(f"{count}, the first of {first}; --skip-missing leaves such records out")
            print(f"{count} and their records are left out, the first of {first}")
            self.leave_out(set(missing))

    def __getitem__(self, index: int) -> Sample:
        turns, _ = turns_and_picture(self.records[index], self.images)
        name = self.names[index]
        return Sample(turns, None if name is None else self.images / name)

    def label(self, index: int) -> dict:
        """How a report names the record."""
        record = self.records[index]
        return {"id": str(record.get("id"))[:40], "image": picture_name(record)}

    def leave_out(self, indices: set[int]) -> None:
        """Take records out for good; UserError if none remains."""
        kept = [index for index in range(len(self)) if index not in indices]
        self.records, self.names = ([held[index] for index in kept] for held in (self.records, self.names))
        self.num_bytes = self.num_bytes[kept]
        super().__init__(self.has_picture[kept])
        if not self.records:
            raise UserError("none of the records can be used for this stage")


def turns_and_picture(record: dict, images: Path | None) -> tuple[list[Turn], str | None]:
    """What a record says, without its "<image>", and the name of its picture; UserError where it is not as it should
    be.
    """
    turns, name = read_turns(record), picture_name(record)
    if name is None:
        return turns, None  # an "<image>" in it was typed, and is text
    if images is None:
        raise UserError("the record names a picture: say with --images in which folder it lies")
    check_name(name)
    return without_mark(turns), name


class LengthGroups:
    """The batches of a training by step, each of samples of like length, so that little is padding.

    The samples of `group` steps are sorted by length together, cut into batches, and those taken in random order.
    `samples_of(step)` gives a step's own samples, `length(sample)` how long one is; both depend on nothing else, so
    every step's batch can be made again."""

    def __init__(self, samples_of: Callable[[int], list], length: Callable[[object], int], group: int = 8):
        self.samples_of, self.length, self.group, self._number = samples_of, length, group, None

    def __getitem__(self, step: int) -> list:
        number, place = divmod(step, self.group)
        if number != self._number:
            batches = self.arrange(
                [sample for i in range(self.group) for sample in self.samples_of(number * self.group + i)]
            )
            self._number, self._batches = (
                number,
                [batches[i] for i in np.random.default_rng(number).permutation(self.group)],
            )
        return self._batches[place]

    def arrange(self, samples: list) -> list[list]:
        """The samples of a group as its batches, of which each is as good as any other."""
        return evenly_cut(sorted(samples, key=self.length), self.group)


def evenly_cut(items: list, parts: int) -> list[list]:
    """`items` in order, in `parts` parts whose sizes differ by at most one."""
    edges = [len(items) * i // parts for i in range(parts + 1)]
    return [items[edges[i] : edges[i + 1]] for i in range(parts)]


def collate(samples: list[Encoded]) -> dict[str, Tensor]:
    """Rows padded on the right, with id 0, since no one looks there: input_ids, labels, attention_mask (B, T) int64."""
    T = max(len(sample.input_ids) for sample in samples)
    batch = {
        "input_ids": torch.zeros(len(samples), T, dtype=torch.int64),
        "labels": torch.full((len(samples), T), IGNORE_INDEX),
        "attention_mask": torch.zeros(len(samples), T, dtype=torch.int64),
    }
    for row, sample in enumerate(samples):
        length = len(sample.input_ids)
        batch["input_ids"][row, :length] = torch.tensor(sample.input_ids)
        batch["labels"][row, :length] = torch.tensor(sample.labels)
        batch["attention_mask"][row, :length] = 1
    return batch
