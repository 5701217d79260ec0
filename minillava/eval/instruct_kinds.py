"""Which kinds of instruction data teach what? Equal budgets on the tiny world, beside the paper's Table 4 (arXiv
2304.08485, section 5.1).

    python -m minillava.eval.instruct_kinds --out runs/instruct_kinds

Each row starts from the same model after stage 1 and trains equally many steps of equally many samples, from equally
many records written by the rule teacher about the first scenes of the tiny world; only their kinds differ. Then all
answer the same questions on held-out scenes: those of a conversation (is there, how many, where, ...), requests to
describe (F1 of the things named) and questions that ask for a reason. "no tuning" is the model after stage 1. The paper
scores with GPT-4 as a judge, relative to GPT-4's own answers; here the truth is known. Rows that are in the folder
already are not run again."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from minillava import weights
from minillava.arguments import Parser, whole_number
from minillava.data.answers import names_in, parse_answer
from minillava.data.instruct.generate import assemble, expand, make_requests, merge
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.rules import RuleTeacher
from minillava.data.instruct.sources import scene_picture
from minillava.data.questions import questions
from minillava.data.scene_records import png
from minillava.data.scenes import sample_scene
from minillava.errors import UserError, run
from minillava.files import locked, read_json, write_atomically, write_json
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
    """Of lists and descriptions the F1 of the things named counts, of all others whether the answer is right; the mean,
    in percent.
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
    made = merge(*parts).records
    shown = {record["image"] for record in made}
    for picture in pictures:
        if picture.image in shown:
            write_atomically(folder / picture.image, png(picture.scene.render()))
    write_atomically(folder / "data.json", json.dumps(made))
    return sum(
        len(turn["value"].split()) for record in made for turn in record["conversations"] if turn["from"] == "gpt"
    )


def train_row(folder: Path, kinds: tuple[str, ...], start: str, records: int, steps: int, batch_size: int) -> dict:
    """Write the data, train on it, and remove neither: the folder is the row's whole story."""
    words = write_data(folder, kinds, records)
    resume = (folder / "model" / "checkpoint.safetensors").exists()
    settings = dict(
        max_steps=steps, batch_size=batch_size, save_every=max(1, steps // 2), dtype="float32", resume=resume
    )
    files = dict(data=str(folder / "data.json"), images=str(folder), weights=start, out=str(folder / "model"))
    train(TrainConfig(**{**STAGES[2].defaults, **settings, **files, "stage": 2}))
    return {"words a record": round(words / (records // len(kinds) * len(kinds)), 1)}


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
    parser.add_argument(
        "--out",
        default="runs/instruct_kinds",
        help="folder for the rows and their figures (default runs/instruct_kinds)",
    )
    parser.add_argument(
        "--weights", default="weights/tiny-stage1", help="the LLaVA to start from (default weights/tiny-stage1)"
    )
    for name, least, most, default, help in (
        ("records", 3, 10**6, 1440, "records a training"),
        ("steps", 1, 10**6, 180, "steps a training"),
        ("batch-size", 1, 10**5, 8, "records a step"),
        ("questions", 1, 10**6, 200, "held-out questions an ability"),
    ):
        number = whole_number(least, most)
        parser.add_argument(f"--{name}", type=number, default=default, help=f"{help} (default {default})")
    flags = parser.parse_args(argv)
    out = Path(flags.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        held = held_rows(out / "rows.json", {name: value for name, value in vars(flags).items() if name != "out"})
        asked = held_out(flags.questions)
        for number, (name, kinds) in enumerate(ROWS.items()):
            if name not in held["rows"]:
                held["rows"][name] = fill_row(out / f"row{number}", kinds, asked, flags)
                write_json(out / "rows.json", held)
                print(f"{name}: {held['rows'][name]}", flush=True)
    print(table(held["rows"], flags.questions))


def held_rows(path: Path, settings: dict) -> dict:
    """What a folder's file holds, or its beginning; UserError where it is of other settings."""
    held = read_json(path) if path.exists() else {"settings": settings, "rows": {}}
    try:
        table(held["rows"], 0)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} holds no rows of this command; choose another --out") from None
    if held.get("settings") != settings:
        raise UserError(f"{path} holds rows of other settings; choose another --out")
    return held


def fill_row(folder: Path, kinds: tuple[str, ...], asked: dict[str, list[Case]], flags: argparse.Namespace) -> dict:
    """Train a row and measure it; the row without kinds is the model that the others start from."""
    began = time.process_time()
    row = train_row(folder, kinds, flags.weights, flags.records, flags.steps, flags.batch_size) if kinds else {}
    row |= measure(folder / "model" if kinds else flags.weights, asked)
    return {**row, "CPU minutes": round((time.process_time() - began) / 60, 1)}


if __name__ == "__main__":
    sys.exit(run(main, "eval.instruct_kinds"))
