"""The four steps of a check, in this process: `examine("rope", {target: part})` yields a line for each.

lessons/check.py runs this in a process of its own. Only parts that are known to behave, such as the product's, should
be examined directly."""

import functools
import math
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from lessons.mistakes import MISTAKES
from lessons.solutions import solution
from lessons.swap import describe, short
from lessons.trials import TRIALS
from lessons.trials.base import Case, Raises, WrongWeights

STEPS = ("runs, and has the shape", "equals the definition", "its properties hold", "the whole model runs on it")


@dataclass(frozen=True)
class Line:
    """A step's result; `sentence` is what was found, `text` the line as it is printed. Step 0: there is nothing to
    check yet.
    """

    step: int
    ok: bool
    sentence: str

    @property
    def text(self) -> str:
        if not self.step:
            return f"  {self.sentence}"
        return f"{self.step} {STEPS[self.step - 1] + ' ':.<28} {'yes' if self.ok else 'no'}{': ' * bool(self.sentence)}{self.sentence}"


class Unfinished(Exception):
    """The exercise is not written yet; the text is the stub's sentence."""


def examine(key: str, parts: dict[str, object], path: str | Path = "", whole: bool = True) -> Iterator[Line]:
    """The steps of one exercise; without `whole`, the first three."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    trial, names = TRIALS[key], namespace(parts)
    cases = trial.cases()
    try:
        right, sentence = first_step(key, cases, names, path)
        yield Line(1, right, sentence)
        if right:
            right, sentence = second_step(key, cases, names, path)
            yield Line(2, right, sentence)
        if right:
            right, sentence = third_step(trial.properties(), names, path)
            yield Line(3, right, sentence)
    except Unfinished as unfinished:
        yield Line(0, False, f"Not written yet: {unfinished}. Until then everything here runs on the product's own.")
        return
    if whole:
        from lessons.whole import whole_model

        yield Line(4, *whole_model(key, parts, path, right))


def namespace(parts: dict[str, object]) -> SimpleNamespace:
    """The parts by the names that a case calls them by."""
    return SimpleNamespace(**{short(target): part for target, part in parts.items()})


# ------------------------------------------------------------ steps 1 and 2
def first_step(key: str, cases: list[Case], names, path) -> tuple[bool, str]:
    """Every function on its first case: does it run, and give the types and shapes of the definition?"""
    for case in cases[:2]:
        given = outcome(case, names, path)
        if isinstance(given, Raises) and not isinstance(truth_of(case), Raises):
            return False, known_mistake(key, cases, names, path) or f"on {case.name} it raises {given.text}"
        if (wrong := compare_shapes(given, truth_of(case))) is not None:
            return False, known_mistake(key, cases, names, path) or f"on {case.name} {wrong}"
    return True, ""


def second_step(key: str, cases: list[Case], names, path) -> tuple[bool, str]:
    for case in cases:
        given, truth = outcome(case, names, path), truth_of(case)
        wrong = compare(given, truth, case.tolerance)
        if wrong is not None:
            return False, known_mistake(key, cases, names, path) or f"on {case.name} {wrong}"
    return True, f"on {len(cases)} cases"


def outcome(case: Case, names, path):
    """What the parts give on a case, or what they raise."""
    try:
        return settled(case.run(names))
    except NotImplementedError as error:
        raise Unfinished(str(error)) from None
    except WrongWeights as error:
        return Raises("WrongWeights", str(error))
    except (Exception, SystemExit) as error:
        return Raises(type(error).__name__, describe(error, path or "?"))


def settled(value):
    """A copy without a graph, so that what is changed later does not count."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return type(value)(settled(item) for item in value)
    return value


def truth_of(case: Case):
    return settled(case.truth())


def known_mistake(key: str, cases: list[Case], names, path) -> str | None:
    """The sentence of the mistake that gives the same on every case."""
    given = [outcome(case, names, path) for case in cases]
    for mistake in MISTAKES[key]:
        if all(alike(a, b, case.tolerance) for a, b, case in zip(given, mistaken(key, mistake), cases, strict=True)):
            return mistake.sentence
    return None


@functools.cache
def _mistaken(key: str, index: int) -> list:
    mistake = MISTAKES[key][index]
    names = SimpleNamespace(**{**vars(namespace(solution(key))), mistake.name: mistake.part})
    return [outcome(case, names, "") for case in TRIALS[key].cases()]


def mistaken(key: str, mistake) -> list:
    """What a known mistake gives on the cases."""
    return _mistaken(key, MISTAKES[key].index(mistake))


def alike(a, b, tolerance: float) -> bool:
    if isinstance(a, Raises) or isinstance(b, Raises):
        return (
            isinstance(a, Raises)
            and isinstance(b, Raises)
            and a.kind == b.kind
            and (a.kind != "WrongWeights" or a.text == b.text)
        )
    return compare(a, b, tolerance) is None


# ------------------------------------------------------------ comparing
def kind(value) -> str:
    return "a tensor" if isinstance(value, Tensor) else "None" if value is None else f"a {type(value).__name__}"


def compare_shapes(given, truth) -> str | None:
    """What is wrong with the type or shape, in words; None if nothing is."""
    if isinstance(truth, Raises):
        return None if isinstance(given, Raises) and given.kind == truth.kind else "an error is due"
    if isinstance(given, Raises):
        return f"it raises {given.text}"
    if (
        isinstance(truth, bool | int | float)
        and not isinstance(given, Tensor | str)
        and isinstance(given, bool | int | float)
    ):
        return None
    if isinstance(truth, tuple | list):
        if not isinstance(given, tuple | list):
            return f"it gives {kind(given)} where {len(truth)} values are due"
        if len(given) != len(truth):
            return f"it gives {len(given)} values where {len(truth)} are due"
        return next((wrong for a, b in zip(given, truth) if (wrong := compare_shapes(a, b)) is not None), None)
    if not isinstance(given, type(truth)):
        return f"it gives {kind(given)} where {kind(truth)} is due"
    if isinstance(truth, Tensor):
        if given.shape != truth.shape:
            return f"it gives the shape {tuple(given.shape)} where {tuple(truth.shape)} is due"
        floats = given.dtype.is_floating_point, truth.dtype.is_floating_point
        if given.dtype != truth.dtype and not (floats == (True, True) and torch.float64 in (given.dtype, truth.dtype)):
            return f"it gives {_dtype(given)} where {_dtype(truth)} is due"
    return None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def compare(given, truth, tolerance: float) -> str | None:
    """What differs, in words; None if nothing does."""
    if isinstance(truth, Raises):
        if isinstance(given, Raises):
            return None if given.kind == truth.kind else f"it raises {given.kind}, where {truth.kind} is asked for"
        return f"it gives a result, where {truth.kind} is asked for"
    if (wrong := compare_shapes(given, truth)) is not None:
        return wrong
    if isinstance(truth, tuple | list):
        return next((wrong for a, b in zip(given, truth) if (wrong := compare(a, b, tolerance)) is not None), None)
    if isinstance(truth, float):
        same = math.isclose(given, truth, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
        return None if same else f"it gives {given:.6g} where {truth:.6g} is due"
    if isinstance(truth, Tensor):
        return _compare_tensors(given, truth, tolerance)
    return None if given == truth else f"it gives {given!r} where {truth!r} is due"


def _compare_tensors(given: Tensor, truth: Tensor, tolerance: float) -> str | None:
    if not truth.numel():
        return None
    low = truth.dtype in (torch.bfloat16, torch.float16)
    a, b = given.double(), truth.double()
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(math.inf, math.inf)
    if low:  # one step of rounding here and there is no mistake, a step everywhere is one
        step = torch.finfo(truth.dtype).eps
        finite = b.abs().nan_to_num(1.0, 1.0, 1.0)
        relative = difference / finite.clamp(min=float(finite.max()) * 1e-3 + 1e-9)
        if relative.max() <= 1.01 * step and relative.mean() <= step / 32:
            return None
    elif difference.max() <= tolerance * max(1.0, float(b.abs().nan_to_num(0.0, 0.0, 0.0).max())):
        return None
    at = tuple(torch.nonzero(difference == difference.max())[0].tolist())
    place = f" at {list(at)}" if at else ""
    return f"it gives {float(a[at]):.5g}{place} where {float(b[at]):.5g} is due"


# ------------------------------------------------------------ step 3
def third_step(properties, names, path) -> tuple[bool, str]:
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        return True, "not tried, since hypothesis is not installed (pip install hypothesis)"
    for each in properties:
        try:
            with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
                each.holds(names)
        except AssertionError:
            return False, f"this does not hold: {each.sentence}"
        except NotImplementedError as error:
            raise Unfinished(str(error)) from None
        except (Exception, SystemExit) as error:
            return False, f"it raises {describe(error, path or '?')} while this is tried: {each.sentence}"
    return True, "; ".join(each.sentence for each in properties)
