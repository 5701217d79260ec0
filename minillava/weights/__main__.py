"""`python -m minillava.weights show | download | export | random | measure`: look into weights, get them, hand them on,
make some up.
"""

import sys
from argparse import Namespace

from minillava.arguments import Parser
from minillava.errors import run
from minillava.weights.describe import describe
from minillava.weights.download import download
from minillava.weights.export import LAYOUTS, export
from minillava.weights.random import SIZES, measure, write_random


def parser() -> Parser:
    parser = Parser(prog="python -m minillava.weights", description="Look into weights, get them, hand them on.")
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser(
        "show", help="parts, sizes, number types, template, end tokens of a folder, from its headers"
    ).add_argument
    add("folder", help="a weights folder")
    add("--vision", help="the folder of the CLIP whose tower the original LLaVA-1.5 takes")
    add = actions.add_parser(
        "download", help="fetch what is needed of a model of the Hub, safetensors only"
    ).add_argument
    add("repository", metavar="ORG/NAME", help="its name on the Hub, such as llava-hf/llava-1.5-7b-hf")
    add("--revision", help="a branch, tag or commit (default: main, pinned to its commit)")
    add("--out", help="the folder to make (default weights/NAME)")
    add = actions.add_parser("export", help="write a LLaVA in the layout that other programs load").add_argument
    add("folder", help="a weights folder")
    add(
        "--layout",
        choices=LAYOUTS,
        required=True,
        help="llava-hf: transformers, vLLM, SGLang; original: haotian-liu/LLaVA",
    )
    add("--out", required=True, help="the folder to make")
    add("--vision", help="the folder of the CLIP whose tower the original LLaVA-1.5 takes")
    add = actions.add_parser("random", help="write random weights of an official size, to measure with").add_argument
    add("--like", choices=SIZES, required=True, help="whose names, shapes and shards to take")
    add("--out", required=True, help="the folder to make (14 GB for 7B)")
    add = actions.add_parser(
        "measure", help="time and memory of loading a LLaVA, of a picture through it and of a few tokens"
    ).add_argument
    add("folder", help="a weights folder")
    return parser


def show(flags: Namespace) -> None:
    print_rows(describe(flags.folder, flags.vision))


def print_rows(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<15} {value}")


def fetch(flags: Namespace) -> None:
    print(download(flags.repository, flags.revision, flags.out))


def write(flags: Namespace) -> None:
    export(flags.folder, flags.layout, flags.out, flags.vision)
    print(flags.out)


def make(flags: Namespace) -> None:
    write_random(flags.like, flags.out)
    print(flags.out)


def weigh(flags: Namespace) -> None:
    print_rows(measure(flags.folder))


ACTIONS = {"show": show, "download": fetch, "export": write, "random": make, "measure": weigh}


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    ACTIONS[flags.action](flags)


if __name__ == "__main__":
    sys.exit(run(main, "minillava.weights"))
