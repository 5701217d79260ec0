"""Training samples: LLaVA's JSON with a folder of pictures, or scenes made as they are needed; and their order.

The JSON is the original's: a list of {"id", "image" (absent in text-only samples), "conversations": [{"from": "human" |
"gpt", "value": ...}]}, the first question holding "<image>" once; data/records.py reads it. A sample is (turns, picture
or None). Which samples a step sees follows from seed and step alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minillava.data.natural.talk import talk
from minillava.data.questions import caption_request
from minillava.data.records import (
    named,
    picture_name,
    read_records,
    read_turns,
    sign_of_a_picture,
    tell_unnamed,
    without_mark,
)
from minillava.data.training_scenes import training_scene
from minillava.errors import UserError
from minillava.files import FolderListings, check_name
from minillava.inputs.conversation import Turn

GROUP = 8  # steps whose samples are sorted by length, or packed, together


@dataclass(frozen=True)
class Sample:
    turns: list[Turn]
    picture: object = None  # a PIL image or a path; None in a text-only sample


@dataclass(frozen=True)
class Group:
    """The samples of a few steps, which are cut into batches of like length together."""

    key: tuple[int, ...]
    indices: Sequence[int]
    num_batches: int


def endless_group(step: int, batch_size: int, seed: int) -> tuple[Group, int]:
    """The group of a step among samples that never end, and the step's place in it."""
    number, place = divmod(step, GROUP)
    first = (seed << 32) + number * GROUP * batch_size
    return Group((seed, number), range(first, first + GROUP * batch_size), GROUP), place


class SceneSamples:
    """Endless scenes: stage 1 asks for a list or a description, stage 2 holds a conversation. Sample i is the same on
    every machine.
    """

    def __init__(self, stage: int):
        self.make_turns = {1: caption_request, 2: talk}[stage]
        self.stage = stage

    def __getitem__(self, index: int) -> Sample:
        scene = training_scene(index)
        return Sample(self.make_turns(scene, np.random.default_rng([self.stage, index])), scene.render())

    def group(self, step: int, batch_size: int, seed: int, mixed: bool = True) -> tuple[Group, int]:
        """The group of a step, and the step's place in it. Each seed has its own scenes."""
        return endless_group(step, batch_size, seed)

    def some(self, count: int, seed: int) -> list[int]:
        """A few samples to show."""
        return list(range((seed + 1) * count, (seed + 2) * count))

    def label(self, index: int) -> dict:
        """How a report names the sample."""
        return {"scene": index}


class Epochs:
    """The order of samples that are used again and again: every one once an epoch, each epoch in an order of its own.

    No batch reaches from one epoch into the next, so none holds a sample twice. A batch has pictures or has none, unless
    they are `mixed`: one of text alone needs no vision tower, and is not padded to the length of a picture's tokens.
    """

    def __init__(self, has_picture: np.ndarray):
        self.has_picture = has_picture  # (samples,) bool
        self._orders: dict[tuple, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.has_picture)

    def steps_per_epoch(self, batch_size: int, mixed: bool = False) -> int:
        return sum(math.ceil(count / batch_size) for count in self._counts(mixed))

    def _counts(self, mixed: bool) -> list[int]:
        """How many samples share their batches: those with pictures and those without, or all."""
        text_only = int((~self.has_picture).sum())
        return [len(self)] if mixed or text_only in (0, len(self)) else [len(self) - text_only, text_only]

    def group(self, step: int, batch_size: int, seed: int, mixed: bool = False) -> tuple[Group, int]:
        """The group of a step, and the step's place in it. An epoch is cut into groups of at most `GROUP` steps."""
        counts = self._counts(mixed)
        epoch, place = divmod(step, self.steps_per_epoch(batch_size, mixed))
        kind, steps = 0, [math.ceil(count / batch_size) for count in counts]
        if len(counts) == 2:  # batches of text alone are evenly spread among the others
            before, after = (at * steps[1] // sum(steps) for at in (place, place + 1))
            kind, place = (1, before) if after > before else (0, place - before)
        count, num_steps = counts[kind], steps[kind]
        num_groups = math.ceil(num_steps / GROUP)
        number = ((place + 1) * num_groups - 1) // num_steps
        first, end = (num_steps * at // num_groups for at in (number, number + 1))  # its steps
        order = self._order(seed, epoch, kind == 0 if len(counts) == 2 else None)
        indices = order[count * first // num_steps : count * end // num_steps].tolist()
        return Group((seed, epoch, kind, number), indices, end - first), place - first

    def _order(self, seed: int, epoch: int, pictures: bool | None) -> np.ndarray:
        """The indices of one epoch, in its order; of those with a picture (True), without (False), or all (None)."""
        key = (seed, epoch, pictures)
        if key not in self._orders:
            indices = np.arange(len(self)) if pictures is None else np.flatnonzero(self.has_picture == pictures)
            order = np.random.default_rng([seed, epoch]).permutation(indices)
            self._orders = {**dict(list(self._orders.items())[-3:]), key: order}  # the last few are kept
        return self._orders[key]

    def some(self, count: int, seed: int) -> list[int]:
        """A few samples to show."""
        return np.random.default_rng(seed).integers(len(self), size=count).tolist()


class JsonSamples(Epochs):
    """LLaVA's JSON.

    Everything that can be checked without opening the pictures is checked here, before the training starts.
    """

    def __init__(self, path: str | Path, images: str | Path | None, skip_broken: bool = False):
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
            if not skip_broken:
                raise UserError(f"{count}, the first of {first}; --skip-broken leaves such records out")
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
