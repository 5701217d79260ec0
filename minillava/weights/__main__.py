"""`python -m minillava.weights show FOLDER`: look into a weights folder, without loading it."""

import sys

from minillava.arguments import Parser
from minillava.errors import run
from minillava.weights.describe import describe


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m minillava.weights", description="Look into a weights folder, without loading it.")
    parser.add_argument("action", choices=("show",), help="show: parts, sizes, number types, template, end tokens, sampling defaults")
    parser.add_argument("folder", help="a weights folder")
    for name, value in describe(parser.parse_args(arguments).folder):
        print(f"{name:<15} {value}")


if __name__ == "__main__":
    sys.exit(run(main, "minillava.weights"))
