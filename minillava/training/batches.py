"""The batch of each step: which samples it holds, and its tensors, made ahead while the model computes.

Which samples a step sees follows from seed and step alone, whoever makes it: scenes in the order of their seeds;
LLaVA's JSON in a new order each epoch, in batches of like length that hold pictures or hold none (LLaVA-1.5, arXiv
2310.03744, section 3.3), or packed.

A thread makes one batch ahead, which serves a small model on a CPU. A fast GPU needs processes (`--workers`): a JPEG is
decoded outside Python's lock, but text is tokenized inside it, and in that time a training that starts thousands of
small kernels would stand still."""

import json
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minillava.config import LlavaConfig
from minillava.distributed import gather_objects, is_first, rank, together, world_size
from minillava.errors import UserError
from minillava.files import write_atomically
from minillava.inputs.conversation import IGNORE_INDEX, Encoded, encode
from minillava.inputs.processor import Processor
from minillava.training.features import FeatureCache
from minillava.training.lockstep import Part, in_step
from minillava.training.packing import Packs, collate_rows
from minillava.training.samples import Epochs, LengthGroups

GROUP = 8  # steps whose samples are sorted by length, or packed, together


def truncated(encoded: Encoded, context: int) -> Encoded:
    """Cut at the context, as the original does; the picture's tokens come first and are kept."""
    return replace(encoded, input_ids=encoded.input_ids[:context], labels=encoded.labels[:context])


def supervised(encoded: Encoded) -> bool:
    """Whether any token pays loss. The first one never does, since nothing comes before it."""
    return any(label != IGNORE_INDEX for label in encoded.labels[1:])


class ModalityGroups:
    """Batches with pictures and batches without, each of like length, in the proportion of the records and evenly
    spread.

    A batch of text alone needs no vision tower, and is not padded to the length of a picture's tokens.
    """

    def __init__(self, with_pictures: LengthGroups, text_only: LengthGroups, num_text_only: int, num_samples: int):
        self.with_pictures, self.text_only = with_pictures, text_only
        self.num_text_only, self.num_samples = num_text_only, num_samples

    def __getitem__(self, step: int) -> list:
        # batches of text alone before and after this step
        before, after = (at * self.num_text_only // self.num_samples for at in (step, step + 1))
        return self.text_only[before] if after > before else self.with_pictures[step - before]


def make_groups(
    samples, samples_of: Callable[[list[int]], list], length: Callable[[object], int], config, context: int
):
    """What gives a step's samples: a list of them, or with `config.pack` a list of rows of them.

    `samples.indices` says which they are, `samples_of(indices)` makes something of them, and `length` counts the tokens
    of one."""

    def groups_of(num_samples: int, **chosen) -> LengthGroups:
        # no more than an epoch, lest a batch hold a record twice
        group = max(1, min(GROUP, num_samples // config.batch_size))
        of_step = lambda step: samples_of(samples.indices(step, config.batch_size, config.seed, **chosen))
        return (
            Packs(of_step, length, config.pack_length or context, group)
            if config.pack
            else LengthGroups(of_step, length, group)
        )

    if not isinstance(samples, Epochs):  # scenes never end
        return groups_of(GROUP * config.batch_size)
    num_text_only = int((~samples.has_picture).sum())
    if config.pack or num_text_only in (0, len(samples)):
        return groups_of(len(samples))
    with_pictures, text_only = (
        groups_of(len(samples) - num_text_only, pictures=True),
        groups_of(num_text_only, pictures=False),
    )
    return ModalityGroups(with_pictures, text_only, num_text_only, len(samples))


@dataclass
class Made:
    """A step's tensors, or why there are none, and which records were found unusable on the way: (label, why)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    error: str = ""
    unusable: list[tuple[dict, str]] = field(default_factory=list)


class Batches:
    """The tensors of each step's batch: input_ids, labels, attention_mask (B, T) int64, and the pictures' pixel_values,
    or their vision_features from a cache. Of several processes each makes its own rows alone, every N-th, and has none
    ({}) where there are fewer.

    A picture that cannot be read, or a text that cannot be learnt from, is a UserError; with `skip_broken` in the
    settings the record is left out of its batch, and noted in OUT."""

    def __init__(self, samples, processor: Processor, config, context: int, features: FeatureCache | None = None):
        self.samples, self.processor, self.config, self.context, self.features = (
            samples,
            processor,
            config,
            context,
            features,
        )
        if config.workers and "fork" not in multiprocessing.get_all_start_methods():
            raise UserError("--workers needs a system whose processes can fork: leave it out")
        self.left_out = LeftOut(Path(config.out), config.resume)
        self.groups = make_groups(samples, self._encoded, lambda pair: len(pair[0].input_ids), config, context)
        self.unusable: list[tuple[dict, str]] = []  # found since the last batch
        self.thread = ThreadPoolExecutor(1, "batch")
        self.ahead: dict[int, Future] = {}
        self.workers, self.next_step = None, None

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        made = self._of_workers(step) if self.config.workers else self._of_thread(step)
        for label, why in made.unusable:
            self.left_out.add(label, why)
        if made.error:
            raise UserError(made.error)
        return made.tensors

    def parts(self, step: int, config: LlavaConfig) -> tuple[list[Part], int]:
        """The step's micro-batches with the number of supervised tokens in each, and how many these are in all
        processes together.
        """
        batch = together(lambda: self[step])
        if self.config.skip_broken:
            self.left_out.exchange()
        return in_step(batch, self.config.micro_batch_size, config, self.features is not None)

    def close(self) -> None:
        """End the thread and the processes, and say how many records were left out."""
        self.stop()
        self.left_out.report()

    def stop(self) -> None:
        """End the thread and the processes, with the batches that nobody will ask for."""
        self.workers = None
        self.thread.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------ who makes them
    def _of_thread(self, step: int) -> Made:
        made = self.ahead.pop(step, None) or self.thread.submit(self._made, step)
        self.ahead = {step + 1: self.thread.submit(self._made, step + 1)}
        return made.result()

    def _of_workers(self, step: int) -> Made:
        if self.workers is None or step != self.next_step:
            self.workers = self._start_workers(step)
        self.next_step = step + 1
        with killed_workers_told():
            return next(self.workers)

    def _start_workers(self, step: int) -> Iterator[Made]:
        """Processes that make the batches from `step` on: each every N-th, two of them ahead.

        Each tokenizes every group for itself.
        """
        with warnings.catch_warnings():
            # that the machine has fewer cores: how many processes is the user's choice
            warnings.simplefilter("ignore", UserWarning)
            return iter(
                DataLoader(
                    Steps(self._made),
                    batch_size=None,
                    sampler=range(step, sys.maxsize),
                    collate_fn=as_it_is,
                    num_workers=self.config.workers,
                    worker_init_fn=leave_signals_to_the_parent,
                    multiprocessing_context="fork",  # the records are shared, not copied
                    generator=torch.Generator(),  # not torch's own, from which dropout draws
                )
            )

    def _made(self, step: int) -> Made:
        try:
            made = Made(self._make(step))
        except UserError as error:
            made = Made(error=str(error))
        made.unusable, self.unusable = self.unusable, []
        return made

    # ------------------------------------------------------------ which samples
    def _encoded(self, indices: list[int]) -> list[tuple[Encoded, int]]:
        pairs = [(self._unless_broken(self._encode, index), index) for index in indices]
        return [(encoded, index) for encoded, index in pairs if encoded is not None]

    def _encode(self, index: int) -> Encoded:
        sample = self.samples[index]
        num_image_tokens = self.processor.count_image_tokens(sample.picture)
        try:
            encoded = truncated(
                encode(self.processor.tokenizer, self.processor.template, sample.turns, num_image_tokens), self.context
            )
            if not supervised(encoded):
                raise UserError("it holds no answer to learn from")
        except UserError as error:
            raise UserError(f"the record {self.samples.label(index)}: {error}") from None
        return encoded

    # ------------------------------------------------------------ their tensors
    def _make(self, step: int) -> dict[str, Tensor]:
        rows = self.groups[step] if self.config.pack else [[pair] for pair in self.groups[step]]
        rows = [
            [(encoded, self._unless_broken(self._pictures, index)) for encoded, index in row]
            for row in rows[rank() :: world_size()]
        ]
        rows = [row for row in ([pair for pair in row if pair[1] is not None] for row in rows) if row]
        if not rows and world_size() > 1:
            return {}
        if not rows:
            why = f": {self.unusable[-1][1]}" if self.unusable else ""
            raise UserError(f"none of the records of step {step} can be used{why}")
        pictures = [images for row in rows for _, images in row if images]  # a text-only sample has none
        pictures = {
            name: torch.cat([images[name] for images in pictures]) for name in (pictures[0] if pictures else ())
        }
        return {**collate_rows([[encoded for encoded, _ in row] for row in rows]), **pictures}

    def _pictures(self, index: int) -> dict[str, Tensor]:
        picture = self.samples[index].picture
        return (
            self.processor.image_inputs(picture)
            if picture is None or self.features is None
            else self.features.of(picture)
        )

    def _unless_broken(self, use: Callable, index: int):
        """What `use` makes of a sample, or None where it is left out because that cannot be made."""
        try:
            return use(index)
        except UserError as error:
            if not self.config.skip_broken:
                raise UserError(f"{str(error).rstrip('.')}; --skip-broken leaves such records out") from None
            self.unusable.append((self.samples.label(index), str(error)))
            return None


class Steps:
    """What DataLoader takes for a dataset: steps, made when they are asked for."""

    def __init__(self, made: Callable[[int], Made]):
        self.made = made

    def __getitem__(self, step: int) -> Made:
        return self.made(step)


def as_it_is(made: Made) -> Made:
    return made


def leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the running step still needs its batch.

    SIGTERM ends a process, as DataLoader expects.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def killed_workers_told() -> Iterator[None]:
    """A process that was killed is a UserError.

    DataLoader raises it in a signal handler, so wherever the training is.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process of --workers was killed, perhaps for want of memory or of /dev/shm: --resume with fewer goes on"
        ) from None


class LeftOut:
    """Records that a training could not use and why, one JSON object a line in OUT/left_out.jsonl; a resumed run goes
    on with the file.
    """

    def __init__(self, out: Path, resume: bool):
        self.path = out / "left_out.jsonl"
        found = self.path.read_text(encoding="utf-8").splitlines() if resume and self.path.exists() else ()
        self.lines = dict.fromkeys(found)  # a set that keeps its order
        self.exchanged = len(self.lines)

    def add(self, label: dict, why: str) -> None:
        self._add([json.dumps({**label, "why": why}, ensure_ascii=False)])

    def exchange(self) -> None:
        """Let every process know the records that the others found."""
        if world_size() > 1:
            self._add(chain.from_iterable(gather_objects(list(self.lines)[self.exchanged :])))
            self.exchanged = len(self.lines)

    def _add(self, lines: Iterable[str]) -> None:
        """Written at once, since a run may be killed at any moment."""
        known = len(self.lines)
        self.lines |= dict.fromkeys(lines)
        if is_first() and len(self.lines) > known:
            write_atomically(self.path, "".join(line + "\n" for line in self.lines))

    def first(self) -> str:
        return json.loads(next(iter(self.lines)))["why"]

    def report(self) -> None:
        if not is_first():
            return
        if not self.lines:
            if self.path.exists():  # an earlier run's
                self.path.unlink()
            return
        were = "1 record was" if len(self.lines) == 1 else f"{len(self.lines)} records were"
        print(f"{were} left out, see {self.path}; the first: {self.first()}")
