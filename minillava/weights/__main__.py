"""`python -m minillava.weights show | download | export | random | measure`: look into weights, get them, hand them on,
make some up."""

import sys
from argparse import Namespace

from minillava.arguments import Parser
from minillava.errors import run
from minillava.weights.describe import describe
from minillava.weights.download import download
from minillava.weights.export import LAYOUTS, export
from minillava.weights.random import SIZES, measure, write_random

FOLDER = "a weights folder, or ORG/NAME of the Hub"
VISION = "the folder of the CLIP whose tower the original LLaVA-1.5 takes"


def parser() -> Parser:
    parser = Parser(prog="python -m minillava.weights", description="Look into weights, get them, hand them on.")
    actions = parser.add_subparsers(dest="action", required=True)
    words = "parts, sizes, number types, template, end tokens of a folder, from its headers"
    add = actions.add_parser("show", help=words).add_argument
    add("folder", help=FOLDER)
    add("--vision", help=VISION)
    words = "fetch what is needed of a model of the Hub, safetensors only"
    add = actions.add_parser("download", help=words).add_argument
    add("repository", metavar="ORG/NAME", help="its name on the Hub, such as llava-hf/llava-1.5-7b-hf")
    add("--revision", help="a branch, tag or commit (default: main, pinned to its commit)")
    add("--out", help="the folder to make (default weights/NAME)")
    add = actions.add_parser("export", help="write a LLaVA in the layout that other programs load").add_argument
    add("folder", help=FOLDER)
    words = "llava-hf: transformers, vLLM, SGLang; original: haotian-liu/LLaVA"
    add("--layout", choices=LAYOUTS, required=True, help=words)
    add("--out", required=True, help="the folder to make")
    add("--vision", help=VISION)
    add = actions.add_parser("random", help="write random weights of an official size, to measure with").add_argument
    add("--like", choices=SIZES, required=True, help="whose names, shapes and shards to take")
    add("--out", required=True, help="the folder to make (14 GB for 7B)")
    words = "time and memory of loading a LLaVA, of a picture through it and of a few tokens"
    actions.add_parser("measure", help=words).add_argument("folder", help=FOLDER)
    return parser


def act(flags: Namespace) -> str:
    """Do what is asked; what to print of it."""
    if flags.action == "show":
        return table(describe(flags.folder, flags.vision))
    if flags.action == "download":
        return str(download(flags.repository, flags.revision, flags.out))
    if flags.action == "measure":
        return table(measure(flags.folder))
    if flags.action == "export":
        export(flags.folder, flags.layout, flags.out, flags.vision)
    else:
        write_random(flags.like, flags.out)
    return flags.out


def table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<15} {value}" for name, value in rows)


def main(arguments: list[str] | None = None) -> None:
    print(act(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(run(main, "minillava.weights"))
