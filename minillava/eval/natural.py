"""How well a model answers what people ask beyond the first ten kinds of question, on scenes that no training saw.

    python -m minillava.eval.natural                                      # weights/tiny
    python -m minillava.eval.natural --language weights/tiny-language     # the language model alone, on scenes in words

Each kind counts alike. "held out" asks in wordings, about nouns and with small talk that no training used, "training"
in those of the training; "typed" is held out in lower case, with short forms and spelling mistakes; "later" comes after
six other questions; "grey picture" is the same model shown one. The second table names and counts things that are
alone, by size.
"""

import argparse
import json
import sys

from minillava import weights
from minillava.arguments import Parser
from minillava.data.scene_in_words import FORMS
from minillava.errors import run
from minillava.inputs.tokenizer import Tokenizer
from minillava.training.scoring import (
    natural_cases,
    score_by_size,
    score_in_words,
    score_natural,
    size_table,
    table_with_mean,
)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="eval.natural", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/tiny", help="a LLaVA (default weights/tiny)")
    parser.add_argument("--language", help="instead: a language model, which reads the scenes in words")
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes (default 300)")
    parser.add_argument("--quick", action="store_true", help="the columns held out and training alone")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    flags = parser.parse_args(argv)
    sizes: dict[int, dict[str, float]] = {}
    if flags.language:
        model = weights.load_language_model(flags.language)
        tokenizer = Tokenizer.from_file(weights.find_folder(flags.language))
        asked = natural_cases(flags.scenes)
        columns = {f"as {form}": score_in_words(model, tokenizer, asked, form) for form in FORMS}
    else:
        model, processor = weights.load(flags.weights)
        columns = score_natural(model, processor, flags.scenes, flags.quick)
        sizes = {} if flags.quick else score_by_size(model, processor, min(100, flags.scenes))
    if flags.json:
        print(json.dumps({"natural": columns, "by size": sizes}))
    else:
        print(table_with_mean(columns, natural_cases(flags.scenes)) + (f"\n\n{size_table(sizes)}" if sizes else ""))


if __name__ == "__main__":
    sys.exit(run(main, "eval.natural"))
