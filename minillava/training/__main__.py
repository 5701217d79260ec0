"""`python -m minillava.training plan`: what a training will take, before a GPU is rented."""

import sys

from minillava.arguments import Parser, add_flags, from_flags
from minillava.bench.plan import PlanConfig, report
from minillava.errors import run


def parser() -> Parser:
    parser = Parser(
        prog="python -m minillava.training", description="Know what a training takes before it begins; train.py trains."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    add_flags(
        actions.add_parser("plan", help="parameters, memory, FLOPs and hours of a recipe's stages on so many GPUs"),
        PlanConfig,
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    print(report(from_flags(PlanConfig, parser().parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(run(main, "minillava.training"))
