"""`python -m minillava.data --count 1000 --out FOLDER`: scenes of the tiny world as files."""

import sys

from minillava.data.scene_records import main
from minillava.errors import run

if __name__ == "__main__":
    sys.exit(run(main, "data"))
