"""The training loop that every training of the project shares: schedule, optimizers, metrics, checkpoints.

Which samples a step trains on follows from the seed and the step's number alone, and there is no dropout: a run that
was killed and resumed is the run that was never stopped, bit for bit (on the CPU)."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minillava.arguments import expect, option
from minillava.distributed import gather, is_first, together, whole
from minillava.errors import UserError
from minillava.files import write_atomically
from minillava.inputs.conversation import IGNORE_INDEX
from minillava.training.checkpoint import MOST_KEPT, load_checkpoint, save_checkpoint
from minillava.training.optimizers import Muon


@dataclass(frozen=True)
class LoopConfig:
    """What every training needs to know."""

    out: str = option("", "folder for the weights, metrics.jsonl, loss.png and the checkpoint")
    max_steps: int = option(1000, "optimizer steps")
    batch_size: int = option(32, "samples a step")
    optimizer: str = option(
        "adamw", "adamw, as the papers, or muon for the matrices inside blocks and projector", choices=("adamw", "muon")
    )
    learning_rate: float = option(1e-3, "peak of the schedule: warm-up, then half a cosine down to 0")
    warmup_ratio: float = option(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = option(0.0, "of matrices only")
    adam_beta2: float = option(0.95, "how slowly AdamW forgets the sizes of past gradients; the papers' is 0.999")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    save_every: int = option(500, "steps between checkpoints")
    keep: int = option(2, "checkpoints that stay: if the newest is damaged, the one before it is used")
    seed: int = option(0, "of the new weights and of the samples' order")
    dtype: str = option(
        "auto",
        "of the matrix products: float32, bfloat16 (weights stay float32), or auto: bfloat16 where the machine has it",
    )
    resume: bool = option(False, "go on from the checkpoint in --out")

    _expect = expect

    def __post_init__(self):
        for name in ("max_steps", "batch_size", "save_every", "keep"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("keep", self.keep <= MOST_KEPT, f"at most {MOST_KEPT}")
        for name in ("learning_rate", "max_grad_norm"):
            self._expect(name, 0 < getattr(self, name) < math.inf, "above 0")
        self._expect("warmup_ratio", 0 <= self.warmup_ratio <= 1, "from 0 to 1")
        self._expect("adam_beta2", 0 <= self.adam_beta2 < 1, "from 0 to below 1")
        self._expect("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        self._expect("dtype", self.dtype in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")

    def rate_factor(self, name: str) -> float:
        """By how much the learning rate of the parameter `name` differs from the schedule's."""
        return 1.0

    def settings(self) -> dict:
        """What makes the run the run it is: everything but where it lies and how often it is saved."""
        return {
            name: value for name, value in asdict(self).items() if name not in ("out", "resume", "save_every", "keep")
        }


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(config.max_steps * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.max_steps - warmup)))


def product_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """In what matrix products are computed: "auto" is bfloat16 where that is faster."""
    if dtype == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype = "bfloat16" if fast else "float32"
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def autocast(dtype: str, device: torch.device, **options):
    """Matrix products in bfloat16 where that is asked for or faster; weights, norms and the loss stay in float32."""
    return torch.autocast(
        device.type, torch.bfloat16, enabled=product_dtype(dtype, device) == torch.bfloat16, **options
    )


def make_optimizers(module: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for every trained parameter, or Muon for the weights of linear layers and AdamW for the rest.

    Muon is for maps between hidden vectors: the linear layers of blocks and projector. Embeddings and the head, whose
    rows belong to single tokens, are AdamW's, as are norms and biases, which are no matrices. Norms and biases do not
    decay."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    linear = {
        m.weight for name, m in module.named_modules() if isinstance(m, nn.Linear) and not name.endswith("lm_head")
    }
    hidden = {name: p for name, p in trained.items() if p in linear and config.optimizer == "muon"}
    rest = {name: p for name, p in trained.items() if name not in hidden}
    matrices = groups_by_rate(
        {name: p for name, p in rest.items() if p.ndim >= 2}, config, 0.0 if hidden else config.weight_decay
    )
    vectors = groups_by_rate({name: p for name, p in rest.items() if p.ndim < 2}, config, 0.0)
    adamw = torch.optim.AdamW(matrices + vectors, lr=0.0, betas=(0.9, config.adam_beta2), eps=1e-8)
    return [adamw, Muon(groups_by_rate(hidden, config, config.weight_decay), lr=0.0)] if hidden else [adamw]


def groups_by_rate(parameters: dict[str, Tensor], config: LoopConfig, weight_decay: float) -> list[dict]:
    """The optimizer's groups of these parameters: one for each learning rate, which is `rate_factor` times the
    schedule's.
    """
    factors = {name: config.rate_factor(name) for name in parameters}
    return [
        {
            "params": [p for name, p in parameters.items() if factors[name] == factor],
            "weight_decay": weight_decay,
            "rate_factor": factor,
        }
        for factor in dict.fromkeys(factors.values())
    ]


def supervised_logits(
    language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (tokens, V) in float32 and targets (tokens,) of the supervised tokens: position t predicts label t + 1.

    inputs_embeds (B, T, C), labels (B, T) with -100 where there is no loss. The head runs on the supervised positions
    alone."""
    hidden = language_model.hidden_states(inputs_embeds, start)  # (B, T, C)
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX  # (B, T - 1)
    return language_model.logits(hidden[:, :-1][supervised]).float(), targets[supervised]


def next_token_loss(language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the supervised tokens. Raises ValueError where no token is supervised."""
    logits, targets = supervised_logits(language_model, inputs_embeds, labels, start)
    if not len(targets):
        raise ValueError("no token of this batch is supervised: every label is -100")
    return F.cross_entropy(logits, targets)


def backward(
    batch_loss: Callable[[int], Tensor | Iterator[Tensor]], step: int, dtype: str, device: torch.device
) -> float:
    """The gradients of the step's loss, which is returned.

    A micro-batch's activations are gone before the next one is computed.
    """
    with autocast(dtype, device):
        losses = batch_loss(step)
    losses, total = iter([losses] if isinstance(losses, Tensor) else losses), 0.0
    while True:
        with autocast(dtype, device):
            loss = next(losses, None)
        if loss is None:
            return total
        loss.backward()
        total += loss.item()


def fit(
    module: nn.Module,
    batch_loss: Callable[[int], Tensor | Iterator[Tensor]],
    config: LoopConfig,
    save: Callable[[], None],
    watch: Callable[[int], dict],
    finished: Callable[[], bool] = lambda: False,
    validate: Callable[[float], float] | None = None,
) -> None:
    """Train the parameters of `module` that require a gradient.

    `batch_loss(step)` computes the loss of the step's batch, or gives one after the other those of its micro-batches,
    which add up to it; `save()` writes the weights folder; `watch(step)`, at each save, returns further figures for the
    log; `finished()`, after each step, may end the training before its last one; `validate(lowest)`, after each save,
    gives the validation loss, and keeps the weights if that is below the lowest so far. Of several processes
    (distributed.py) all call this, a loss is the mean of theirs, and the first one writes."""
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be a folder: {error.strerror}") from None
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizers = make_optimizers(module, config)
    device = next(iter(parameters.values())).device
    defaults = type(config)().settings()
    first = (
        together(lambda: load_checkpoint(out, parameters, optimizers, config.settings(), defaults))
        if config.resume
        else 0
    )
    metrics = Metrics(out / "metrics.jsonl", first)

    def save_all(steps: int) -> None:
        metrics.write()
        save()
        # last, so that it never counts what was not saved
        save_checkpoint(out, parameters, optimizers, steps, config.settings(), config.keep)

    def validation(steps: int) -> str:
        """Validate after so many steps, unless that was done before; the loss, in words."""
        if validate is None or any(row["step"] == steps - 1 for row in metrics.rows_with("validation_loss")):
            return ""
        lowest = min([math.inf, *(row["validation_loss"] for row in metrics.rows_with("validation_loss"))])
        loss = validate(lowest)
        metrics.add(step=steps - 1, validation_loss=loss)
        metrics.write()
        return f", validation loss {loss:.3f}" + (", the lowest so far" if loss < lowest else "")

    if first and (first == config.max_steps or first % config.save_every == 0):
        validation(first)  # if the run was stopped between saving and that
    if first == config.max_steps:  # a finished run, resumed, writes its weights again
        return save()
    shown = dict(unit="step", dynamic_ncols=True, mininterval=1, disable=not is_first())
    bar = tqdm(range(first, config.max_steps), initial=first, total=config.max_steps, **shown)
    with stop_signals() as stopped:
        for step in bar:
            began = time.perf_counter()
            rate = learning_rate(step, config)
            try:
                loss = backward(batch_loss, step, config.dtype, device)
                norm = whole(nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm))
                if not torch.isfinite(norm):
                    raise UserError(
                        f"the gradient is not finite at step {step}: lower --learning-rate, or look at this step's data"
                    )
            except UserError:
                if step > first:
                    save_all(step)  # what was learnt before the mistake is kept
                raise
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["rate_factor"]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses, stops = gather(loss, stopped()).T  # all processes stop after the same step
            loss, stop = losses.mean().item(), bool(stops.any())
            seconds = time.perf_counter() - began
            metrics.add(step=step, loss=loss, lr=rate, grad_norm=norm.item(), seconds=round(seconds, 3))
            bar.set_postfix(loss=f"{metrics.smooth_loss:.3f}", samples_s=f"{config.batch_size / seconds:.0f}")
            last = step + 1 == config.max_steps or finished()
            if last or stop or (step + 1) % config.save_every == 0:
                save_all(step + 1)
                if stop and not last:
                    bar.write(
                        f"stopped after step {step + 1}, which is saved; the same command with --resume goes on from there"
                    )
                    raise KeyboardInterrupt
                validated, figures = validation(step + 1), watch(step)
                metrics.add(step=step, **figures)
                metrics.write()
                bar.write(f"step {step + 1}: loss {metrics.smooth_loss:.3f}{validated}")
                for name, value in figures.items():
                    bar.write(f"  {name}: {value}")
            if last:
                return


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that tells whether Ctrl-C or a request to end has come, so that the step can be finished; a second one
    ends at once.
    """
    received = []

    def note(number: int, frame) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Metrics:
    """metrics.jsonl: one JSON object a step; written at each save, so that it never runs ahead of the checkpoint.

    And the same as loss.png and for TensorBoard, where these are installed.
    """

    def __init__(self, path: Path, first: int):
        self.path, self.rows, self.smooth_loss = path, [], None
        self.first, self.writer = first, None
        if first and path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            self.rows = [row for row in rows if row["step"] < first]
        self.in_tensorboard = len(self.rows)

    def add(self, **row) -> None:
        self.rows.append(row)
        if "loss" in row:
            self.smooth_loss = row["loss"] if self.smooth_loss is None else 0.98 * self.smooth_loss + 0.02 * row["loss"]

    def rows_with(self, name: str) -> list[dict]:
        return [row for row in self.rows if name in row]

    def write(self) -> None:
        if not is_first():
            return
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.plot(self.path.with_name("loss.png"))
        self.write_tensorboard(self.path.with_name("tensorboard"))

    def write_tensorboard(self, folder: Path) -> None:
        """The rows that are not there yet, as scalars.

        What an earlier run left of the steps from `first` on, TensorBoard then drops.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception:  # not installed, or not with the versions that it needs
            return
        self.writer = self.writer or SummaryWriter(folder, purge_step=self.first)
        for row in self.rows[self.in_tensorboard :]:
            for name in ("loss", "lr", "grad_norm", "validation_loss"):
                if name in row:
                    self.writer.add_scalar(name, row[name], row["step"])
        self.in_tensorboard = len(self.rows)
        self.writer.flush()

    def plot(self, path: Path) -> None:
        """The loss as a picture, where matplotlib is installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        rows, validated = self.rows_with("loss"), self.rows_with("validation_loss")
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=0.6, alpha=0.4)
        window = max(1, len(rows) // 50)
        means = [
            sum(row["loss"] for row in rows[i : i + window]) / len(rows[i : i + window])
            for i in range(0, len(rows), window)
        ]
        axes.plot([rows[i]["step"] for i in range(0, len(rows), window)], means, linewidth=1.8, label="training")
        if validated:
            axes.plot(
                [row["step"] for row in validated],
                [row["validation_loss"] for row in validated],
                "o-",
                markersize=4,
                label="validation",
            )
            axes.legend()
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=110)
