"""Train a LLaVA in its two stages: `python train.py --stage 1`, then `python train.py --stage 2`."""

import sys

from minillava.arguments import Parser, add_flags, from_flags
from minillava.errors import UserError, run


def main() -> None:
    from minillava.training import TrainConfig, train  # after the flags' errors could be told quickly
    from minillava.training.recipes import recipe_settings

    parser = Parser(prog="train.py", description=__doc__)
    add_flags(parser, TrainConfig)
    parser.add_argument(
        "--with", dest="parts", metavar="EXERCISE.py", action="append", help="run on a student's part; repeatable"
    )
    flags = parser.parse_args()
    if flags.stage is None:
        raise UserError("say which stage: --stage 1 (feature alignment) or --stage 2 (visual instruction tuning)")
    config = from_flags(TrainConfig, flags, **recipe_settings(flags))
    if not flags.parts:
        return train(config)
    if config.cache_features:
        raise UserError("--cache-features would keep what a student's part computes: leave it out with --with")
    from lessons.swap import student_parts

    with student_parts(flags.parts):
        train(config)


if __name__ == "__main__":
    sys.exit(run(main, "train.py"))
