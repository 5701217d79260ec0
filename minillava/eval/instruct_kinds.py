"""Which kinds of instruction data teach what? Equal budgets on the tiny world, beside the paper's Table 4 (arXiv
2304.08485, section 5.1).

    python -m minillava.eval.instruct_kinds --out runs/instruct_kinds

Each row starts from the same model after stage 1 and trains equally many steps of equally many samples, from equally
many records written by the rule teacher about the first scenes of the tiny world; only their kinds differ. Then all
answer the same questions on held-out scenes: those of a conversation (is there, how many, where, ...), requests to
describe (F1 of the things named) and questions that ask for a reason. "no tuning" is the model after stage 1. The paper
scores with GPT-4 as a judge, relative to GPT-4's own answers; here the truth is known. Rows that are in the folder
already are not run again.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from minillava import weights
from minillava.arguments import Parser, add_flags, expect, from_flags, option
from minillava.data.answers import names_in, parse_answer
from minillava.data.instruct.generate import assemble, expand, make_requests, merge
from minillava.data.instruct.output import write_scenes
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.rules import RuleTeacher
from minillava.data.instruct.sources import scene_picture
from minillava.data.questions import questions
from minillava.data.scenes import sample_scene
from minillava.errors import UserError, run
from minillava.files import locked, read_json, write_atomically
from minillava.generation import answer_all
from minillava.training import STAGES, TrainConfig, train
from minillava.training.scoring import Case

ROWS: dict[str, tuple[str, ...]] = {
    "all three kinds": ("conversation", "detail", "reasoning"),
    "detail + reasoning": ("detail", "reasoning"),
    "conversation only": ("conversation",),
    "simple expansion": ("simple",),
    "no tuning": (),
}
PAPER = {  # LLaVA-Bench (COCO): conversation, detail, complex reasoning, all; relative to GPT-4, in percent
    "all three kinds": "83.1 / 75.3 / 96.5 / 85.1",
    "detail + reasoning": "81.5 / 73.3 / 90.8 / 81.9",
    "conversation only": "76.5 / 59.8 / 84.9 / 73.8",
    "no tuning": "22.0 / 24.0 / 18.5 / 21.5",
}
ABILITIES = ("conversation", "detail", "reasoning")


@dataclass(frozen=True)
class Settings:
    """Equal for all rows."""

    weights: str = option("weights/tiny-stage1", "the LLaVA to start from")
    records: int = option(1440, "records a training")
    steps: int = option(180, "steps a training")
    batch_size: int = option(8, "records a step")
    questions: int = option(200, "held-out questions an ability")

    def __post_init__(self):
        for name, least in (("records", 3), ("steps", 1), ("batch_size", 1), ("questions", 1)):
            expect(self, name, least <= getattr(self, name) <= 10**6, f"from {least} to 1000000")


def held_out(each: int) -> dict[str, list[Case]]:
    """`each` questions an ability, on scenes that no training saw."""
    asked: dict[str, list[Case]] = {ability: [] for ability in ABILITIES}
    seed = 0
    while any(len(cases) < each for cases in asked.values()):
        scene = sample_scene(seed, "val", max_objects=4)
        for question in questions(scene, np.random.default_rng([9, seed]), 6):
            ability = {"describe": "detail", "reasoning": "reasoning"}.get(question.kind, "conversation")
            if len(asked[ability]) < each:
                asked[ability].append(Case(scene, question))
        seed += 1
    return asked


def share_right(cases: list[Case], answers: list[str]) -> float:
    """The mean, in percent: a list or a description counts with the F1 of the things it names, another answer as right
    or wrong.
    """
    return round(100 * float(np.mean([_right(case, answer) for case, answer in zip(cases, answers, strict=True)])), 1)


def _right(case: Case, answer: str) -> float:
    if case.question.kind not in ("list", "describe"):
        return parse_answer(case.question.kind, answer) == case.question.short
    truth, named = {thing.name for thing in case.scene.things}, set(names_in(answer))
    return 2 * len(truth & named) / (len(truth) + len(named))


def measure(folder: Path | str, asked: dict[str, list[Case]]) -> dict[str, float]:
    """The share that the model in a folder gets right, for each ability and for their mean."""
    model, processor = weights.load(folder, dtype="float32")
    scores = {}
    for ability, cases in asked.items():
        prompts = [(case.question.text, case.scene.render()) for case in cases]
        scores[ability] = share_right(cases, answer_all(model, processor, prompts, title=ability))
    return {**scores, "all": round(sum(scores.values()) / len(scores), 1)}


def write_data(folder: Path, kinds: tuple[str, ...], records: int) -> int:
    """`records` records of equal shares of the kinds, over the first scenes, with their pictures; the words of their
    answers.
    """
    prompts, teacher, parts = Prompts(), RuleTeacher(), []
    share = records // len(kinds)
    pictures = [scene_picture(seed) for seed in range(share + share // 4)]  # some are left out by the filters
    for kind in kinds:
        if kind == "simple":
            part = expand(pictures, prompts, seed=0, noun_phrases=False)
        else:
            requests = make_requests(pictures, [kind], prompts, seed=0)
            part = assemble(requests, [teacher.write(request) for request in requests], prompts)
        if len(part.records) < share:
            raise UserError(
                f"Of {len(pictures)} scenes only {len(part.records)} gave a record of kind {kind}, and {share} are needed."
            )
        part.records = part.records[:share]
        parts.append(part)
    made = merge(*parts)
    write_scenes(folder, made, pictures)
    write_atomically(folder / "data.json", json.dumps(made.records))
    turns = [turn for record in made.records for turn in record["conversations"]]
    return sum(len(turn["value"].split()) for turn in turns if turn["from"] == "gpt")


def train_row(folder: Path, kinds: tuple[str, ...], settings: Settings) -> dict:
    """Write the data, train on it, and keep both in the folder."""
    words = write_data(folder, kinds, settings.records)
    resume = (folder / "model" / "checkpoint.safetensors").exists()
    options = dict(
        max_steps=settings.steps, batch_size=settings.batch_size, save_every=max(1, settings.steps // 2), resume=resume
    )
    files = dict(
        data=str(folder / "data.json"), images=str(folder), weights=settings.weights, out=str(folder / "model")
    )
    train(TrainConfig(**{**STAGES[2].defaults, **options, **files, "dtype": "float32", "stage": 2}))
    return {"words a record": round(words / (settings.records // len(kinds) * len(kinds)), 1)}


def table(rows: dict[str, dict], each: int) -> str:
    """Markdown: a row a training, the paper's figures in the last column."""
    lines = [
        f"| trained on | words a record | conversation | detail (F1) | reasoning | all | the paper's (n = 30 each; here {each}) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        figures = " | ".join(str(row[ability]) for ability in (*ABILITIES, "all"))
        lines.append(f"| {name} | {row.get('words a record', '')} | {figures} | {PAPER.get(name, '')} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="eval.instruct_kinds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = "folder for the rows and their figures (default runs/instruct_kinds)"
    parser.add_argument("--out", default="runs/instruct_kinds", help=folder)
    add_flags(parser, Settings)
    flags = parser.parse_args(argv)
    out, settings = Path(flags.out), from_flags(Settings, flags)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        print(table(_rows(out, settings), settings.questions))


def _rows(out: Path, settings: Settings) -> dict[str, dict]:
    """The figures of every row; those that rows.json holds are not run again."""
    held = read_json(out / "rows.json") if (out / "rows.json").exists() else {"settings": asdict(settings), "rows": {}}
    rows = held.get("rows")
    try:
        table(rows, 0)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{out}/rows.json holds no rows of this command; choose another --out") from None
    if held.get("settings") != asdict(settings):
        raise UserError(f"{out} holds rows of other settings; choose another --out")
    asked = held_out(settings.questions)
    for number, (name, kinds) in enumerate(ROWS.items()):
        if name not in rows:
            began, folder = time.process_time(), out / f"row{number}"
            row = train_row(folder, kinds, settings) if kinds else {}
            row |= measure(folder / "model" if kinds else settings.weights, asked)
            rows[name] = {**row, "CPU minutes": round((time.process_time() - began) / 60, 1)}
            write_atomically(out / "rows.json", json.dumps(held, indent=1) + "\n")
            print(f"{name}: {rows[name]}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(run(main, "eval.instruct_kinds"))
