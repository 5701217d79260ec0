"""The solutions: the product's own functions and classes, found by what each exercise REPLACES. None is copied.

    solution("rope") -> {"minillava.language_model.rope_tables": <function>, "minillava.language_model.apply_rope":
    <function>}

The merge loop of byte-pair encoding is the one exception: the product leaves it to a library, so it stands in
lessons/bpe.py."""

from lessons.check import FILES
from lessons.swap import original, targets_of


def solution(key: str) -> dict[str, object]:
    """{target: the product's object}; call it while nothing is replaced."""
    return {target: original(target) for target in targets_of(FILES[key])}
