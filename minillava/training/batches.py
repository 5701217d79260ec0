"""The batch of each step: which samples it holds, and its tensors, made ahead while the model computes.

Which samples a step sees follows from seed and step alone, whoever makes it: scenes in the order of their seeds;
LLaVA's JSON in a new order each epoch, in batches of like length that hold pictures or hold none (LLaVA-1.5, arXiv
2310.03744, section 3.3), or packed.

A thread makes one batch ahead, which serves a small model on a CPU. A fast GPU needs processes (`--workers`): a JPEG is
decoded outside Python's lock, but text is tokenized inside it, and in that time a training that starts thousands of
small kernels would stand still.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minillava.config import LlavaConfig
from minillava.distributed import agree, rank, world_size
from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX, Encoded, encode
from minillava.inputs.processor import Processor
from minillava.training.ahead import Ahead, Made
from minillava.training.features import FeatureCache
from minillava.training.left_out import LeftOut
from minillava.training.packing import batches_of
from minillava.training.tensors import Batch, collate, in_step


def truncated(encoded: Encoded, context: int) -> Encoded:
    """Cut at the context, as the original does; the picture's tokens come first and are kept."""
    return replace(encoded, input_ids=encoded.input_ids[:context], labels=encoded.labels[:context])


def supervised(encoded: Encoded) -> bool:
    """Whether any token pays loss. The first one never does, since nothing comes before it."""
    return any(label != IGNORE_INDEX for label in encoded.labels[1:])


# ------------------------------------------------------------ the batches
@dataclass(frozen=True)
class Item:
    """A sample as token ids, its index and its picture."""

    encoded: Encoded
    index: int
    picture: object

    def __len__(self) -> int:
        return len(self.encoded.input_ids)


class Batches:
    """The tensors of each step's batch: input_ids, labels, attention_mask (B, T) int64, and the pictures' pixel_values,
    or their vision_features from a cache. Of several processes each makes its own rows alone, every N-th. There are
    none ({}) where no record of the step can be used.

    A picture that cannot be read, or a text that cannot be learnt from, is a UserError; with `skip_broken` in the
    settings the record is left out of its batch, and noted in OUT.
    """

    def __init__(self, samples, processor: Processor, config, context: int, features: FeatureCache | None = None):
        self.samples, self.processor, self.config = samples, processor, config
        self.context, self.features = context, features
        self.left_out = LeftOut(Path(config.out), config.resume)
        self.unusable: list[tuple[dict, str]] = []  # found since the last batch
        self.arranged: dict[tuple, list[list[list[Item]]]] = {}  # the last groups' batches
        self.ahead = Ahead(self._made, config.workers)

    def __getitem__(self, step: int) -> Batch:
        made = self.ahead[step]
        for label, why in made.unusable:
            self.left_out.add(label, why)
        if made.error:
            raise UserError(made.error)
        return made.tensors

    def parts(self, step: int, config: LlavaConfig) -> list[tuple[Batch, float]]:
        """The step's micro-batches, each with its share of the loss; none where no record of the step can be used.

        The losses, times these shares, add up to that of the batch, of which several processes take the mean.
        """
        parts, total = self.counted_parts(step, config)
        return [(part, count * world_size() / total) for part, count in parts] if total else []

    def counted_parts(self, step: int, config: LlavaConfig) -> tuple[list[tuple[Batch, int]], int]:
        """The same with the number of supervised tokens in each, and how many these are in all processes together."""
        batch = agree(lambda: self[step])
        if self.config.skip_broken:
            self.left_out.exchange()
        return in_step(batch, self.config.micro_batch_size, config, self.features is not None)

    def close(self) -> None:
        """End the thread or the processes, and say how many records were left out."""
        self.ahead.close()
        self.left_out.report()

    def rows(self, step: int) -> list[list[Item]]:
        """The rows of a step's batch, those of all processes: one sample each, or several that are packed."""
        config = self.config
        group, place = self.samples.group(step, config.batch_size, config.seed, config.pack)
        if group.key not in self.arranged:
            batches = batches_of(group, self._items(group.indices), len, self.context if config.pack else 0)
            self.arranged = {**dict(list(self.arranged.items())[-1:]), group.key: batches}
        return self.arranged[group.key][place]

    def _made(self, step: int) -> Made:
        try:
            made = Made(self._tensors(step))
        except UserError as error:
            made = Made(error=str(error))
        made.unusable, self.unusable = self.unusable, []
        return made

    def _tensors(self, step: int) -> Batch:
        rows = [[(item, self._unless_broken(self._pictures, item)) for item in row] for row in self._own_rows(step)]
        rows = [row for row in ([pair for pair in row if pair[1] is not None] for row in rows) if row]
        if not rows:
            return {}
        pictures = [images for row in rows for _, images in row if images]  # a text-only sample has none
        pictures = {
            name: torch.cat([images[name] for images in pictures]) for name in (pictures[0] if pictures else ())
        }
        return {**collate([[item.encoded for item, _ in row] for row in rows]), **pictures}

    def _own_rows(self, step: int) -> list[list[Item]]:
        return self.rows(step)[rank() :: world_size()]

    def _items(self, indices: Iterable[int]) -> list[Item]:
        items = [self._unless_broken(self._item, index) for index in indices]
        return [item for item in items if item is not None]

    def _item(self, index: int) -> Item:
        sample = self.samples[index]
        num_image_tokens = self.processor.count_image_tokens(sample.picture)
        try:
            encoded = encode(self.processor.tokenizer, self.processor.template, sample.turns, num_image_tokens)
            encoded = truncated(encoded, self.context)
            if not supervised(encoded):
                raise UserError("it holds no answer to learn from")
        except UserError as error:
            raise UserError(f"the record {self.samples.label(index)}: {error}") from None
        return Item(encoded, index, sample.picture)

    def _pictures(self, item: Item) -> Batch:
        cached = item.picture is not None and self.features is not None
        return self.features.of(item.picture) if cached else self.processor.image_inputs(item.picture)

    def _unless_broken(self, use: Callable, thing: Item | int):
        """What `use` makes of a sample, or None where it is left out because that cannot be made."""
        try:
            return use(thing)
        except UserError as error:
            if not self.config.skip_broken:
                raise UserError(f"{str(error).rstrip('.')}; --skip-broken leaves such records out") from None
            index = thing if isinstance(thing, int) else thing.index
            self.unusable.append((self.samples.label(index), str(error)))
            return None
