"""The batch of each step: which samples it holds, and its tensors, made ahead by threads while the model computes.

Which samples a step sees follows from seed and step alone, however many threads there are: scenes in the order of their seeds; LLaVA's JSON in a
new order each epoch, in batches of like length that hold pictures or hold none (LLaVA-1.5, arXiv 2310.03744, section 3.3), or packed.

Threads, not processes: a JPEG is decoded and resized outside Python's lock, so the threads neither wait for each other nor keep the training
waiting, and there is nothing to copy between processes, to leave behind or to restart.
"""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minillava.conversation import IGNORE_INDEX, Encoded, encode
from minillava.data.dataset import Epochs, LengthGroups
from minillava.errors import UserError
from minillava.files import write_atomically
from minillava.processor import Processor
from minillava.training.features import FeatureCache
from minillava.training.packing import Packs, collate_rows

GROUP = 8  # steps whose samples are sorted by length, or packed, together


def truncated(encoded: Encoded, context: int) -> Encoded:
    """Cut at the context, as the original does; the picture's tokens come first and are kept."""
    return replace(encoded, input_ids=encoded.input_ids[:context], labels=encoded.labels[:context])


def supervised(encoded: Encoded) -> bool:
    """Whether any token pays loss. The first one never does, since nothing comes before it."""
    return any(label != IGNORE_INDEX for label in encoded.labels[1:])


class ModalityGroups:
    """Batches with pictures and batches without, each of like length, in the proportion of the records and evenly spread.

    A batch of text alone needs no vision tower, and is not padded to the length of a picture's tokens.
    """

    def __init__(self, with_pictures: LengthGroups, text_only: LengthGroups, num_text_only: int, num_samples: int):
        self.with_pictures, self.text_only = with_pictures, text_only
        self.num_text_only, self.num_samples = num_text_only, num_samples

    def __getitem__(self, step: int) -> list:
        before, after = (at * self.num_text_only // self.num_samples for at in (step, step + 1))  # batches of text alone before and after this step
        return self.text_only[before] if after > before else self.with_pictures[step - before]


def make_groups(samples, samples_of: Callable[[list[int]], list], length: Callable[[object], int], config, context: int):
    """What gives a step's samples: a list of them, or with `config.pack` a list of rows of them.

    `samples.indices` says which they are, `samples_of(indices)` makes something of them, and `length` counts the tokens of one.
    """

    def groups_of(num_samples: int, **chosen) -> LengthGroups:
        group = max(1, min(GROUP, num_samples // config.batch_size))  # no more than an epoch, lest a batch hold a record twice
        of_step = lambda step: samples_of(samples.indices(step, config.batch_size, config.seed, **chosen))
        return Packs(of_step, length, config.pack_length or context, group) if config.pack else LengthGroups(of_step, length, group)

    if not isinstance(samples, Epochs):  # scenes never end
        return groups_of(GROUP * config.batch_size)
    num_text_only = int((~samples.has_picture).sum())
    if config.pack or num_text_only in (0, len(samples)):
        return groups_of(len(samples))
    with_pictures, text_only = groups_of(len(samples) - num_text_only, pictures=True), groups_of(num_text_only, pictures=False)
    return ModalityGroups(with_pictures, text_only, num_text_only, len(samples))


class Batches:
    """The tensors of each step's batch: input_ids, labels, attention_mask (B, T) int64, and the pictures' pixel_values, or their vision_features
    from a cache.

    A picture that cannot be read, or a text that cannot be learnt from, is a UserError; with `skip_broken` in the settings the record is left out
    of its batch, and noted in OUT.
    """

    def __init__(self, samples, processor: Processor, config, context: int, features: FeatureCache | None = None):
        self.samples, self.processor, self.config, self.context, self.features = samples, processor, config, context, features
        self.left_out = LeftOut(Path(config.out), config.resume)
        self.groups = make_groups(samples, self._encoded, lambda pair: len(pair[0].input_ids), config, context)
        self.makers = ThreadPoolExecutor(config.workers, "batch") if config.workers else None
        self.pending: dict[int, Future] = {}

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        if self.makers is None:
            return self._make(step)
        for ahead in range(step, step + 1 + self.config.workers):
            if ahead not in self.pending:
                self.pending[ahead] = self.makers.submit(self._make, ahead)
        return self.pending.pop(step).result()

    def close(self) -> None:
        """Forget the batches that nobody will ask for, and say how many records were left out."""
        if self.makers is not None:
            self.makers.shutdown(wait=True, cancel_futures=True)
        self.left_out.report()

    # ------------------------------------------------------------------ which samples
    def _encoded(self, indices: list[int]) -> list[tuple[Encoded, int]]:
        pairs = [(self._unless_broken(self._encode, index), index) for index in indices]
        return [(encoded, index) for encoded, index in pairs if encoded is not None]

    def _encode(self, index: int) -> Encoded:
        sample = self.samples[index]
        num_image_tokens = self.processor.count_image_tokens(sample.picture)
        try:
            encoded = truncated(encode(self.processor.tokenizer, self.processor.template, sample.turns, num_image_tokens), self.context)
            if not supervised(encoded):
                raise UserError("it holds no answer to learn from")
        except UserError as error:
            raise UserError(f"the record {self.samples.label(index)}: {error}") from None
        return encoded

    # ------------------------------------------------------------------ their tensors
    def _make(self, step: int) -> dict[str, Tensor]:
        rows = self.groups[step] if self.config.pack else [[pair] for pair in self.groups[step]]
        rows = [[(encoded, self._unless_broken(self._pictures, index)) for encoded, index in row] for row in rows]
        rows = [row for row in ([pair for pair in row if pair[1] is not None] for row in rows) if row]
        if not rows:
            raise UserError(f"none of the records of step {step} can be used: {self.left_out.first()}")
        pictures = [images for row in rows for _, images in row if images]  # a text-only sample has none
        pictures = {name: torch.cat([images[name] for images in pictures]) for name in (pictures[0] if pictures else ())}
        return {**collate_rows([[encoded for encoded, _ in row] for row in rows]), **pictures}

    def _pictures(self, index: int) -> dict[str, Tensor]:
        picture = self.samples[index].picture
        return self.processor.image_inputs(picture) if picture is None or self.features is None else self.features.of(picture)

    def _unless_broken(self, use: Callable, index: int):
        """What `use` makes of a sample, or None where it is left out because that cannot be made."""
        try:
            return use(index)
        except UserError as error:
            if not self.config.skip_broken:
                raise UserError(f"{str(error).rstrip('.')}; --skip-broken leaves such records out") from None
            self.left_out.add(self.samples.label(index), str(error))
            return None


class LeftOut:
    """Records that a training could not use and why, one JSON object a line in OUT/left_out.jsonl; a resumed run goes on with the file."""

    def __init__(self, out: Path, resume: bool):
        self.path, self.lock = out / "left_out.jsonl", threading.Lock()
        found = self.path.read_text(encoding="utf-8").splitlines() if resume and self.path.exists() else ()
        self.lines = dict.fromkeys(found)  # a set that keeps its order

    def add(self, label: dict, why: str) -> None:
        """Written at once, since a run may be killed at any moment."""
        with self.lock:
            self.lines[json.dumps({**label, "why": why}, ensure_ascii=False)] = None
            write_atomically(self.path, "".join(line + "\n" for line in self.lines))

    def first(self) -> str:
        return json.loads(next(iter(self.lines)))["why"]

    def report(self) -> None:
        if not self.lines:
            if self.path.exists():  # an earlier run's
                self.path.unlink()
            return
        were = "1 record was" if len(self.lines) == 1 else f"{len(self.lines)} records were"
        print(f"{were} left out, see {self.path}; the first: {self.first()}")
