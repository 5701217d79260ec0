"""`python -m minillava.pretrain`."""

import argparse
import sys
from dataclasses import fields

from minillava import pretrain
from minillava.arguments import Parser, add_flags, from_flags
from minillava.errors import UserError, run
from minillava.pretrain.chain import make_all
from minillava.pretrain.language import SCENES_IN_WORDS, pretrain_language
from minillava.pretrain.vision import SCENES_AND_PHRASES, pretrain_vision
from minillava.training.recipes import LoopConfig

PARTS = {"language": (pretrain_language, SCENES_IN_WORDS), "vision": (pretrain_vision, SCENES_AND_PHRASES)}


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="pretrain", description=pretrain.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "all"))
    parser.add_argument(
        "--ignore-gates", action="store_true", help="all: go on with a part whose figures are below its gate"
    )
    add_flags(parser, LoopConfig)
    flags = parser.parse_args(argv)
    if flags.part == "all":
        given = [
            item.name for item in fields(LoopConfig) if item.name != "out" and getattr(flags, item.name) is not None
        ]
        if given:
            raise UserError(
                f"all runs every part with its own settings: --{given[0].replace('_', '-')} is for a single part"
            )
        return make_all(flags.out or "runs/tiny", flags.ignore_gates)
    train, recipe = PARTS[flags.part]
    config = from_flags(LoopConfig, flags, **{"out": f"runs/{flags.part}", **recipe})
    train(config)


if __name__ == "__main__":
    sys.exit(run(main, "pretrain"))
