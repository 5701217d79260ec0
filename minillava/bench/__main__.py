"""`python -m minillava.bench NAME`: each benchmark is a module beside this file."""

import importlib
import sys
from pathlib import Path

from minillava.errors import UserError, run


def main() -> None:
    names = sorted({path.stem for path in Path(__file__).parent.glob("[a-z]*.py")} - {"measure", "sizes"})
    name, usage = next(iter(sys.argv[1:]), ""), f"python -m minillava.bench {' | '.join(names)}"
    if name in ("-h", "--help"):
        return print(f"usage: {usage}, each with its own --help")
    if name not in names:
        raise UserError(f"say which benchmark: {usage}")
    importlib.import_module(f"minillava.bench.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(run(main, "python -m minillava.bench"))
