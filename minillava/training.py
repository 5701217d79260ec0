"""Training: the loop that all of the project's trainings share, and LLaVA's two stages.

Visual Instruction Tuning (arXiv 2304.08485), section 4.2; hyperparameters in its appendix and in LLaVA-1.5's (arXiv 2310.03744), Table 9.
Stage 1, feature alignment: only the projector learns, from captions. Stage 2, visual instruction tuning: projector and language model learn, from
conversations. The tower is frozen in both. The loss is on the answers and their end tokens alone.

Which samples a step sees follows from the seed and the step's number alone, and there is no dropout: a run that was killed and resumed is the
run that was not, bit for bit (on the CPU).
"""

import itertools
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import safe_open, save_file
from torch import Tensor, nn
from tqdm import tqdm

from minillava import weights
from minillava.arguments import option
from minillava.config import LlavaConfig
from minillava.conversation import IGNORE_INDEX, Encoded, encode
from minillava.data.dataset import JsonSamples, LengthGroups, Sample, SceneSamples, collate
from minillava.errors import UserError
from minillava.files import write_atomically
from minillava.generation import generate
from minillava.model import Llava
from minillava.processor import Processor
from minillava.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoopConfig:
    """What every training needs to know."""

    out: str = option("", "folder for the weights, metrics.jsonl, loss.png and the checkpoint")
    max_steps: int = option(1000, "optimizer steps")
    batch_size: int = option(32, "samples a step")
    learning_rate: float = option(1e-3, "peak of the schedule: warm-up, then half a cosine down to 0")
    warmup_ratio: float = option(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = option(0.0, "AdamW's, on matrices only")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    save_every: int = option(500, "steps between checkpoints")
    seed: int = option(0, "of the new weights and of the samples' order")
    dtype: str = option("auto", "of the matrix products: float32, bfloat16 (weights stay float32), or auto: bfloat16 where the machine has it")
    resume: bool = option(False, "go on from the checkpoint in --out")

    def __post_init__(self):
        for name in ("max_steps", "batch_size", "save_every"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            self._expect(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._expect("warmup_ratio", 0 <= self.warmup_ratio <= 1, "from 0 to 1")
        self._expect("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        self._expect("dtype", self.dtype in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")

    def _expect(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise UserError(f"--{name.replace('_', '-')} must be {allowed}, not {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """The two stages. The defaults are the tiny model's on the tiny world."""

    stage: int = option(0, "1: the projector learns from captions; 2: projector and language model learn from conversations", choices=(1, 2))
    data: str = option("", "LLaVA JSON; without it, endless scenes of the tiny world")
    images: str = option("", "folder in which the pictures of --data lie")
    weights: str = option("", "folder of the LLaVA to start from")
    vision: str = option("", "folder of a CLIP tower to start from, with --language")
    language: str = option("", "folder of a LLaMA to start from, with --vision")
    projector: str = option("mlp2x_gelu", "kind of a new projector", choices=("linear", "mlp2x_gelu"))
    template: str = option("", "conversation template of stage 2 (stage 1 is always plain); without it, the starting folder's")
    device: str = option("auto", "cpu, cuda, or auto")


STAGES = {  # what made weights/tiny, on two CPU cores: 5 minutes and 40
    1: dict(out="weights/tiny-stage1", max_steps=1000, batch_size=32, learning_rate=2e-3),
    2: dict(out="weights/tiny", max_steps=2600, batch_size=16, learning_rate=1e-3, weight_decay=0.05),
}


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(config.max_steps * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.max_steps - warmup)))


def autocast(dtype: str, device: torch.device):
    """Matrix products in bfloat16 where that is faster; weights, norms and the loss stay in float32."""
    if dtype == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype = "bfloat16" if fast else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def loss(model, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the supervised tokens. batch: input_ids, labels (-100 = no loss), attention_mask (B, T), pixel_values, image_sizes.

    Position t predicts label t + 1. The head runs on the supervised positions alone.
    """
    embeds = model.embed(batch["input_ids"], batch.get("pixel_values"), batch.get("image_sizes"))  # (B, T, C)
    return text_loss(model.language_model, embeds, batch)


def text_loss(language_model, embeds: Tensor, batch: dict[str, Tensor]) -> Tensor:
    hidden = language_model.hidden_states(embeds, batch.get("attention_mask"))  # (B, T, C)
    targets = batch["labels"][:, 1:]
    supervised = targets != IGNORE_INDEX  # (B, T - 1)
    if not supervised.any():
        raise ValueError("no token of this batch is supervised: every label is -100")
    logits = language_model.logits(hidden[:, :-1][supervised])  # (N, V)
    return F.cross_entropy(logits.float(), targets[supervised])


@torch.inference_mode()
def answers_right(language_model, embeds: Tensor, batch: dict[str, Tensor]) -> float:
    """Share of the batch's answers of which every token is the model's first choice, the true ones before it given."""
    targets = batch["labels"][:, 1:]
    guesses = language_model.logits(language_model.hidden_states(embeds, batch.get("attention_mask"))[:, :-1]).argmax(-1)  # (B, T - 1)
    answers = right = 0
    for labels, hits in zip((targets != IGNORE_INDEX).tolist(), (guesses == targets).tolist(), strict=True):
        for supervised, run in itertools.groupby(zip(labels, hits, strict=True), key=lambda pair: pair[0]):
            answers += supervised
            right += supervised and all(hit for _, hit in run)
    return round(right / max(1, answers), 4)


def fit(module: nn.Module, batch_loss: Callable[[int], Tensor], config: LoopConfig, save: Callable[[], None], watch: Callable[[int], dict]) -> None:
    """Train the parameters of `module` that require a gradient.

    `batch_loss(step)` computes the loss of the step's batch; `save()` writes the weights folder; `watch(step)`, at each save, returns further
    figures for the log.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    device = next(iter(parameters.values())).device
    first = load_checkpoint(out, parameters, optimizer, config) if config.resume else 0
    metrics = Metrics(out / "metrics.jsonl", first)
    bar = tqdm(range(first, config.max_steps), initial=first, total=config.max_steps, unit="step", dynamic_ncols=True)
    for step in bar:
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        with autocast(config.dtype, device):
            value = batch_loss(step)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise UserError(f"the gradient is not finite at step {step}: lower --learning-rate, or look at this step's data")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        metrics.add(step=step, loss=value.item(), lr=group["lr"], grad_norm=norm.item(), samples_per_second=config.batch_size / seconds)
        bar.set_postfix(loss=f"{metrics.smooth_loss:.3f}", samples_s=f"{config.batch_size / seconds:.0f}")
        if (step + 1) % config.save_every == 0 or step + 1 == config.max_steps:
            figures = watch(step)
            metrics.add(step=step, **figures)
            bar.write(f"step {step + 1}: loss {metrics.smooth_loss:.3f}")
            for name, value in figures.items():
                bar.write(f"  {name}: {value}")
            metrics.flush()
            metrics.plot(out / "loss.png")
            save()
            save_checkpoint(out, parameters, optimizer, step + 1, config)  # last: what it counts as done is done
    if first == config.max_steps:  # a finished run, resumed, writes its weights again
        save()


class Metrics:
    """metrics.jsonl: one JSON object a step; written at each save, so that it never runs ahead of the checkpoint."""

    def __init__(self, path: Path, first: int):
        self.path, self.rows, self.smooth_loss = path, [], None
        if first and path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            self.rows = [row for row in rows if row["step"] < first]

    def add(self, **row) -> None:
        self.rows.append(row)
        if "loss" in row:
            self.smooth_loss = row["loss"] if self.smooth_loss is None else 0.98 * self.smooth_loss + 0.02 * row["loss"]

    def flush(self) -> None:
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def plot(self, path: Path) -> None:
        """The loss as a picture, where matplotlib is installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        rows = [row for row in self.rows if "loss" in row]
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=0.6, alpha=0.4)
        window = max(1, len(rows) // 50)
        means = [sum(row["loss"] for row in rows[i : i + window]) / len(rows[i : i + window]) for i in range(0, len(rows), window)]
        axes.plot([rows[i]["step"] for i in range(0, len(rows), window)], means, linewidth=1.8)
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------- checkpoints
def save_checkpoint(out: Path, parameters: dict[str, Tensor], optimizer, step: int, config: LoopConfig) -> None:
    """Trained parameters and AdamW's two moments, in one safetensors file: whole or absent."""
    tensors = {}
    for name, p in parameters.items():
        tensors[f"parameter.{name}"] = p.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[p][moment]
    metadata = {"step": str(step), "run": _fingerprint(config)}
    write_atomically(out / "checkpoint.safetensors", lambda path: save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata))


def load_checkpoint(out: Path, parameters: dict[str, Tensor], optimizer, config: LoopConfig) -> int:
    """Put everything back where it was; the number of steps done."""
    metadata, tensors = _read_checkpoint(out)
    if metadata.get("run") != _fingerprint(config):
        raise UserError(f"{out} holds a run with other settings ({metadata.get('run')}); resume with those, or choose another --out")
    step = int(metadata["step"])
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"parameter.{name}"])
            optimizer.state[p] = {"step": torch.tensor(float(step)), **{m: tensors[f"{m}.{name}"].to(p.device) for m in ("exp_avg", "exp_avg_sq")}}
    return step


def load_parameters(folder: str | Path, module: nn.Module) -> None:
    """Take over what another run has learnt: the parameters of its checkpoint, and nothing else of it."""
    _, tensors = _read_checkpoint(Path(folder))
    with torch.no_grad():
        for name, p in module.named_parameters():
            if f"parameter.{name}" in tensors:
                p.copy_(tensors[f"parameter.{name}"])


def _read_checkpoint(out: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    path = out / "checkpoint.safetensors"
    if not path.exists():
        raise UserError(f"there is nothing to go on from in {out}: it has no checkpoint.safetensors")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); remove it and start again") from None


def _fingerprint(config: LoopConfig) -> str:
    """The settings that make a run the run it is."""
    names = ("max_steps", "batch_size", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "seed")
    return json.dumps({name: getattr(config, name) for name in names})


# ---------------------------------------------------------------------------------------------------------------- the two stages
def train(config: TrainConfig) -> None:
    """Run one stage of LLaVA's training and leave a weights folder in `config.out`."""
    model, processor = starting_point(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(TRAINED[config.stage])
    samples = JsonSamples(config.data, config.images) if config.data else SceneSamples(config.stage)
    device = next(model.parameters()).device

    speaking = replace(processor, template="plain") if config.stage == 1 else processor  # the picture, then its caption | a conversation

    def samples_of(step: int) -> list[tuple[Encoded, Sample]]:
        chosen = [samples[i] for i in samples.indices(step, config.batch_size, config.seed)]
        return [(encode(processor.tokenizer, speaking.template, s.turns, processor.count_image_tokens(s.picture)), s) for s in chosen]

    groups = LengthGroups(samples_of, lambda sample: len(sample[0].input_ids))

    def batch(step: int) -> dict[str, Tensor]:
        rows = groups[step]
        words = collate([encoded for encoded, _ in rows])
        pictures = [processor.image_inputs(sample.picture) for _, sample in rows if sample.picture is not None]
        return {**words, **{name: torch.cat([picture[name] for picture in pictures]) for name in (pictures[0] if pictures else ())}}

    with ThreadPoolExecutor(1) as ahead:  # pictures are made while the model computes
        coming = {}

        def batch_loss(step: int) -> Tensor:
            now = coming.pop(step, None) or ahead.submit(batch, step)
            if step + 1 < config.max_steps:
                coming[step + 1] = ahead.submit(batch, step + 1)
            return loss(model, {name: tensor.to(device) for name, tensor in now.result().items()})

        def save() -> None:
            weights.save(model, processor, config.out, "bfloat16")

        fit(model, batch_loss, config, save, lambda step: sample_answers(model, speaking, samples, step))


TRAINED = {1: ("projector.",), 2: ("projector.", "language_model.")}


def starting_point(config: TrainConfig):
    """The model and processor to start from: a whole LLaVA (--weights), or its parts with a new projector between them."""
    options = dict(device=config.device, dtype="float32", attention="eager" if weights.find_device(config.device).type == "cpu" else "auto")
    if config.weights or (config.stage == 2 and not config.vision):
        model, processor = weights.load(config.weights or STAGES[1]["out"], **options)
        return model, replace(processor, template=config.template or processor.template)
    vision_tower = weights.load_vision_tower(config.vision or "weights/tiny-vision", **options)
    language_model = weights.load_language_model(config.language or "weights/tiny-language", **options)
    tokenizer = Tokenizer.from_file(config.language or "weights/tiny-language").extended("<image>", "<pad>")
    model_config = LlavaConfig(vision_tower.config, language_model.config, tokenizer.image_id, projector_type=config.projector)
    torch.manual_seed(config.seed)
    model = Llava(model_config)
    model.vision_tower, model.language_model = vision_tower, language_model
    model.projector.to(next(language_model.parameters()).device)
    return model, Processor.for_model(tokenizer, model_config, template=config.template or "llava_hf")


def sample_answers(model, processor: Processor, samples, step: int, count: int = 3) -> dict[str, str]:
    """What the model answers, at this step, to a few first questions of its own data: {question: answer}."""
    said = {}
    for index in samples.indices(step + 1, count, seed=0):
        sample = samples[index]
        inputs = processor(sample.turns[:1], sample.picture)
        ids = generate(model, **{name: t.to(next(model.parameters()).device) for name, t in inputs.items()}, max_new_tokens=40)
        said[sample.turns[0][1] or f"a caption like {sample.turns[1][1]!r}"] = processor.tokenizer.decode(ids).split("\n")[0]
    return said
