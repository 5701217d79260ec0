"""How well a model knows the tiny world: accuracy for each kind of question on scenes that no training saw.

    python -m minillava.eval.scenes                                        # weights/tiny, blind, after stage 1, and on unseen pairs
    python -m minillava.eval.scenes --language weights/tiny-language       # the language model alone, which reads the scenes in words

"blind" is the same model shown a plain grey picture: what questions give away by themselves. "unseen pairs" are scenes
with two things that never stood in one training scene. An answer is right when what it says (the yes or no, the number,
the place ...) is the truth; for lists and descriptions the figure is the F1 of the things named.
"""

import argparse
import json
import sys

from minillava import weights
from minillava.arguments import Parser, whole_number
from minillava.data.scene_in_words import FORMS
from minillava.errors import run
from minillava.inputs.tokenizer import Tokenizer
from minillava.training.scoring import cases, score_in_words, score_pictures, table


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="eval.scenes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="weights/tiny", help="a LLaVA (default weights/tiny)")
    parser.add_argument(
        "--stage1", default="weights/tiny-stage1", help="the same after stage 1 alone; '' leaves the column out"
    )
    parser.add_argument("--language", help="instead: a language model, which reads the scenes in words")
    parser.add_argument(
        "--scenes", type=whole_number(1, 10**6), default=500, help="held-out scenes a column (default 500)"
    )
    parser.add_argument(
        "--max-objects", type=int, default=4, choices=range(2, 6), help="objects in a scene, at most (default 4)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    flags = parser.parse_args(argv)
    if flags.language:
        model = weights.load_language_model(flags.language)
        tokenizer = Tokenizer.from_file(weights.find_folder(flags.language))
        asked = cases("val", flags.scenes, flags.max_objects)
        columns = {f"as {form}": score_in_words(model, tokenizer, asked, form) for form in FORMS}
    else:
        model, processor = weights.load(flags.weights)
        # that it is there is known before hours of questions
        stage1 = flags.stage1 and weights.find_folder(flags.stage1)
        asked, pairs = (cases(split, flags.scenes, flags.max_objects) for split in ("val", "pairs"))
        columns = {
            "sees": score_pictures(model, processor, asked, title="sees"),
            "unseen pairs": score_pictures(model, processor, pairs, title="pairs"),
            "blind": score_pictures(model, processor, asked, blind=True, title="blind"),
        }
        if stage1:
            columns["stage 1 only"] = score_pictures(*weights.load(stage1), asked, title="stage 1")
    print(json.dumps(columns) if flags.json else table(columns, asked))


if __name__ == "__main__":
    sys.exit(run(main, "eval.scenes"))
