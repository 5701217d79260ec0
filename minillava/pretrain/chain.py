"""The chain that makes everything in weights/ from nothing, each part measured before the next one is built on it.

    python -m minillava.pretrain all

Tower and language model are trained side by side, a core each, then LLaVA's two stages. A part is a command of its own
with its default flags, so each can be run alone. The chain may be stopped at any time: called again, it goes on where
it was. A part whose figures stay below its gate ends the chain. At the end the weights folders are published, with the
figures in weights/README.md.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

from minillava import weights
from minillava.data.scene_in_words import FORMS
from minillava.errors import UserError
from minillava.files import write_atomically
from minillava.inputs.tokenizer import Tokenizer
from minillava.pretrain import probe
from minillava.training import scoring
from minillava.training.checkpoint import FILE as CHECKPOINT

COMMANDS = {
    "vision": "python -m minillava.pretrain vision --out {out}/vision",
    "language": "python -m minillava.pretrain language --out {out}/language",
    "stage1": "python train.py --stage 1 --vision {out}/vision --language {out}/language --out {out}/stage1",
    "stage2": "python train.py --stage 2 --weights {out}/stage1 --out {out}/stage2",
}
PUBLISHED = {"vision": "tiny-vision", "language": "tiny-language", "stage1": "tiny-stage1", "stage2": "tiny"}
PROBE_SCENES, SCENES = 4000, 300  # that the figures are measured on
ROWS = 300  # of metrics.jsonl that are published
FULL_SIZE = "\n## At full size\n"  # the section of weights/README.md that the chain leaves alone


def make_all(out: str = "runs/tiny", ignore_gates: bool = False) -> None:
    """Run the parts that are not done, measure each, publish. UserError where a part misses its gate."""
    chain = Chain(Path(out), ignore_gates)
    chain.run("vision", "language")
    chain.run("stage1")
    chain.run("stage2")
    publish(Path(out), chain.report)


class Chain:
    """The parts that are done, and their figures, kept in report.json."""

    def __init__(self, out: Path, ignore_gates: bool):
        self.out, self.ignore_gates, self.file = out, ignore_gates, out / "report.json"
        self.report = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, *parts: str) -> None:
        """Train those of the parts that are not done, side by side, and measure them."""
        todo = [part for part in parts if part not in self.report]
        running = [(part, self._start(part)) for part in todo]
        failed = [part for part, process in running if process.wait()]
        if failed:
            raise UserError(f"{failed[0]} failed: {self.out / failed[0]}.log tells why")
        for part in todo:
            self._measure(part)

    def _start(self, part: str) -> subprocess.Popen:
        command = COMMANDS[part].format(out=self.out) + (" --resume" if (self.out / part / CHECKPOINT).exists() else "")
        print(f"{command}    # its log: {self.out / part}.log", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / f"{part}.log", "a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a core for each part
            arguments = [sys.executable, *shlex.split(command)[1:]]
            return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=weights.ROOT, env=environment)

    def _measure(self, part: str) -> None:
        figures, missed = MEASURES[part](self.out / part)
        print(json.dumps({part: figures}, indent=1), flush=True)
        if missed and not self.ignore_gates:
            raise UserError(f"{part} misses its gate: {missed}; look into it, or go on with --ignore-gates")
        rows = [
            json.loads(line)
            for path in (self.out / part).rglob("metrics.jsonl")
            for line in path.read_text().splitlines()
        ]
        minutes = round(sum(row.get("seconds", 0.0) for row in rows) / 60, 1)
        self.report[part] = {"minutes": minutes, "figures": figures, "missed": missed}
        write_atomically(self.file, json.dumps(self.report, indent=1) + "\n")


# ------------------------------------------------------------ figures and gates
def measure_vision(folder: Path) -> tuple[dict, str]:
    figures = {"tower": probe.probe_tower(weights.load_vision_tower(folder), count=PROBE_SCENES)}
    return figures, below(figures["tower"], {"name": 93, "row": 93, "column": 90})


def measure_language(folder: Path) -> tuple[dict, str]:
    model, tokenizer = weights.load_language_model(folder), Tokenizer.from_file(folder)
    asked = scoring.cases("val", SCENES)
    figures = {f"as {form}": scoring.score_in_words(model, tokenizer, asked, form) for form in FORMS}
    return figures, below(figures["as prose"], {"existence": 0.95, "color": 0.95, "count": 0.9})


def measure_stage1(folder: Path) -> tuple[dict, str]:
    model, processor = weights.load(folder)
    figures = {
        "projector": probe.probe_tower(model.vision_tower, model.projector, PROBE_SCENES),
        "stage 1 only": scoring.score_pictures(model, processor, scoring.cases("val", SCENES)),
    }
    return figures, below(figures["projector"], {"name": 90, "row": 75, "column": 75}) or below(
        figures["stage 1 only"], {"list": 0.6}
    )


def measure_stage2(folder: Path) -> tuple[dict, str]:
    model, processor = weights.load(folder)
    asked = scoring.cases("val", SCENES)
    figures = {
        "sees": scoring.score_pictures(model, processor, asked),
        "unseen pairs": scoring.score_pictures(model, processor, scoring.cases("pairs", SCENES)),
        "blind": scoring.score_pictures(model, processor, asked, blind=True),
    }
    return figures, below(figures["sees"], {"existence": 0.95, "list": 0.85, "count": 0.9, "where": 0.8})


MEASURES = {"vision": measure_vision, "language": measure_language, "stage1": measure_stage1, "stage2": measure_stage2}


def below(figures: dict[str, float], gate: dict[str, float]) -> str:
    """The figures below their gates as a phrase; "" where all reach theirs."""
    return "; ".join(
        f"{name} is {figures[name]:.3g}, the gate {least}" for name, least in gate.items() if figures[name] < least
    )


# ------------------------------------------------------------ publishing
def publish(out: Path, report: dict, target: Path = weights.ROOT / "weights") -> None:
    """Copy the parts' folders into weights/, without checkpoints and with thinned metrics, and write weights/README.md."""
    print(
        f"writing {', '.join(str(target / name) for name in PUBLISHED.values())} and {target / 'README.md'}", flush=True
    )
    for part, name in PUBLISHED.items():
        for path in sorted((out / part).iterdir()):
            if path.is_file() and path.name != CHECKPOINT:
                content = thinned(path.read_text()) if path.suffix == ".jsonl" else path.read_bytes()
                write_atomically(target / name / path.name, content)
    look_up = out / "language" / "look-up" / "metrics.jsonl"
    write_atomically(target / PUBLISHED["language"] / "look-up.jsonl", thinned(look_up.read_text()))
    write_atomically(target / "README.md", page(report) + measured_apart(target / "README.md"))


def measured_apart(path: Path) -> str:
    """The last section of the page that is there, which is no part of the chain's and stays."""
    text = path.read_text() if path.exists() else ""
    return text[text.find(FULL_SIZE) :] if FULL_SIZE in text else ""


def thinned(metrics: str) -> str:
    """At most about 300 lines: figures stay, the losses of neighbouring steps are averaged."""
    rows = [json.loads(line) for line in metrics.splitlines()]
    losses, figures = [row for row in rows if "loss" in row], [row for row in rows if "loss" not in row]
    stretch = -(-len(losses) // max(1, ROWS - len(figures)))
    kept = []
    for first in range(0, len(losses), stretch):
        part = losses[first : first + stretch]
        kept.append({**part[0], "loss": round(sum(row["loss"] for row in part) / len(part), 5)})
    return "".join(json.dumps(row) + "\n" for row in sorted(kept + figures, key=lambda row: row["step"]))


def page(report: dict) -> str:
    """weights/README.md: what each folder is, the commands and their minutes, and the tables."""
    asked = scoring.cases("val", SCENES)
    what = {
        "vision": "CLIP ViT: 6 layers of 192, 3 heads, 112 px, patches of 16 px; from pictures and phrases",
        "language": "LLaMA: 5 layers of 256, 4 heads, 2 key/value heads; from text alone",
        "stage1": "LLaVA after stage 1: a new projector between the two",
        "stage2": "LLaVA after stage 2: the model that `chat.py` talks with",
    }
    folders = "\n".join(f"| `{PUBLISHED[part]}` | {text} | {report[part]['minutes']} |" for part, text in what.items())
    commands = "\n".join(command.format(out="runs/tiny") for command in COMMANDS.values())
    probes = {
        "the tower, layer -2": report["vision"]["figures"]["tower"],
        "the projector": report["stage1"]["figures"]["projector"],
    }
    seen = {**report["stage2"]["figures"], "stage 1 only": report["stage1"]["figures"]["stage 1 only"]}
    missed = "".join(
        f"The gate that {PUBLISHED[part]} missed: {report[part]['missed']}.\n"
        for part in what
        if report[part]["missed"]
    )
    return f"""# Weights

Everything here was made from nothing on two cores of a CPU ({processor_name()}), published on {date.today()}. One command runs all of it:

```
python -m minillava.pretrain all{" --ignore-gates" if missed else ""}
```

{missed}
Files are bfloat16 safetensors in the layouts of the Hub: CLIPVisionModel, LLaMA, llava-hf. All seeds are 0.

| folder | what | minutes on one core |
|---|---|---|
{folders}

It runs these commands, the first two side by side, and measures each part before it begins the next:

```
{commands}
```

## What the features know

Percent of held-out objects whose name, row and column (of 7) a linear probe reads off the patch at their centre, after
(`python -m minillava.eval.probe`):

{probe.table(probes)}

## What the language model knows

Percent right when it reads of {SCENES} held-out scenes as prose or as a map of 7 x 7 words
(`python -m minillava.eval.scenes --language weights/tiny-language --scenes {SCENES}`):

{scoring.table(report["language"]["figures"], asked)}

## What the whole model sees

Percent right on pictures of {SCENES} held-out scenes of 1 to 4 objects; "unseen pairs" are scenes with two things that never stood in one training
scene; "blind" is the same model shown a grey picture (`python -m minillava.eval.scenes --scenes {SCENES}`):

{scoring.table(seen, asked)}
"""


def processor_name() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
