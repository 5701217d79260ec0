"""`python -m minillava.weights show FOLDER | download ORG/NAME`: look into weights, and get them."""

import sys
from argparse import Namespace

from minillava.arguments import Parser
from minillava.errors import run
from minillava.weights.describe import describe
from minillava.weights.download import download


def parser() -> Parser:
    parser = Parser(prog="python -m minillava.weights", description="Look into weights, and get them.")
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("show", help="parts, sizes, number types, template, end tokens of a folder, from its headers").add_argument
    add("folder", help="a weights folder")
    add("--vision", help="the folder of the CLIP whose tower the original LLaVA-1.5 takes")
    add = actions.add_parser("download", help="fetch what is needed of a model of the Hub, safetensors only").add_argument
    add("repository", metavar="ORG/NAME", help="its name on the Hub, such as llava-hf/llava-1.5-7b-hf")
    add("--revision", help="a branch, tag or commit (default: main, pinned to its commit)")
    add("--out", help="the folder to make (default weights/NAME)")
    return parser


def show(flags: Namespace) -> None:
    for name, value in describe(flags.folder, flags.vision):
        print(f"{name:<15} {value}")


def fetch(flags: Namespace) -> None:
    print(download(flags.repository, flags.revision, flags.out))


ACTIONS = {"show": show, "download": fetch}


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    ACTIONS[flags.action](flags)


if __name__ == "__main__":
    sys.exit(run(main, "minillava.weights"))
