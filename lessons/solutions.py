"""The exercises and their solutions: the product's own functions and classes, found by what each exercise REPLACES. None
is copied.

    solution("rope") -> {"minillava.language_model.rope_tables": <function>, "minillava.language_model.apply_rope":
    <function>}

The merge loop of byte-pair encoding is the one exception: the product leaves it to a library, so it stands in
lessons/bpe.py.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

from torch import nn

from lessons import specs
from lessons.swap import COMPANIONS, original, put, short, targets_of

EXERCISES = Path(__file__).resolve().parent / "exercises"
# {"rope": .../e05_rope.py}
FILES = {file.stem.partition("_")[2]: file for file in sorted(EXERCISES.glob("e[0-9][0-9]_*.py"))}
HELPERS = {  # functions of the product that a solution calls, and that the student writes as part of the exercise
    "loss": ("minillava.training.loss.supervised_logits", "minillava.training.loss.supervised_states"),
    "sample": ("minillava.generation.keep_top_k", "minillava.generation.keep_top_p"),
}


def solution(key: str) -> dict[str, object]:
    """{target: the product's object}; call it while nothing is replaced."""
    return {target: original(target) for target in targets_of(FILES[key])}


class OwnPart(BaseException):
    """A student's file calls what it is to write; a BaseException, so that no `except Exception` of the file hides it."""


@contextmanager
def hidden(key: str) -> Iterator[None]:
    """Without the solution, its twins and helpers and the definitions: to call one, under whatever name, raises an
    OwnPart.
    """
    names = {*targets_of(FILES[key]), *HELPERS.get(key, ()), "lessons.trials.base.Case.truth"}
    names |= {twin for target in names for twin in COMPANIONS.get(target, ())}
    definitions = ModuleType(specs.__name__)
    vars(definitions).update({name: _refusing(f"lessons.specs.{name}") for name in vars(specs) if name[0] != "_"})
    with ExitStack() as undo:
        for name in names:
            put(name, _refusing(name), undo)
        put(specs.__name__, definitions, undo)
        sys.modules[specs.__name__] = definitions  # and not the definitions themselves, which the cases need
        undo.callback(sys.modules.__setitem__, specs.__name__, specs)
        yield


def _refusing(target: str):
    """What stands in a part's place, and says so when it is called or made."""
    kind = "class" if isinstance(original(target), type) else "function"

    def refuse(*_, **__):
        raise OwnPart(f"{short(target)}: this is the project's own {kind}, and the exercise asks for yours")

    return type(short(target), (nn.Module,), {"__init__": refuse}) if kind == "class" else refuse
