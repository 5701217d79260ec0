"""What can be learnt from which records: `train.py --check-data` reads all of them and reports; before a training, the
quick part of it.

A record is cut at the model's context, never within its picture's tokens: they come before the first answer, so a
record that is cut there holds no answer, and is left out.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minillava.data.records import named, read_records, sign_of_a_picture, tell_unnamed
from minillava.errors import UserError, shortened
from minillava.files import FolderListings
from minillava.inputs.conversation import Turn, encode, render
from minillava.inputs.image import open_image
from minillava.inputs.processor import Processor
from minillava.training.batches import supervised, truncated
from minillava.training.packing import arrange
from minillava.training.recipes import TrainConfig
from minillava.training.samples import Epochs, JsonSamples, turns_and_picture
from minillava.training.start import context_of, resolved, starting_point
from minillava.training.validation import is_held_out


def leave_out_unusable(samples: JsonSamples, processor: Processor, context: int, needs_picture: bool) -> None:
    """Take out the records that cannot be learnt from, and say how many there are, and how many will be cut at the
    context, before step 0.

    A text has at most as many tokens as bytes, so only long ones are tokenized here.
    """
    overhead = len(render(processor.template, [("user", ""), ("assistant", "")])) + 1
    image_tokens = most_image_tokens(processor)
    text_only, answerless, cut = set(), set(), 0
    for index in tqdm(range(len(samples)), desc="checking the records", leave=False, disable=None):
        if needs_picture and not samples.has_picture[index]:
            text_only.add(index)
            continue
        most = samples.num_bytes[index] + overhead * len(samples.records[index]["conversations"]) // 2
        if most + image_tokens * samples.has_picture[index] <= context:
            continue
        sample = samples[index]
        try:
            tokens, has_answer = count_tokens(
                processor, sample.turns, processor.count_image_tokens(sample.picture), context
            )
        except UserError:  # a picture that cannot be read is told when it is used
            continue
        if has_answer:
            cut += tokens > context
        else:
            answerless.add(index)
    for indices, why in (
        (text_only, "have no picture, and stage 1 learns from pictures"),
        (answerless, f"hold no answer within the model's context of {context} tokens"),
    ):
        if indices:
            print(f"{len(indices)} of {len(samples)} records are left out: they {why}")
    if cut:
        print(f"{cut} of {len(samples)} records are longer than the model's context and are cut at {context} tokens")
    samples.leave_out(text_only | answerless)


def count_tokens(processor: Processor, turns: list[Turn], image_tokens: int, context: int) -> tuple[int, bool]:
    """How many tokens a conversation has, and whether an answer to learn from is left when it is cut at the context."""
    encoded = encode(processor.tokenizer, processor.template, turns, image_tokens)
    return len(encoded.input_ids), supervised(truncated(encoded, context))


def most_image_tokens(processor: Processor) -> int:
    """At most how many tokens a picture takes; in LLaVA-NeXT one that fills the largest of the allowed sizes."""
    if not processor.image_grid_pinpoints:
        return processor.count_image_tokens((1, 1))
    side = processor.image_size // processor.patch_size
    shapes = [
        (height // processor.image_size * side, width // processor.image_size * side)
        for height, width in processor.image_grid_pinpoints
    ]
    return side**2 + max(height * (width + 1) for height, width in shapes)


# ------------------------------------------------------------ the whole report
@dataclass
class Findings:
    """What a file's records hold: the usable ones' token counts, and the others by what is wrong with them."""

    lengths: list[int] = field(default_factory=list)  # of the usable records, after the cut
    has_picture: list[bool] = field(default_factory=list)
    num_held_out: int = 0  # usable, but for validation
    num_cut: int = 0
    num_empty: int = 0  # usable, but with an answer that says nothing
    num_pictures: int = 0
    # {what is wrong: records, by position and id}
    stops: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken: dict[str, str] = field(default_factory=dict)  # {picture: what is wrong with it}
    unnamed: list[str] = field(default_factory=list)  # records that speak of a picture and name none


def check_data(config: TrainConfig) -> None:
    """Print what `train` would do with the records of `config.data`, every picture decoded; UserError if none can be
    trained on.
    """
    model, processor = starting_point(resolved(config), mapped=True)
    context = context_of(config, model)
    records = read_records(Path(config.data))
    found = examine(records, config, processor, context)
    print("\n".join(report(found, len(records), config, context)))
    tell_unnamed(config.data, len(records), found.unnamed)
    if not found.lengths:
        raise UserError(f"none of the records of {config.data} can be trained on")


def examine(records: list[dict], config, processor: Processor, context: int) -> Findings:
    """Read every record, then every picture, then count the tokens of what is whole."""
    found, images, folders = Findings(), Path(config.images) if config.images else None, FolderListings()
    whole: list[tuple[dict, str, list[Turn], str | None]] = []
    for index, record in enumerate(tqdm(records, desc="reading the records", leave=False, disable=None)):
        label = named(index, record)
        try:
            turns, name = turns_and_picture(record, images)
        except UserError as error:
            found.stops[str(error)].append(label)
            continue
        on_disk = name and folders.find(images, name)
        if name is None and (sign := sign_of_a_picture(record, turns)):
            found.unnamed.append(f"{label}: {sign}")
        if name is not None and on_disk is None:
            (found.left_out if config.skip_broken else found.stops)["the picture is not in --images"].append(
                f"{label}: {shortened(name, 80)}"
            )
        elif name is None and config.stage == 1:
            found.left_out["no picture, and stage 1 learns from pictures"].append(label)
        else:
            whole.append((record, label, turns, on_disk))
    sizes, found.broken = read_pictures(images, dict.fromkeys(name for *_, name in whole if name), config.workers)
    found.num_pictures = len(sizes) + len(found.broken)
    for record, label, turns, name in tqdm(whole, desc="counting the tokens", leave=False, disable=None):
        if name in found.broken:
            (found.left_out if config.skip_broken else found.stops)["the picture is broken"].append(
                f"{label}: {shortened(name, 80)}"
            )
            continue
        try:
            tokens, has_answer = count_tokens(processor, turns, processor.count_image_tokens(sizes.get(name)), context)
        except UserError as error:
            found.stops[str(error)].append(label)
            continue
        if not has_answer:
            found.left_out[f"no answer within the model's context of {context} tokens"].append(label)
            continue
        found.lengths.append(min(tokens, context))
        found.has_picture.append(name is not None)
        found.num_held_out += is_held_out(record, config.validation_share, config.seed)
        found.num_cut += tokens > context
        found.num_empty += any(speaker == "assistant" and not text.strip() for speaker, text in turns)
    return found


def read_pictures(
    images: Path | None, names: Iterable[str], workers: int
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """The sizes (width, height) of all pictures that can be decoded, and what is wrong with the others."""

    def read(name: str) -> tuple[int, int] | str:
        try:
            return open_image(images / name).size
        except UserError as error:
            return str(error)

    names = list(names)
    with ThreadPool(max(1, workers)) as pool:
        read_ahead = pool.imap(read, names, chunksize=16)
        results = dict(
            zip(names, tqdm(read_ahead, "reading the pictures", len(names), leave=False, disable=None), strict=True)
        )
    sizes = {name: result for name, result in results.items() if isinstance(result, tuple)}
    return sizes, {name: result for name, result in results.items() if isinstance(result, str)}


def report(found: Findings, num_records: int, config, context: int) -> list[str]:
    """The findings as lines to print."""
    lengths, has_picture = np.array(found.lengths, dtype=np.int64), np.array(found.has_picture, dtype=bool)
    lines = [f"{config.data}: {counted(num_records, 'record')}, of which {len(lengths)} can be trained on"]
    for title, problems in (
        ("the training stops at these; mend or remove them", found.stops),
        ("left out", found.left_out),
    ):
        lines += [f"{title}:"] if problems else []
        for problem, records in problems.items():
            lines.append(f"  {counted(len(records), 'record')}: {problem} (the first: {records[0]})")
    lines.append(
        f"{counted(found.num_pictures, 'picture')}, of which {len(found.broken)} cannot be read"
        + (":" if found.broken else "")
    )
    lines += [f"  {shortened(name, 80)}: {why}" for name, why in found.broken.items()]
    if not len(lengths):
        return lines
    if config.validation_share:
        lines.append(f"of those that can be trained on, {found.num_held_out} are for validation")
    lines.append(
        f"of those that can be trained on, {found.num_cut} are cut at {context} tokens, and {found.num_empty} hold an empty answer"
    )
    return [*lines, *length_table(lengths, has_picture), *padding(lengths, has_picture, config, context)]


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def length_table(lengths: np.ndarray, has_picture: np.ndarray, num_bins: int = 10) -> list[str]:
    """Percentiles of the token counts by modality, and a histogram."""
    lines = [f"{'tokens':14s}{'records':>9s}{'least':>8s}{'median':>8s}{'95 %':>8s}{'99 %':>8s}{'most':>8s}"]
    for name, chosen in (("with picture", lengths[has_picture]), ("text alone", lengths[~has_picture])):
        if len(chosen):
            low, median, high, higher, most = (round(value) for value in np.percentile(chosen, (0, 50, 95, 99, 100)))
            lines.append(f"{name:14s}{len(chosen):9d}{low:8d}{median:8d}{high:8d}{higher:8d}{most:8d}")
    width = max(1, -(-int(lengths.max()) // num_bins))
    counts = np.bincount((lengths - 1) // width, minlength=1)
    for number, count in enumerate(counts):
        bar = "#" * int(np.ceil(40 * count / counts.max()))
        lines.append(f"{number * width + 1:6d} to {(number + 1) * width:5d}{count:8d} {bar}".rstrip())
    return lines


def padding(lengths: np.ndarray, has_picture: np.ndarray, config, context: int, most_steps: int = 2000) -> list[str]:
    """How much of the batches is padding in an epoch: in random order, in batches of like length and modality, and
    packed.
    """
    samples, num_steps = Epochs(has_picture), min(most_steps, max(1, len(lengths) // config.batch_size))

    def share(mixed: bool, capacity: int = 0, by_length: bool = True) -> str:
        real = whole = 0
        for step in range(num_steps):
            group, place = samples.group(step, config.batch_size, config.seed, mixed)
            length = lengths.__getitem__ if by_length else lambda index: 0
            rows = arrange(list(group.indices), length, group.num_batches, capacity)[place]
            rows = [sum(lengths[index] for index in row) for row in rows]
            real, whole = real + sum(rows), whole + len(rows) * max(rows)
        return f"{100 * (1 - real / whole):.1f} %"

    random, batched, packed = share(True, by_length=False), share(False), share(True, context)
    how = f"{random} as they come, {batched} as they are batched, {packed} with --pack"
    return [f"padding in batches of {config.batch_size}: {how}"]
