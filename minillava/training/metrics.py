"""What a training shows of itself: metrics.jsonl, one JSON object a step, and the same as a picture and for TensorBoard.

The file is written at each checkpoint, before it, so that it is never behind. Lines that are ahead of the checkpoint
from which a run goes on, or cannot be read, are forgotten: they are computed again.
"""

import json
import math
from contextlib import suppress
from pathlib import Path

from minillava.distributed import is_first
from minillava.files import write_atomically

CURVES = ("loss", "lr", "grad_norm", "validation_loss")  # what TensorBoard shows


class Metrics:
    """The rows of metrics.jsonl: {"step", "loss", "lr", "grad_norm", "seconds"}, and at some steps {"step", further
    figures}.
    """

    def __init__(self, folder: Path, first: int):
        self.folder, self.first, self.rows, self.smooth_loss = folder, first, [], None
        self.writer, self.num_shown = None, 0  # TensorBoard's
        if first:
            with suppress(OSError):
                for line in (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
                    with suppress(ValueError, TypeError, KeyError, RecursionError):
                        row = json.loads(line)
                        self.rows += [row] if row["step"] < first else []
        self.num_shown = len(self.rows)

    def add(self, **row) -> None:
        self.rows.append(row)
        if "loss" in row:
            before = row["loss"] if self.smooth_loss is None else self.smooth_loss
            self.smooth_loss = 0.98 * before + 0.02 * row["loss"]

    def having(self, name: str) -> list[dict]:
        return [row for row in self.rows if name in row]

    def lowest(self, name: str) -> float:
        """The lowest so far; what is no number is never the lowest."""
        return min((row[name] for row in self.having(name) if not math.isnan(row[name])), default=math.inf)

    def write(self) -> None:
        if is_first():
            lines = [json.dumps(row) + "\n" for row in self.rows]
            write_atomically(self.folder / "metrics.jsonl", "".join(lines))

    def show(self) -> None:
        """As a picture and for TensorBoard, where these are installed."""
        if is_first():
            with suppress(ImportError):
                self._plot(self.folder / "loss.png")
            with suppress(ImportError, TypeError):  # TensorBoard may be there without what it needs
                self._to_tensorboard(self.folder / "tensorboard")

    def _to_tensorboard(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = self.writer or SummaryWriter(folder, purge_step=self.first)
        for row in self.rows[self.num_shown :]:
            for name in CURVES:
                if name in row:
                    self.writer.add_scalar(name, row[name], row["step"])
        self.num_shown = len(self.rows)
        self.writer.flush()

    def _plot(self, path: Path) -> None:
        from matplotlib.figure import Figure

        rows, validated = self.having("loss"), self.having("validation_loss")
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=0.6, alpha=0.4)
        window = max(1, len(rows) // 50)
        windows = [rows[i : i + window] for i in range(0, len(rows), window)]
        means = [sum(row["loss"] for row in some) / len(some) for some in windows]
        axes.plot([some[0]["step"] for some in windows], means, linewidth=1.8, label="training")
        if validated:
            points = [row["step"] for row in validated], [row["validation_loss"] for row in validated]
            axes.plot(*points, "o-", markersize=4, label="validation")
            axes.legend()
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=110)
