"""What each exercise is tried on, a file each, named as the exercise: cases with odd shapes, and properties that hold
for every input.

A case runs the parts (an object with their names) on inputs of its own and returns what they gave. What it should give
is what lessons/specs.py gives on the same inputs. A property is a sentence and a function that fails by an assertion;
hypothesis draws its inputs, the same ones every time.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

STEMS = sorted(path.stem for path in Path(__file__).parent.glob("e[0-9][0-9]_*.py"))
# each with cases, properties
TRIALS: dict[str, ModuleType] = {stem.partition("_")[2]: import_module(f"lessons.trials.{stem}") for stem in STEMS}
