"""Known mistakes: wrong versions that students write, each with the sentence that the check says to it; a file for each
exercise.

A mistake is one of an exercise's functions or classes, wrong; its other parts are the product's. When a student's part
fails, and gives on every case what a mistake gives, the check says that mistake's sentence.
"""

from importlib import import_module
from pathlib import Path

from lessons.mistakes.base import MISTAKES

for path in sorted(Path(__file__).parent.glob("e[0-9][0-9]_*.py")):
    import_module(f"lessons.mistakes.{path.stem}")

__all__ = ["MISTAKES"]
