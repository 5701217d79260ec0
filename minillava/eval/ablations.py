"""What each part of the recipe is for: short trainings that differ in one thing, measured alike.

    python -m minillava.eval.ablations --out lessons/ablations.json

They are far too short for a good model (half an hour in all on one core), but long enough for the differences that
matter. A row that is in the file already is not run again. The paper's own ablations are in section 5 of arXiv
2304.08485 (layer, stage 1) and section 3 of arXiv 2310.03744 (projector).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minillava import weights
from minillava.arguments import Parser
from minillava.errors import UserError, run
from minillava.files import locked, read_json, write_atomically
from minillava.inputs.tokenizer import Tokenizer
from minillava.pretrain.language import (
    LOOK_UP,
    SCENES_IN_WORDS,
    learn_scenes,
    learn_to_look_up,
    new_language_model,
)
from minillava.pretrain.probe import probe_tower
from minillava.pretrain.vision import SCENES_AND_PHRASES, ContrastivePair, learn_phrases
from minillava.training import STAGES, TrainConfig, train
from minillava.training.recipes import LoopConfig
from minillava.training.scoring import cases, score_in_words, score_pictures

Figures = dict[str, float]
SCENES, PROBED = 50, 600


def stage(number: int, out: Path, **changes) -> Path:
    """Run a stage of LLaVA's training with the tiny model's settings, shortened and changed."""
    shortened = {1: dict(max_steps=100, save_every=100), 2: dict(max_steps=200, batch_size=8, save_every=200)}[number]
    train(TrainConfig(**{**STAGES[number].defaults, **shortened, **changes, "stage": number, "out": str(out)}))
    return out


def after_stage(folder: Path) -> Figures:
    """What a linear probe finds after the projector, and how the model answers."""
    model, processor = weights.load(folder)
    kept = probe_tower(model.vision_tower, model.projector, PROBED)
    scores = score_pictures(model, processor, cases("val", SCENES))
    return {f"probe: {what}": figure for what, figure in kept.items()} | in_percent(
        scores, ("list", "existence", "count_of")
    )


def in_percent(scores: Figures, kinds: tuple[str, ...]) -> Figures:
    names = {"list": "naming F1", "existence": "existence", "count_of": "how many Xs"}
    return {names[kind]: round(100 * scores[kind], 1) for kind in kinds}


# ------------------------------------------------------------ the rows
def stage1(out: Path, **changes) -> Figures:
    return after_stage(stage(1, out, **changes))


def both_stages(out: Path) -> Figures:
    first = stage(1, out / "stage1")
    return after_stage(stage(2, out / "stage2", weights=str(first)))


def stage2_alone(out: Path) -> Figures:
    return after_stage(stage(2, out, vision="weights/tiny-vision", language="weights/tiny-language"))


def tower(out: Path, waves: bool) -> Figures:
    tokenizer = Tokenizer.from_file(weights.find_folder("weights/tiny-vision"))
    torch.manual_seed(0)
    pair = ContrastivePair(tokenizer)
    if not waves:
        torch.nn.init.normal_(pair.vision_tower.embeddings.position_embedding.weight, std=0.02)
    settings = {**SCENES_AND_PHRASES, "max_steps": 80, "batch_size": 48, "out": str(out)}
    learn_phrases(pair, tokenizer, LoopConfig(**settings))
    return {
        f"probe: {what}": figure for what, figure in probe_tower(weights.load_vision_tower(out), count=PROBED).items()
    }


def language(out: Path, look_up: bool) -> Figures:
    """Scenes in words for 80 steps, after the look-up lesson or without it."""
    tokenizer = Tokenizer.from_file(weights.find_folder("weights/tiny-language"))
    torch.manual_seed(0)
    model = new_language_model(tokenizer)
    if look_up:
        settings = {**LOOK_UP, "batch_size": 64, "out": str(out / "look-up")}
        learn_to_look_up(model, tokenizer, LoopConfig(**settings))
    settings = {**SCENES_IN_WORDS, "max_steps": 80, "save_every": 80, "out": str(out)}
    learn_scenes(model, tokenizer, LoopConfig(**settings))
    return in_percent(score_in_words(model, tokenizer, cases("val", SCENES), "prose"), ("existence", "count_of"))


ROWS: dict[str, Callable[[Path], Figures]] = {
    "stage 1 (mlp2x_gelu, Muon, layer -2)": stage1,
    "stage 1 with AdamW": lambda out: stage1(out, optimizer="adamw"),
    "stage 1 with a linear projector": lambda out: stage1(out, projector="linear"),
    "stage 1 on layer -1": lambda out: stage1(out, vision_feature_layer=-1),
    "stages 1 and 2": both_stages,
    "stage 2 without stage 1": stage2_alone,
    "tower whose positions start as waves": lambda out: tower(out, waves=True),
    "tower whose positions start at random": lambda out: tower(out, waves=False),
    "language model after the look-up lesson": lambda out: language(out, look_up=True),
    "language model without the look-up lesson": lambda out: language(out, look_up=False),
}


def table(rows: list[dict]) -> str:
    """Markdown: a row each, a column for every figure that any row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    lines = ["| training | " + " | ".join(columns) + " | minutes |", "|---|" + "---|" * (len(columns) + 1)]
    for row in rows:
        lines.append(
            f"| {row['name']} | "
            + " | ".join(str(row["figures"].get(name, "")) for name in columns)
            + f" | {row['minutes']} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="eval.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default="runs/ablations.json", help="the figures, as JSON; rows that it holds are not run again"
    )
    flags = parser.parse_args(argv)
    path = Path(flags.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        rows = held_rows(path)
        for name, measure in ROWS.items():
            if name not in {row["name"] for row in rows}:
                began = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    figures = measure(Path(folder))
                rows.append({"name": name, "figures": figures, "minutes": round((time.perf_counter() - began) / 60, 1)})
                write_atomically(path, json.dumps({"rows": rows}, indent=1) + "\n")
    print(table(rows))


def held_rows(path: Path) -> list[dict]:
    """The rows that a file holds already; UserError where it is another file."""
    try:
        rows = read_json(path)["rows"] if path.exists() else []
        table(rows)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} holds no rows of this command; remove it, or choose another --out") from None
    return rows


if __name__ == "__main__":
    sys.exit(run(main, "eval.ablations"))
