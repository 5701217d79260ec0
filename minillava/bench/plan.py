"""What a training takes: parameters, memory, FLOPs and hours of a recipe's stages, from the shapes alone.

The model is built on the meta device, where tensors have shapes and no numbers. Several GPUs have an equal share each
of the parameters, gradients and optimizer states (distributed.py). Multiplications and additions count as two
operations; only matrix products count, as in PaLM (arXiv 2204.02311, appendix B), whose model FLOPs utilization (MFU)
leaves out what is computed again in the backward pass.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minillava.arguments import expect, option
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.lora import LoRALinear, add_lora
from minillava.model import Llava
from minillava.training.loss import CHUNK
from minillava.training.precision import held_types
from minillava.training.recipes import RECIPES, Stage, steps_of
from minillava.weights.hf_config import read_config
from minillava.weights.random import SIZES

A100 = 312.0  # TFLOP/s of bfloat16


@dataclass(frozen=True)
class Paper:
    """What the original trained on in one stage of a recipe."""

    records: int
    text_tokens: int  # a sample's mean, besides the picture's: our assumption, since neither paper tells
    # of a caption, besides the picture's tokens, an assumption too; None: conversations fill the context
    longest_text: int | None
    # by size, on 8 A100: the paper's for v1, whose model is the 13B; the original code's README for v1.5
    hours: dict[str, float]


PAPERS = {
    ("v1", 1): Paper(595_375, 20, 128, {"llava-1.5-13b": 4}),
    ("v1", 2): Paper(157_712, 250, None, {"llava-1.5-13b": 10}),
    ("v1.5", 1): Paper(558_128, 20, 128, {"llava-1.5-7b": 3.5, "llava-1.5-13b": 5.5}),
    ("v1.5", 2): Paper(665_298, 270, None, {"llava-1.5-7b": 10, "llava-1.5-13b": 20}),
}
PAPERS["v1.5-lora", 1], PAPERS["v1.5-lora", 2] = PAPERS["v1.5", 1], replace(PAPERS["v1.5", 2], hours={})
PAPER_GPUS = 8
# LLaVA-NeXT has several views a picture
LIKES = tuple(name for name, values in SIZES.items() if values["model_type"] == "llava")


@dataclass(frozen=True)
class PlanConfig:
    """The flags of `plan`."""

    recipe: str = option("v1.5", "whose stages and settings", choices=tuple(RECIPES))
    like: str = option("llava-1.5-7b", "whose shapes", choices=LIKES)
    stage: int = option(0, "1 or 2 alone (0: both)", choices=(0, 1, 2))
    gpus: int = option(8, "over which all is sharded")
    records: int = option(0, "of the data (0: as many as the paper's)")
    gpu_memory: float = option(80.0, "GB (1e9 bytes) of a GPU")
    peak: float = option(A100, "TFLOP/s of a GPU in bfloat16; 312 is an A100")
    mfu: float = option(0.4, "share of the peak that the training reaches")
    tokens_per_sample: int = option(
        0, "mean, the picture's too (0: the picture's, and 20 to 270 of text, which is an assumption)"
    )

    _expect = expect

    def __post_init__(self):
        if (self.recipe, self.stage or 1) not in PAPERS:
            raise UserError(
                f"--recipe {self.recipe} has no planned number of records: give one of {', '.join(dict.fromkeys(r for r, _ in PAPERS))}"
            )
        self._expect("gpus", self.gpus >= 1, "at least 1")
        for name in ("records", "tokens_per_sample"):
            self._expect(name, getattr(self, name) >= 0, "0 or more")
        for name in ("gpu_memory", "peak"):
            self._expect(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._expect("mfu", 0 < self.mfu <= 1, "above 0 and at most 1")


# ------------------------------------------------------------ model
def config_of(recipe: str, like: str) -> LlavaConfig:
    """The shapes of `like` with the recipe's projector; v1 reads pictures of 224 pixels, 256 tokens, as the paper's
    model did.
    """
    config = read_config(SIZES[like])
    config = replace(config, projector_type=RECIPES[recipe][1].defaults["projector"])
    return replace(config, vision_config=replace(config.vision_config, image_size=224)) if recipe == "v1" else config


def meta_model(config: LlavaConfig, trained: tuple[str, ...], lora_r: int = 0) -> Llava:
    """The model without numbers, in which the parameters learn whose names begin so, the language model's by LoRA if it
    has a rank.
    """
    with torch.device("meta"):
        model = Llava(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(trained)
    if lora_r:
        add_lora(model.language_model, lora_r, 1.0, 0.0, seed=0)
    return model


def num_parameters(module: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


# ------------------------------------------------------------ memory
def memory(model: Llava, gpus: int, rows: int, tokens: int, lora_dropout: float = 0.0) -> dict[str, float]:
    """Bytes on each GPU, which computes `rows` rows of `tokens` tokens at once with activation checkpointing, by what
    they are for.

    Matrix products are in bfloat16, under autocast; precision.py says what is held in which type.
    """
    text = model.config.text_config
    C, I, V = text.hidden_size, text.intermediate_size, text.vocab_size
    types, trained = held_types(model, torch.bfloat16), num_parameters(model, trained=True)
    held = {name: p.numel() * types[name].itemsize for name, p in model.named_parameters()}
    # of a layer: FSDP's root gathers them, and keeps them until the step's end
    outside = [name for name in held if ".layers." not in name]
    outside_gradients = sum(
        4 * p.numel() for name, p in model.named_parameters() if name in outside and p.requires_grad
    )
    layer_learns = num_parameters(model.language_model.layers[0], trained=True)
    layer, head = max(map(num_parameters, model.language_model.layers)), V * C
    head_learns = (model.language_model.lm_head or model.language_model.embed_tokens).weight.requires_grad
    return {
        "parameters": sum(held.values()) / gpus,
        "gradients, float32": 4 * trained / gpus,
        "AdamW's two means, float32": 8 * trained / gpus,
        # in bfloat16 the layer that runs, the next one, and the gradient of one, which is summed in float32; one GPU
        # has nothing to gather
        "gathered, and gradients of it": 2 * 2 * layer
        + 6 * layer_learns
        + sum(map(held.get, outside))
        + outside_gradients
        if gpus > 1
        else 0,
        "autocast's copies of what learns": 2 * trained if gpus == 1 else 0,  # FSDP's layers are in bfloat16 already
        "layers' inputs, kept": rows * tokens * kept_bytes(text.num_hidden_layers, C),
        "one layer, run again": rows
        * tokens
        * (saved_bytes(C, I) + gradient_bytes(C, I) + bool(lora_dropout) * dropout_bytes(C, I)),
        # a chunk's logits, twice in float32 and twice in bfloat16; the head in bfloat16, its gradient twice; the hidden
        # states and their gradient
        "loss in chunks": 12 * max(CHUNK, V) + head * (2 + 8 * head_learns) + rows * tokens * 10 * C,
    }


def kept_bytes(layers: int, C: int) -> int:
    """Bytes of a token, until the backward pass: each layer's input, and the last norm's input and result.

    RMSNorm and the sums are in float32.
    """
    return 4 * C * (layers + 2)


def saved_bytes(C: int, I: int) -> int:
    """Bytes of a token: what a layer of our kernels saves besides its input, when it runs again for its backward pass; less
    where it is frozen.

    float32: the input of the second norm (4C). bfloat16: what both norms give (4C), q, k, v and attention's result
    (8C); gate, up and what SwiGLU makes of them (6I).
    """
    return 16 * C + 6 * I


def dropout_bytes(C: int, I: int) -> int:
    """Bytes of a token: the inputs that LoRA's dropout changes, six of width C and one of width I, in bfloat16, and which of
    them it kept.
    """
    return 3 * (6 * C + I)


def gradient_bytes(C: int, I: int) -> int:
    """Bytes of a token: the gradients that are alive at once in a layer's backward pass, the residual's in float32 and three
    of width I in bfloat16.
    """
    return 4 * C + 6 * I


# ------------------------------------------------------------ FLOPs
def flops(model: Llava, tokens: int, supervised: int) -> tuple[int, int]:
    """(model FLOPs, FLOPs of computing again) of one sample with one picture: `tokens` tokens, of which `supervised` go
    through the head.

    A linear map costs 2 x weights a token forward, as much again for its input's gradient, where something before it
    learns, and as much again for its weight's, where that learns. So frozen layers behind a learning projector cost two
    thirds of learning ones. Attention's two products cost 4 T^2 C, counted without regard to the causal mask, and twice
    that backward.
    """
    vision, text = model.vision_tower, model.language_model
    blocks = vision.feature_layer if vision.feature_layer >= 0 else len(vision.layers) + 1 + vision.feature_layer
    P, T = model.config.vision_config.num_patches, tokens
    tower_scores = 4 * (P + 1) ** 2 * vision.config.hidden_size
    scores = 4 * T**2 * text.config.num_attention_heads * text.config.head_dim
    head = text.lm_head or text.embed_tokens
    parts = [(vision.embeddings, P, 0), *((layer, P + 1, tower_scores) for layer in vision.layers[:blocks])]
    parts += [(model.projector, model.config.num_image_tokens, 0), (text.embed_tokens, 0, 0)]
    parts += [*((layer, T, scores) for layer in text.layers), (head, supervised, 0)]
    total, again, learnt = 0, 0, False  # learnt: whether a parameter learns, of those so far
    for part, num_tokens, scores in parts:
        forward = product = 0
        for module in part.modules():  # in the order in which they run
            for matrix in matrices_of(module, head):
                product = 2 * matrix.numel() * num_tokens
                forward += product
                # pixels have none
                gradient_of_input = matrix is getattr(module, "lora_B", None) or (
                    learnt and not isinstance(module, nn.Conv2d)
                )
                total += product * (1 + matrix.requires_grad + gradient_of_input)
            learnt = learnt or any(p.requires_grad for p in module.parameters(recurse=False))
        total += scores * (3 if learnt else 1)
        # a checkpointed layer; nothing saved the last product, so that the second run stops before it
        if scores and learnt:
            again += forward + scores - product
    return total, again


def matrices_of(module: nn.Module, head: nn.Module) -> list[Tensor]:
    """The matrices that the module itself multiplies with, in the order in which it does."""
    if isinstance(module, LoRALinear):
        return [module.lora_A, module.weight, module.lora_B]
    return [module.weight] if isinstance(module, nn.Linear | nn.Conv2d) or module is head else []


# ------------------------------------------------------------ report
@dataclass(frozen=True)
class Plan:
    """The figures of one stage."""

    parameters: int
    trained: int
    records: int
    epochs: float
    batch_size: int
    rows: int  # a GPU computes at once
    longest: int  # tokens that the longest row holds
    memory: dict[str, float]
    fewest_gpus: int | None  # None: rows and layers alone are too large
    steps: int
    tokens_per_sample: int
    flops_per_step: float  # of the model
    hardware_flops_per_step: float  # with what is computed again
    hours: float
    paper_hours: float | None
    paper_mfu: float | None  # which those hours imply, by our FLOPs


def plan(config: PlanConfig, number: int, stage: Stage) -> Plan:
    settings, paper = stage.defaults, PAPERS[config.recipe, number]
    shapes = config_of(config.recipe, config.like)
    model = meta_model(shapes, stage.trained, settings.get("lora_r", 0))
    batch_size, epochs, P = settings["batch_size"], settings["epochs"], shapes.num_image_tokens
    context = min(settings["max_length"], shapes.text_config.max_position_embeddings)
    tokens = config.tokens_per_sample or P + paper.text_tokens
    if not P < tokens <= context:
        raise UserError(f"--tokens-per-sample must be above a picture's {P} tokens and at most {context}, not {tokens}")
    longest = max(tokens, min(context, P + paper.longest_text)) if paper.longest_text else context
    if config.gpus > batch_size:
        raise UserError(
            f"--gpus {config.gpus} is more than stage {number}'s batch of {batch_size} samples: give at most so many"
        )

    def rows(gpus: int) -> int:
        return min(settings["micro_batch_size"], -(-batch_size // gpus))

    def held(gpus: int) -> dict[str, float]:
        return memory(model, gpus, rows(gpus), longest, settings.get("lora_dropout", 0.0))

    def fits(gpus: int) -> bool:
        return sum(held(gpus).values()) <= config.gpu_memory * 1e9

    computed, again = (batch_size * count for count in flops(model, tokens, tokens - P))
    steps = steps_of(epochs, config.records or paper.records, batch_size)
    paper_hours = paper.hours.get(config.like)
    paper_flops = computed * steps_of(epochs, paper.records, batch_size)
    return Plan(
        parameters=num_parameters(model),
        trained=num_parameters(model, trained=True),
        records=config.records or paper.records,
        epochs=epochs,
        batch_size=batch_size,
        rows=rows(config.gpus),
        longest=longest,
        memory=held(config.gpus),
        fewest_gpus=next(filter(fits, range(1, batch_size + 1)), None),
        steps=steps,
        tokens_per_sample=tokens,
        flops_per_step=computed,
        hardware_flops_per_step=computed + again,
        hours=hours(computed * steps, config.gpus, config.peak, config.mfu),
        paper_hours=paper_hours,
        paper_mfu=hours(paper_flops, PAPER_GPUS, A100, 1.0) / paper_hours if paper_hours else None,
    )


def hours(flops: float, gpus: int, peak: float, mfu: float) -> float:
    return flops / (gpus * peak * 1e12 * mfu) / 3600


def report(config: PlanConfig) -> str:
    """The plan as a table, a column for each stage."""
    stages = [config.stage] if config.stage else sorted(RECIPES[config.recipe])
    plans = [plan(config, number, RECIPES[config.recipe][number]) for number in stages]
    lines = [
        f"recipe {config.recipe}, {config.like}, {config.gpus} x {config.gpu_memory:g} GB at {config.peak:g} TFLOP/s",
        "",
    ]

    def row(name: str, value) -> None:
        lines.append(f"{name:<38}" + "".join(f"{value(p):>18}" for p in plans))

    lines.append(" " * 38 + "".join(f"{f'stage {number}':>18}" for number in stages))
    row("parameters", lambda p: f"{p.parameters:,}")
    row("  that learn", lambda p: f"{p.trained:,}")
    row("records x epochs", lambda p: f"{p.records:,} x {p.epochs:g}")
    row("tokens of the longest row", lambda p: f"{p.longest:,}")
    row("batch; rows a GPU computes at once", lambda p: f"{p.batch_size}; {p.rows}")
    lines.append("GB on each GPU")
    for name in plans[0].memory:
        row(f"  {name}", lambda p, name=name: f"{p.memory[name] / 1e9:.2f}")
    row("  total", lambda p: f"{sum(p.memory.values()) / 1e9:.2f}")
    row(
        f"  fits {config.gpu_memory:g} GB",
        lambda p: "yes" if sum(p.memory.values()) <= config.gpu_memory * 1e9 else "NO",
    )
    row("  GPUs at least", lambda p: "none do" if p.fewest_gpus is None else str(p.fewest_gpus))
    row("steps", lambda p: f"{p.steps:,}")
    row("tokens a sample, assumed", lambda p: f"{p.tokens_per_sample:,}")
    row("tokens", lambda p: f"{p.steps * p.batch_size * p.tokens_per_sample / 1e6:,.0f}M")
    row("PFLOP a step, of the model", lambda p: f"{p.flops_per_step / 1e15:,.2f}")
    row("  with what is computed again", lambda p: f"{p.hardware_flops_per_step / 1e15:,.2f}")
    row(f"hours at {config.mfu:.0%} MFU", lambda p: f"{p.hours:,.1f}")
    row("the original's hours on 8 A100", lambda p: f"{p.paper_hours:g}" if p.paper_hours else "-")
    row("  the MFU that these imply", lambda p: f"{p.paper_mfu:.0%}" if p.paper_mfu else "-")
    return "\n".join([*lines, "", *notes(config)])


def notes(config: PlanConfig) -> list[str]:
    given = "is as given" if config.tokens_per_sample else "is an assumption, not a measurement"
    return [
        f"The mean of tokens a sample {given}: hours and MFU go with it. Every sample has one picture, and nothing is padding.",
        "Memory is for a batch of the longest rows. What learns is held in float32, a frozen matrix in bfloat16, and all is sharded by FSDP.",
        "The allocator's own, the frozen tower's forward pass and NCCL come on top: leave a tenth free.",
    ]
