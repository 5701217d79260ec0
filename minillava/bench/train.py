"""A training beside transformers' on the same model, samples and machine: samples a second, peak memory, MFU.

Both sides run AdamW on the same random weights of the shapes of --like (100m: a tower of 59M parameters, a language
model of 36M with 32,000 words; 1b fills one GPU) over the same samples, whose lengths are like those of LLaVA's data.
MFU, the model FLOPs utilization of PaLM (arXiv 2204.02311, appendix B), is the share of a large matrix product's speed,
measured in the same run, that the training reaches with the products it needs. transformers gets them as its
collator gives them, in random order and padded; minillava batches them as `train.py` does. Texts and pictures are ready
as tensors on both sides: this is about the model's steps. Each side is a process of its own, so that its memory can be
told, and they take turns, so that a busy machine is busy for both.
"""

import argparse
import importlib
import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from minillava.arguments import Parser
from minillava.bench.measure import matmul_peak, name_of, peak_memory, synchronize
from minillava.bench.sizes import LIKES, config_like
from minillava.config import LlavaConfig
from minillava.distributed import shard_parameters
from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX, Encoded
from minillava.model import Llava
from minillava.training import loss, set_trainable
from minillava.training.optimizers import make_optimizers
from minillava.training.packing import arrange
from minillava.training.precision import autocast, held_types, product_dtype
from minillava.training.recipes import LoopConfig
from minillava.training.tensors import collate
from minillava.weights import LAYOUTS, find_attention, find_device, rename

LOOP = LoopConfig(optimizer="adamw", learning_rate=1e-4)
SIDES = {
    1: ("minillava, cached features", "minillava", "transformers"),
    2: ("minillava", "minillava, packed", "transformers"),
}


@dataclass(frozen=True)
class Sample:
    encoded: Encoded
    picture: Tensor | None  # (1, 3, E, E)


def like_llava(stage: int, count: int, rng: np.random.Generator) -> list[tuple[str, int, int]]:
    """(kind, tokens before the answer, tokens of the answer), a picture's tokens not counted.

    Stage 1: captions. Stage 2: conversation, detail and reasoning in the proportions of LLaVA-Instruct-158K (58 : 23 :
    77), and 6% text alone, as in LLaVA-1.5's mix. The lengths are made up (normal, and log-normal for text alone up to
    the context): a shape, not a measurement.
    """

    def about(mean: float, deviation: float, low: int, high: int) -> int:
        return int(np.clip(rng.normal(mean, deviation), low, high))

    def text() -> tuple[int, int]:
        length = int(np.clip(rng.lognormal(6.2, 0.9), 60, 2048))
        return length // 3, length - length // 3

    draw = {
        "caption": lambda: (1, about(18, 6, 6, 60)),
        "conversation": lambda: (90 + about(60, 20, 15, 200), about(190, 70, 40, 600)),
        "detail": lambda: (55, about(140, 40, 40, 400)),
        "reasoning": lambda: (65, about(180, 60, 50, 500)),
        "text": text,
    }
    shares = (
        {"caption": 1.0} if stage == 1 else {"conversation": 0.345, "detail": 0.137, "reasoning": 0.458, "text": 0.06}
    )
    kinds = rng.choice(list(shares), count, p=list(shares.values()))
    return [(kind, *draw[kind]()) for kind in kinds]


def make_samples(config: LlavaConfig, stage: int, count: int, seed: int) -> list[Sample]:
    """Random ids and pictures of such lengths."""
    rng, E = np.random.default_rng(seed), config.vision_config.image_size
    samples = []
    for kind, before, answer in like_llava(stage, count, rng):
        image = [] if kind == "text" else [config.image_token_id] * config.num_image_tokens
        context = config.text_config.max_position_embeddings
        ids = [1, *image, *rng.integers(3, config.image_token_id, before + answer - 1).tolist()][:context]
        labels = [IGNORE_INDEX] * (len(image) + before) + ids[len(image) + before :]
        picture = torch.from_numpy(rng.standard_normal((1, 3, E, E), dtype=np.float32)) if image else None
        samples.append(Sample(Encoded(ids, labels[: len(ids)], ""), picture))
    return samples


# ------------------------------------------------------------ the two sides
class Ours:
    """minillava: batches of like length and one modality, or packed rows; the head on supervised positions alone;
    features from a cache.
    """

    def __init__(
        self, config: LlavaConfig, stage: int, samples: list[Sample], batch_size: int, packed: bool, cached: bool
    ):
        torch.manual_seed(0)
        self.model = Llava(config)
        set_trainable(self.model, stage)
        self.samples, self.batch_size, self.packed, self.cached = samples, batch_size, packed, cached
        self.optimizers = make_optimizers(self.model, LOOP)

    def to(self, device: torch.device, dtype: str) -> None:
        self.device, self.dtype, products = device, dtype, product_dtype(dtype, device)
        for part in (self.model.vision_tower, self.model.language_model):
            part.attention = find_attention("auto", device)
        shard_parameters(self.model, (), device, held_types(self.model, products), products)
        self.batches = [self._tensors(rows) for rows in self._rows()]

    def _rows(self) -> list[list[list[Sample]]]:
        """The rows of each batch: of one sample, or packed; text alone by itself unless it is packed."""
        length = lambda sample: len(sample.encoded.input_ids)
        kinds = (
            [self.samples]
            if self.packed
            else [[s for s in self.samples if (s.picture is None) == text_only] for text_only in (False, True)]
        )
        batches = []
        for samples in kinds:
            steps = -(-len(samples) // self.batch_size)
            capacity = self.model.config.text_config.max_position_embeddings if self.packed else 0
            batches += arrange(samples, length, steps, capacity) if samples else []
        return batches

    def _tensors(self, rows: list[list[Sample]]) -> dict[str, Tensor]:
        batch = collate([[sample.encoded for sample in row] for row in rows])
        pictures = [sample.picture for row in rows for sample in row if sample.picture is not None]
        if not pictures:
            return batch
        if not self.cached:
            return {**batch, "pixel_values": torch.cat(pictures)}
        with torch.no_grad(), autocast(self.dtype, self.device):
            features = [self.model.vision_tower(picture.to(self.device)).cpu() for picture in pictures]
        return {**batch, "vision_features": torch.cat(features)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return loss(self.model, batch)


class Theirs:
    """transformers: LlavaForConditionalGeneration with the same weights, batches in the samples' own order, padded on
    the right.
    """

    def __init__(self, config: LlavaConfig, stage: int, samples: list[Sample], batch_size: int):
        self.model = transformers_model(config)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = "multi_modal_projector" in name or (stage == 2 and "vision_tower" not in name)
        self.optimizers = make_optimizers(self.model, LOOP)
        self.samples, self.batch_size = samples, batch_size

    def to(self, device: torch.device, dtype: str) -> None:
        self.device, self.dtype = device, dtype
        self.model.to(device)
        self.batches = []
        for first in range(0, len(self.samples), self.batch_size):
            some = self.samples[first : first + self.batch_size]
            pictures = [sample.picture for sample in some if sample.picture is not None]
            pixels = {"pixel_values": torch.cat(pictures)} if pictures else {}
            self.batches.append({**collate([[sample.encoded] for sample in some]), **pixels})

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch, use_cache=False).loss


def transformers_model(config: LlavaConfig) -> nn.Module:
    """The peer, with the weights of `Llava` after torch.manual_seed(0). It is imported by its name: the product does
    without it, this measures it.
    """
    transformers = importlib.import_module("transformers")
    vision, text = vars(config.vision_config), vars(config.text_config)
    known = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    their_config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **{name: vision[name] for name in (*known, "image_size", "patch_size")}
        ),
        text_config=transformers.LlamaConfig(
            **{
                name: text[name]
                for name in (*known, "vocab_size", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
            },
            tie_word_embeddings=config.text_config.tie_word_embeddings,
        ),
        image_token_index=config.image_token_id,
        tie_word_embeddings=config.text_config.tie_word_embeddings,
    )
    model = transformers.LlavaForConditionalGeneration(their_config)
    torch.manual_seed(0)
    back = [(ours, theirs) for theirs, ours in LAYOUTS["transformers 5, in memory"]]
    renamed = {
        rename(name, sorted(back, key=lambda pair: -len(pair[0]))): tensor
        for name, tensor in Llava(config).state_dict().items()
    }
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise AssertionError(f"other names than ours: {missing[:3]} {unexpected[:3]}")
    return model.train()


def step(side: Ours | Theirs, batch: dict[str, Tensor]) -> float:
    """One optimizer step, as `loop.fit` does it; the loss."""
    batch = {name: tensor.to(side.device) for name, tensor in batch.items()}
    with autocast(side.dtype, side.device):
        value = side.loss(batch)
    value.backward()
    nn.utils.clip_grad_norm_([p for p in side.model.parameters() if p.requires_grad], LOOP.max_grad_norm)
    for optimizer in side.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = LOOP.learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value.item()


def model_flops(config: LlavaConfig, stage: int, samples: list[Sample], cached: bool = False) -> float:
    """Multiplications and additions that one pass over the samples needs, without padding, causal attention counted
    half, the head where it is asked.

    A trained matrix costs three products a token (forward, its input's gradient, its own), a frozen one that a gradient
    passes through two, the tower one. In stage 1 the gradient passes through the language model to the projector.
    """
    vision, text = config.vision_config, config.text_config
    blocks = vision.num_hidden_layers - 1  # layer -2
    patches, C = vision.num_patches + 1, vision.hidden_size
    tower = (
        blocks * (2 * patches * (4 * C * C + 2 * C * vision.intermediate_size) + 4 * patches**2 * C)
        + 2 * patches * C * 3 * vision.patch_size**2
    )
    V, C = text.vocab_size, text.hidden_size
    layer = (
        2 * C * text.head_dim * (text.num_attention_heads + text.num_key_value_heads) + 3 * C * text.intermediate_size
    )
    projector = config.vision_config.hidden_size * C + C * C
    products, total = (3 if stage == 2 else 2), 0.0
    for sample in samples:
        T, targets = len(sample.encoded.input_ids), sum(label != IGNORE_INDEX for label in sample.encoded.labels[1:])
        attention = 3 * 4 * T * T / 2 * text.head_dim * text.num_attention_heads
        total += (
            products * 2 * (text.num_hidden_layers * layer * T + V * C * targets) + text.num_hidden_layers * attention
        )
        if sample.picture is not None:
            total += 3 * 2 * projector * vision.num_patches + (0 if cached else tower)
    return total


# ------------------------------------------------------------ processes that take turns
@dataclass(frozen=True)
class Round:
    """A pass of one side over all samples."""

    seconds: float
    loss: float
    peak_bytes: int
    padding: float  # share of the tokens
    machine: float  # FLOP/s of a large matrix product, just after


def serve(connection, name: str, stage: int, options: argparse.Namespace, config: LlavaConfig) -> None:
    """One side, in its own process: a Round at each request, until "end" or until the parent is gone."""
    device = find_device(options.device)
    samples = make_samples(config, stage, options.samples, options.seed)
    if name == "transformers":
        importlib.import_module("transformers")  # what importing takes is no memory of the training
    before = peak_memory(device)
    if name == "transformers":
        side = Theirs(config, stage, samples, options.batch_size)
    else:
        side = Ours(config, stage, samples, options.batch_size, packed="packed" in name, cached="cached" in name)
    side.to(device, options.dtype)
    connection.send("ready")
    with suppress(EOFError):
        while connection.recv() == "go":
            synchronize(device)
            began = time.perf_counter()
            losses = [step(side, batch) for batch in side.batches]
            synchronize(device)
            seconds = time.perf_counter() - began
            masks = [batch["attention_mask"] for batch in side.batches]
            padding = sum(int((mask == 0).sum()) for mask in masks) / sum(mask.numel() for mask in masks)
            machine = matmul_peak(device, product_dtype(options.dtype, device))
            if device.type == "cuda":
                torch.cuda.empty_cache()  # for the others, whose turn comes now
            connection.send(Round(seconds, sum(losses) / len(losses), peak_memory(device) - before, padding, machine))


def compare(stage: int, options: argparse.Namespace, config: LlavaConfig) -> None:
    """Print the table of a stage."""
    context = multiprocessing.get_context("spawn")
    sides = {}
    for name in SIDES[stage]:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, name, stage, options, config), daemon=True)
        process.start()
        theirs.close()
        sides[name] = (process, ours)
    results: dict[str, list[Round]] = {name: [] for name in sides}
    try:
        for _, connection in sides.values():
            connection.recv()
        for _ in range(options.rounds):
            for name, (_, connection) in sides.items():
                connection.send("go")
                results[name].append(connection.recv())
    except (EOFError, ConnectionError):
        raise UserError(
            "a side's process ended early, perhaps because memory is short: try a smaller --batch-size"
        ) from None
    for process, connection in sides.values():
        connection.send("end")
        process.join()
    samples = make_samples(config, stage, options.samples, options.seed)
    machine = max(result.machine for rounds in results.values() for result in rounds)
    print(
        f"\nstage {stage}: {options.samples} samples, {options.batch_size} a step; a large matrix product runs at {machine / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':28s}{'samples/s':>10s}{'peak memory':>13s}{'padding':>9s}{'MFU':>11s}")
    for name, rounds in results.items():
        seconds = min(result.seconds for result in rounds)
        share = model_flops(config, stage, samples, "cached" in name) / seconds / machine
        held, padding = max(result.peak_bytes for result in rounds), rounds[0].padding
        print(
            f"{name:28s}{options.samples / seconds:10.2f}{held / 1e9:10.2f} GB{100 * padding:7.1f} %{100 * share:9.1f} %"
        )
    theirs = results["transformers"]
    for name in SIDES[stage][:-1]:
        faster = np.median([b.seconds / a.seconds for a, b in zip(results[name], theirs, strict=True)])
        smaller = max(a.peak_bytes for a in results[name]) / max(b.peak_bytes for b in theirs)
        print(
            f"{name}: {faster:.2f} times transformers' samples/s (median of {options.rounds} rounds), {smaller:.2f} of its memory"
        )


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m minillava.bench train", description=__doc__)
    parser.add_argument("--like", choices=LIKES, default="100m", help="whose shapes (default 100m)")
    parser.add_argument("--stage", type=int, choices=(1, 2), help="one stage alone")
    parser.add_argument("--samples", type=int, default=16, help="samples of a round (default 16)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples a step (default 8)")
    parser.add_argument("--rounds", type=int, default=2, help="passes over the samples, each side by turns (default 2)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the matrix products, as train.py's"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if min(options.samples, options.batch_size, options.rounds) < 1:
        raise UserError("--samples, --batch-size and --rounds must be at least 1")
    try:
        version = importlib.import_module("transformers").__version__
    except ImportError:
        raise UserError("the peer is not installed: pip install transformers") from None
    device = find_device(options.device)
    kind = name_of(device) + ("" if device.type == "cuda" else f", load {os.getloadavg()[0]:.1f}")
    print(f"{kind}; {product_dtype(options.dtype, device)}; torch {torch.__version__}, transformers {version}")
    for stage in (options.stage,) if options.stage else (1, 2):
        compare(stage, options, config_like(options.like))
