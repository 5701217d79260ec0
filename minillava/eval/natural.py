"""How well a model answers what people ask beyond the first ten kinds of question, on scenes that no training saw.

    python -m minillava.eval.natural                                      # weights/tiny
    python -m minillava.eval.natural --language weights/tiny-language     # the language model alone, which reads the scenes in words

Each kind counts alike. "held out" asks in wordings, about nouns and with small talk that no training used, "training" in
those of the training; "typed" is held out in lower case, with short forms and spelling mistakes; "later" comes after six
other questions; "blind" shows a grey picture. The second table names and counts things that are alone, by size."""

import argparse
import json
import sys
from dataclasses import replace

from minillava import weights
from minillava.arguments import Parser
from minillava.data.answers import parse_answer
from minillava.data.asking import sloppy
from minillava.data.scene_in_words import FORMS
from minillava.data.scenes import THING_SIZES, sample_scene
from minillava.errors import run
from minillava.generation import answer_all
from minillava.inputs.tokenizer import Tokenizer
from minillava.training.scoring import mean_of_kinds, natural_cases, score_in_words, score_pictures, table

Figures = dict[str, float]


def score_columns(model, processor, scenes: int, all_columns: bool) -> dict[str, Figures]:
    asked = {"held out": natural_cases(scenes), "training": natural_cases(scenes, of="training")}
    if all_columns:
        asked |= {"typed": natural_cases(scenes, typed=sloppy), "later": natural_cases(scenes, turns=6)}
    columns = {name: score_pictures(model, processor, each, title=name) for name, each in asked.items()}
    if all_columns:
        columns["blind"] = score_pictures(model, processor, asked["held out"], blind=True, title="blind")
    return columns


def by_size(model, processor, scenes: int) -> dict[int, Figures]:
    """Of things that are alone, percent that are named as one thing and counted as one."""
    figures = {}
    for size in THING_SIZES[1:]:
        alone = [sample_scene(seed, "val", max_objects=1) for seed in range(scenes)]
        shown = [replace(scene, things=(replace(scene.things[0], size=size, x=56.0, y=56.0),)) for scene in alone]
        named, counted = (
            answer_all(model, processor, [(question, scene.render()) for scene in shown], title=f"{size} px")
            for question in ("What is in the picture?", "How many objects are there?")
        )
        rights = [answer.lower().count(scene.things[0].name) == 1 for answer, scene in zip(named, shown, strict=True)]
        ones = [parse_answer("count", answer) == "one" for answer in counted]
        figures[size] = {"named once": sum(rights) / scenes, "counted once": sum(ones) / scenes}
    return figures


def size_table(figures: dict[int, Figures]) -> str:
    lines = ["| longest side, of 112 px | named once | counted once |", "|---|---|---|"]
    for size, row in figures.items():
        lines.append(f"| {size} | {100 * row['named once']:.1f} | {100 * row['counted once']:.1f} |")
    return "\n".join(lines)


def natural_table(columns: dict[str, Figures], scenes: int) -> str:
    means = " | ".join(f"{100 * mean_of_kinds(scores):.1f}" for scores in columns.values())
    return table(columns, natural_cases(scenes)) + f"\n| mean of kinds | | {means} |"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="eval.natural", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/tiny", help="a LLaVA (default weights/tiny)")
    parser.add_argument("--language", help="instead: a language model, which reads the scenes in words")
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes (default 300)")
    parser.add_argument("--quick", action="store_true", help="the columns held out and training alone")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    flags = parser.parse_args(argv)
    sizes: dict[int, Figures] = {}
    if flags.language:
        model = weights.load_language_model(flags.language)
        tokenizer = Tokenizer.from_file(weights.find_folder(flags.language))
        asked = natural_cases(flags.scenes)
        columns = {f"as {form}": score_in_words(model, tokenizer, asked, form) for form in FORMS}
    else:
        model, processor = weights.load(flags.weights)
        columns = score_columns(model, processor, flags.scenes, not flags.quick)
        sizes = {} if flags.quick else by_size(model, processor, min(100, flags.scenes))
    if flags.json:
        print(json.dumps({"natural": columns, "by size": sizes}))
    else:
        print(natural_table(columns, flags.scenes) + (f"\n\n{size_table(sizes)}" if sizes else ""))


if __name__ == "__main__":
    sys.exit(run(main, "eval.natural"))
