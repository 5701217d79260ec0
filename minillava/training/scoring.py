"""How well a model knows the tiny world: accuracy for each kind of question on scenes that no training saw.

An answer is right when what it says (the yes or no, the number, the place ...) is the truth; for lists and descriptions
the figure is the F1 of the things named. `python -m minillava.eval.scenes` prints the table.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minillava.data.answers import names_in, parse_answer
from minillava.data.questions import Question, questions
from minillava.data.scene_in_words import in_words
from minillava.data.scenes import Scene, sample_scene
from minillava.generation import answer_all
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer

GREY = (122, 116, 104)  # CLIP's mean colour
F1_KINDS = ("list", "describe")
TITLES = {
    "existence": "is there an X?",
    "list": "what is there? (F1)",
    "color": "background colour",
    "count": "how many objects?",
    "count_of": "how many Xs?",
    "where": "where is the X?",
    "relation": "X relative to Y",
    "group": "which is an animal, ...",
    "reasoning": "why, and odd one out",
    "describe": "describe (F1)",
}


@dataclass(frozen=True)
class Case:
    scene: Scene
    question: Question


def cases(split: str, scenes: int, max_objects: int = 4, each: int = 8) -> list[Case]:
    """Up to `each` questions on each of `scenes` held-out scenes."""
    made = []
    for seed in range(scenes):
        scene = sample_scene(seed, split, max_objects=max_objects)
        made += [Case(scene, question) for question in questions(scene, np.random.default_rng([9, seed]), each)]
    return made


def score(asked: list[Case], answers: list[str]) -> dict[str, float]:
    """Accuracy, or micro-averaged F1 of the things named, for each kind of question."""
    right, total = defaultdict(float), defaultdict(float)
    for case, answer in zip(asked, answers, strict=True):
        kind = case.question.kind
        if kind in F1_KINDS:
            truth, named = {thing.name for thing in case.scene.things}, set(names_in(answer))
            right[kind] += 2 * len(truth & named)
            total[kind] += len(truth) + len(named)
        else:
            right[kind] += parse_answer(kind, answer) == case.question.short
            total[kind] += 1
    return {kind: right[kind] / total[kind] for kind in TITLES if total[kind]}


def score_pictures(model, processor, asked: list[Case], blind: bool = False, title: str = "") -> dict[str, float]:
    """The score of a LLaVA that is shown the scenes, or, `blind`, a grey picture each time."""
    grey = Image.new("RGB", (asked[0].scene.size,) * 2, GREY)
    return score(
        asked,
        answer_all(
            model,
            processor,
            [(case.question.text, grey if blind else case.scene.render()) for case in asked],
            title=title,
        ),
    )


def score_in_words(language_model, tokenizer: Tokenizer, asked: list[Case], form: str) -> dict[str, float]:
    """The score of a language model that reads the scenes as "prose" or as a "map" of words."""
    processor = Processor(tokenizer, image_size=1, patch_size=1)  # never shown a picture
    texts = [in_words(case.scene, form, np.random.default_rng(case.scene.seed)) for case in asked]
    prompts = [(f"{text}\n{case.question.text}", None) for text, case in zip(texts, asked)]
    return score(asked, answer_all(language_model, processor, prompts, title=form))


def table(columns: dict[str, dict[str, float]], asked: list[Case]) -> str:
    """Markdown: a row a kind of question, a column a model, in percent."""
    lines = ["| question | n | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for kind, title in TITLES.items():
        n = sum(case.question.kind == kind for case in asked)
        lines.append(
            f"| {title} | {n} | "
            + " | ".join(f"{100 * scores[kind]:.1f}" if kind in scores else "" for scores in columns.values())
            + " |"
        )
    return "\n".join(lines)
