"""How well a model answers what people ask beyond the first ten kinds of question, on scenes that no training saw.

    python -m minillava.eval.natural --weights weights/tiny --scenes 300

"training wordings" are those that a training may use; "held-out wordings" ask in others, about nouns and with small
talk that are kept for the test; "typed" asks in those too, but in lower case, with short forms and spelling mistakes.
In the mean each kind counts alike; n is the number of held-out questions.
"""

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from minillava import weights
from minillava.arguments import Parser, whole_number
from minillava.data.answers import parse_answer
from minillava.data.natural import natural_questions
from minillava.data.natural.asking import sloppy
from minillava.data.scenes import sample_scene
from minillava.errors import run
from minillava.generation import answer_all
from minillava.training.scoring import Case

TITLES = {
    "group_yes_no": "is there an animal?",
    "group_list": "which animals are there?",
    "group_count": "how many animals?",
    "group_where": "where is the animal?",
    "group_of": "is the X an animal?",
    "at_place": "what is on the right?",
    "where_yes_no": "is the X on the right?",
    "relation_yes_no": "is the X above the Y?",
    "either_or": "above or below? two or three?",
    "beside": "what is left of the X?",
    "nearest": "what is nearest to the X?",
    "background_yes_no": "is the background blue?",
    "pattern": "the background's pattern",
    "color_of": "what color is the X?",
    "more": "more Xs than Ys?",
    "count_yes_no": "are there two Xs?",
    "bigger": "is the X bigger than the Y?",
    "biggest": "the biggest, the smallest",
    "only": "is there only an X?",
    "besides": "anything besides the X?",
    "both": "both an X and a Y?",
    "absent": "about what is not there",
    "unknown": "is there a thing never learnt?",
    "cannot_tell": "what no picture tells",
    "small_talk": "greetings and thanks",
    "follow_up": "where is it? and the Y?",
}


def natural_cases(scenes: int, of: str = "held out", each: int = 8) -> list[Case]:
    """Up to `each` questions on each of `scenes` held-out scenes, in the wordings of "training" or those "held out"."""
    made = []
    for seed in range(scenes):
        scene = sample_scene(seed, "val", max_objects=4)
        made += [
            Case(scene, question) for question in natural_questions(scene, np.random.default_rng([10, seed]), each, of)
        ]
    return made


def typed(asked: list[Case]) -> list[Case]:
    """The same questions as someone in a hurry types them."""
    rng = np.random.default_rng(11)
    return [replace(case, question=replace(case.question, text=sloppy(case.question.text, rng))) for case in asked]


def score(asked: list[Case], answers: list[str]) -> dict[str, float]:
    """Accuracy for each kind of question that was asked."""
    rights = defaultdict(list)
    for case, answer in zip(asked, answers, strict=True):
        rights[case.question.kind].append(parse_answer(case.question.reads, answer) == case.question.short)
    return {kind: sum(rights[kind]) / len(rights[kind]) for kind in TITLES if kind in rights}


def ways_of_asking(scenes: int) -> dict[str, list[Case]]:
    held_out = natural_cases(scenes)
    return {
        "training wordings": natural_cases(scenes, "training"),
        "held-out wordings": held_out,
        "typed": typed(held_out),
    }


def score_pictures(model, processor, asked: list[Case], title: str) -> dict[str, float]:
    prompts = [(case.question.asked(), case.scene.render()) for case in asked]
    return score(asked, answer_all(model, processor, prompts, title=title))


def table(columns: dict[str, dict[str, float]], asked: list[Case]) -> str:
    """Markdown: a row a kind of question, a column a way of asking, in percent; n is the number of `asked`."""
    n = Counter(case.question.kind for case in asked)
    lines = ["| question | n | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for kind, title in TITLES.items():
        figures = [f"{100 * scores[kind]:.1f}" if kind in scores else "" for scores in columns.values()]
        lines.append(f"| {title} | {n[kind]} | " + " | ".join(figures) + " |")
    means = [f"{100 * sum(scores.values()) / len(scores):.1f}" for scores in columns.values()]
    return "\n".join([*lines, f"| mean of kinds | {n.total()} | " + " | ".join(means) + " |"])


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="eval.natural", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/tiny", help="a LLaVA (default weights/tiny)")
    parser.add_argument(
        "--scenes", type=whole_number(1, 10**6), default=300, help="held-out scenes a column (default 300)"
    )
    flags = parser.parse_args(argv)
    model, processor = weights.load(flags.weights)
    asked = ways_of_asking(flags.scenes)
    columns = {title: score_pictures(model, processor, cases, title) for title, cases in asked.items()}
    print(table(columns, asked["held-out wordings"]))


if __name__ == "__main__":
    sys.exit(run(main, "eval.natural"))
