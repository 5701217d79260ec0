"""What a linear probe reads off the features at an object's centre: its name, and the row and column of its patch.

    python -m minillava.eval.probe                          # the tower of weights/tiny, and what its projector keeps
    python -m minillava.eval.probe --vision runs/vision     # a tower alone

A probe (arXiv 1610.01644) is one linear layer trained on frozen features. What it cannot find, a language model that
reads these features will hardly find either; what it finds is there to be learnt. Four fifths of the objects train the
probe, the rest test it.
"""

import argparse
import json
import sys

from minillava import weights
from minillava.arguments import Parser, whole_number
from minillava.errors import run
from minillava.pretrain.probe import probe_tower, table


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="eval.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", default="weights/tiny", help="a LLaVA, whose tower and projector are probed (default weights/tiny)"
    )
    parser.add_argument("--vision", help="instead: a vision tower alone")
    parser.add_argument(
        "--scenes", type=whole_number(10, 10**6), default=4000, help="scenes, of three objects each (default 4000)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    flags = parser.parse_args(argv)
    if flags.vision:
        rows = {"tower": probe_tower(weights.load_vision_tower(flags.vision), count=flags.scenes)}
    else:
        model, _ = weights.load(flags.weights)
        rows = {
            "tower": probe_tower(model.vision_tower, count=flags.scenes),
            "projector": probe_tower(model.vision_tower, model.projector, flags.scenes),
        }
    print(json.dumps(rows) if flags.json else table(rows))


if __name__ == "__main__":
    sys.exit(run(main, "eval.probe"))
