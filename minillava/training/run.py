"""A training in the open: the loop stands where it is read, and uses a `Run`, which knows schedule, clipping,
optimizers, metrics, checkpoints and signals.

    with Run(model, config, save) as run:
        for step in run.steps():                    # resumes; Ctrl-C, SIGTERM and SIGHUP make the running step the last
            loss = loss_of(step)
            loss.backward()
            run.update([loss.item()])               # clip, rate, optimizers, metrics
            if run.due:                             # a checkpoint is written when the loop goes on
                with run.notes() as notes:          # a luxury: an error in it is one line, never the end of a training
                    notes["answers"] = ...

Which samples a step trains on follows from the seed and the step's number alone, and so does what dropout drops: a run
that was killed and resumed is the run that was never stopped, bit for bit (on the CPU).
"""

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minillava.distributed import agree, all_gather, full_tensor, is_first, world_size
from minillava.errors import UserError, in_words, say
from minillava.files import locked
from minillava.training.checkpoint import holds_run, load_checkpoint, save_checkpoint
from minillava.training.metrics import Metrics
from minillava.training.optimizers import learning_rate, make_optimizers
from minillava.training.recipes import LoopConfig

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Run:
    """One training of the parameters of `module` that require a gradient, from its first step or from its checkpoint.

    `save()` writes the weights folder; `frozen` is the fingerprint of what does not learn. `due` tells, after an
    update, whether a checkpoint will be written before the next one. Several processes (distributed.py) all do the same, and the first one writes.
    """

    def __init__(self, module: nn.Module, config: LoopConfig, save: Callable[[], None], frozen: str = ""):
        self.config, self.save, self.out = config, save, Path(config.out)
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizers = make_optimizers(module, config)
        self.settings = {**config.settings(), "frozen": frozen}
        self.done = 0  # steps
        self.due = self.last = self.stopping = False
        self.whole = True  # whether the weights are those after a step, and worth keeping

    # ------------------------------------------------------------ the loop
    def steps(self) -> Iterator[int]:
        """The steps that are left. Between them what is due is saved."""
        total, shown = self.config.max_steps, dict(unit="step", dynamic_ncols=True, mininterval=1)
        with tqdm(total=total, initial=self.done, disable=not is_first(), **shown) as self.bar:
            while self.done < total and not self.last:
                self.began, self.due = time.perf_counter(), False
                yield self.done
                if self.due or self.stopping:
                    self._save()
                if self.stopping and self.done < total and not self.last:
                    tqdm.write(
                        f"stopped after step {self.done}, which is saved; the same command with --resume goes on from there"
                    )
                    raise KeyboardInterrupt

    def update(self, losses: list[float], last: bool = False) -> None:
        """One step of the optimizers by the gradients that are there; their losses add up to the step's. `last` ends
        the training. No losses, no step: none of its records could be used.
        """
        step, rate = self.done, learning_rate(self.done, self.config)
        norm = full_tensor(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)).item()
        if not norm < math.inf:
            self.whole = False  # these weights have probably diverged
            advice = "lower --learning-rate, or look at this step's data"
            raise UserError(f"the gradient is not finite at step {step}: {advice}; what was saved before stays")
        self.whole = False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.whole = True
        self.done += 1
        means = all_gather(sum(losses), bool(self.received)).mean(0).tolist()  # all processes stop after the same step
        seconds, self.stopping, self.last = time.perf_counter() - self.began, means[1] > 0, last
        figures = {"loss": means[0]} if losses else {}
        self.metrics.add(step=step, **figures, lr=rate, grad_norm=norm, seconds=round(seconds, 3))
        at_end = last or self.done == self.config.max_steps
        self.due = at_end or self.done % self.config.save_every == 0
        self.bar.update()
        if losses:
            self.bar.set_postfix(
                loss=f"{self.metrics.smooth_loss:.3f}", samples_s=f"{self.config.batch_size / seconds:.0f}"
            )

    @contextmanager
    def notes(self) -> Iterator[dict]:
        """Further figures of this step, for metrics.jsonl and the screen. Where they fail, a line says so."""
        figures: dict = {}
        with self._luxury():
            yield figures
        if figures:
            self.metrics.add(step=self.done - 1, **figures)
        with self._luxury():
            self.metrics.show()
        tqdm.write(f"step {self.done}: loss {self.metrics.smooth_loss or 0.0:.3f}")
        for name, value in figures.items():
            tqdm.write(f"  {name}: {in_digits(value)}")

    @contextmanager
    def _luxury(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            why = in_words(error) or f"{type(error).__name__}: {error}"
            say(f"note: what is shown at step {self.done} failed: {why}")

    def _save(self) -> None:
        """The checkpoint last, so that it never counts what was not saved."""
        finite = all(bool(torch.isfinite(p).all()) for p in self.parameters.values())
        if not all_gather(finite).all():
            self.whole = False
            raise UserError(f"the weights are not finite after step {self.done}: lower --learning-rate; none are saved")
        self.metrics.write()
        self.save()
        save_checkpoint(self.out, self.parameters, self.optimizers, self.done, self.settings)
        self.saved = self.done

    # ------------------------------------------------------------ before and after it
    def __enter__(self) -> "Run":
        if self.config.resume:
            defaults = type(self.config)().settings()
            restore = lambda: load_checkpoint(self.out, self.parameters, self.optimizers, self.settings, defaults)
            self.done = agree(restore)
        self.saved, self.metrics = self.done, Metrics(self.out, self.done)
        if self.done == self.config.max_steps:  # a finished run, resumed, writes its weights again
            self.save()
        self.received, self.before = [], {}
        if threading.current_thread() is threading.main_thread():  # which alone receives signals
            heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
            self.before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def _note(self, number: int, frame) -> None:
        """Let the running step be the last; a second request ends at once."""
        if self.received:
            raise KeyboardInterrupt
        self.received.append(number)

    def __exit__(self, kind, error, _) -> None:
        """What was learnt before an error is kept."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        alone = world_size() == 1 or isinstance(error, UserError)  # which all processes have at the same time
        if isinstance(error, Exception) and self.done > self.saved and self.whole and alone:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            self._save()
            print(f"step {self.done} is saved; the same command with --resume goes on from there")


def in_digits(figure):
    """A figure to print: a number with four digits, also within a dictionary."""
    if isinstance(figure, dict):
        return ", ".join(f"{name} {in_digits(value)}" for name, value in figure.items())
    return f"{figure:.4g}" if isinstance(figure, float) else repr(figure)


@contextmanager
def own_folder(config: LoopConfig) -> Iterator[None]:
    """Be the only one who writes to `config.out`, which is tried before hours are spent. UserError where it cannot be
    written to, where another process writes, and where it holds a run that would be lost.
    """
    out = Path(config.out)
    if not is_first():
        yield
        return
    if not config.resume and holds_run(out):
        raise UserError(
            f"{out} holds a run: --resume goes on with it; to begin anew remove it, or choose another --out"
        )
    there = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be a folder: {error.strerror}") from None
    try:
        with locked(out):
            yield
    finally:
        with suppress(OSError):
            if not there:
                out.rmdir()  # where nothing was written


def fingerprint(module: nn.Module) -> str:
    """What the numbers of the frozen parameters are, by a few of each: a run that is resumed must have the same."""
    digest = hashlib.sha256()
    for name, p in module.named_parameters():
        if not p.requires_grad:
            some = p.detach().flatten()[:: max(1, p.numel() // 16)]
            digest.update(f"{name} {tuple(p.shape)}".encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
