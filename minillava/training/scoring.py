"""How well a model knows the tiny world: accuracy for each kind of question on scenes that no training saw.

An answer is right when what it says (the yes or no, the number, the place ...) is the truth; for lists and descriptions
the figure is the F1 of the things named. `python -m minillava.eval.scenes` prints the table for the first ten kinds,
`python -m minillava.eval.natural` that for all others.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from PIL import Image

from minillava.data.answers import names_in, parse_answer
from minillava.data.asking import Question, properly, sloppy
from minillava.data.natural import NATURAL
from minillava.data.questions import ALL_WEIGHTS, questions
from minillava.data.scene_in_words import UNTOLD, in_words
from minillava.data.scenes import LARGE_SIZES, THING_SIZES, Scene, enlarged, sample_scene
from minillava.generation import answer_all
from minillava.inputs.conversation import Turn
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


NATURAL_TITLES = {
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


@dataclass(frozen=True)
class Case:
    scene: Scene
    question: Question
    before: tuple[Turn, ...] = ()  # earlier turns of the conversation

    def asked(self) -> list[Turn]:
        return [*self.before, *self.question.asked()]


def cases(split: str, scenes: int, max_objects: int = 4, each: int = 8) -> list[Case]:
    """Up to `each` questions of the first ten kinds on each of `scenes` held-out scenes."""
    made = []
    for seed in range(scenes):
        scene = sample_scene(seed, split, max_objects=max_objects)
        asked = questions(scene, np.random.default_rng([9, seed]), each)
        made += [Case(scene, question) for question in asked]
    return made


def natural_cases(
    scenes: int, of: str = "held out", typed=properly, kinds=tuple(NATURAL), turns: int = 0, each: int = 8
) -> list[Case]:
    """Up to `each` questions of the other kinds, each as often as another, in the wordings of training or in others;
    `turns` questions of any kind, with their answers, come before each.
    """
    made, weights = [], dict.fromkeys(kinds, 1.0)
    for seed in range(scenes):
        scene = sample_scene(seed, "val", max_objects=4)
        asked = questions(scene, np.random.default_rng([10, seed]), each, weights=weights, of=of, typed=typed)
        for number, question in enumerate(asked):
            rng = np.random.default_rng([11, seed, number])
            talk = questions(scene, rng, turns, weights=ALL_WEIGHTS, of="training")
            made.append(Case(scene, question, tuple(turn for each in talk for turn in each.turns())))
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
            right[kind] += is_right(case.question, answer)
            total[kind] += 1
    return {kind: right[kind] / total[kind] for kind in (TITLES | NATURAL_TITLES) if total[kind]}


def is_right(question: Question, answer: str) -> bool:
    return parse_answer(question.reads, answer) == question.short


def score_pictures(model, processor, asked: list[Case], blind: bool = False, title: str = "") -> dict[str, float]:
    """The score of a LLaVA that is shown the scenes, or, `blind`, a grey picture each time."""
    grey = Image.new("RGB", (asked[0].scene.size,) * 2, GREY)
    prompts = [(case.asked(), grey if blind else case.scene.render()) for case in asked]
    return score(asked, answer_all(model, processor, prompts, title=title))


def score_in_words(language_model, tokenizer: Tokenizer, asked: list[Case], form: str) -> dict[str, float]:
    """The score of a language model that reads the scenes as "prose" or as a "map" of words; kinds that the form does
    not tell are left out.
    """
    asked = [case for case in asked if case.question.kind not in UNTOLD[form]]
    processor = Processor(tokenizer, image_size=1, patch_size=1)  # never shown a picture
    prompts = []
    for case in asked:
        rng, fully = np.random.default_rng(case.scene.seed), case.question.kind in NATURAL
        text = in_words(case.scene, form, rng, fully)
        (speaker, first), *rest = case.asked()
        prompts.append(([(speaker, f"{text}\n{first}"), *rest], None))
    return score(asked, answer_all(language_model, processor, prompts, title=form))


def table(columns: dict[str, dict[str, float]], asked: list[Case]) -> str:
    """Markdown: a row a kind of question, a column a model, in percent."""
    lines = ["| question | n | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for kind, title in (TITLES | NATURAL_TITLES).items():
        n = sum(case.question.kind == kind for case in asked)
        if not n:
            continue
        lines.append(
            f"| {title} | {n} | "
            + " | ".join(f"{100 * scores[kind]:.1f}" if kind in scores else "" for scores in columns.values())
            + " |"
        )
    return "\n".join(lines)


def mean_of_kinds(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def table_with_mean(columns: dict[str, dict[str, float]], asked: list[Case]) -> str:
    means = " | ".join(f"{100 * mean_of_kinds(scores):.1f}" for scores in columns.values())
    return table(columns, asked) + f"\n| mean of kinds | | {means} |"


# ------------------------------------------------------------ natural questions, and sizes
def score_natural(model, processor, scenes: int, quick: bool = False) -> dict[str, dict[str, float]]:
    """A column for each way of asking; `quick`: wordings that no training used, and those of the training."""
    asked = {"held out": natural_cases(scenes), "training": natural_cases(scenes, of="training")}
    if not quick:
        asked |= {"typed": natural_cases(scenes, typed=sloppy), "later": natural_cases(scenes, turns=6)}
    columns = {name: score_pictures(model, processor, each, title=name) for name, each in asked.items()}
    if not quick:
        columns["grey picture"] = score_pictures(model, processor, asked["held out"], blind=True, title="blind")
    return columns


def score_by_size(model, processor, scenes: int) -> dict[int, dict[str, float]]:
    """{longest side in px: share of things, each alone, that are named as one thing, and counted as one}."""
    figures = {}
    alone = [sample_scene(seed, "val", max_objects=1) for seed in range(scenes)]
    for size in THING_SIZES[1:] + LARGE_SIZES:
        shown = [enlarged(scene, size) for scene in alone]
        named, counted = (
            answer_all(model, processor, [(question, scene.render()) for scene in shown], title=f"{size} px")
            for question in ("What is in the picture?", "How many objects are there?")
        )
        rights = [answer.lower().count(scene.things[0].name) == 1 for answer, scene in zip(named, shown, strict=True)]
        ones = [parse_answer("count", answer) == "one" for answer in counted]
        figures[size] = {"named once": sum(rights) / scenes, "counted once": sum(ones) / scenes}
    return figures


def size_table(figures: dict[int, dict[str, float]]) -> str:
    lines = ["| longest side, of 112 px | named once | counted once |", "|---|---|---|"]
    for size, row in figures.items():
        lines.append(f"| {size} | {100 * row['named once']:.1f} | {100 * row['counted once']:.1f} |")
    return "\n".join(lines)
