"""The four steps of a check: `examine("rope", {target: part})` yields a line for each.

It runs the parts in this process. Only parts that are known to behave, such as the product's, should be examined so; for
all others lessons/check.py has the answers come from another process, and only `judge` runs here.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lessons.attempt import Other, Stopped, answers, namespace, outcome, settled
from lessons.mistakes import MISTAKES
from lessons.solutions import solution
from lessons.trials import TRIALS
from lessons.trials.base import Case, Raises
from lessons.whole import product, verdict

STEPS = ("runs, and has the shape", "equals the definition", "its properties hold", "the whole model runs on it")
NOT_TRIED = "not tried, since hypothesis is not installed (pip install hypothesis)"
UNREADABLE = "What came from your file's process is no answer: does the file write where only the check should?"


@dataclass(frozen=True)
class Line:
    """A step's result; `sentence` is what was found, `text` the line as it is printed. Step 0: the check ends here."""

    step: int
    ok: bool
    sentence: str

    @property
    def text(self) -> str:
        if not self.step:
            return f"  {self.sentence}"
        return f"{self.step} {STEPS[self.step - 1] + ' ':.<28} {'yes' if self.ok else 'no'}{': ' * bool(self.sentence)}{self.sentence}"


def examine(key: str, parts: dict[str, object], path="?", whole: bool = True) -> Iterator[Line]:
    """The steps of one exercise; without `whole`, the first three."""
    return judge(key, answers(key, parts, path), lambda: product(key), whole)


def judge(key: str, answers: Iterator, truth: Callable[[], list], whole: bool = True) -> Iterator[Line]:
    """The steps, from the `answers` (lessons/attempt.py), which may be anything, and `truth()`, what the whole model
    gives on the product's own parts.
    """
    cases, properties = TRIALS[key].cases(), TRIALS[key].properties()
    try:
        given = next(answers)
        expect(isinstance(given, list) and len(given) == len(cases))
        wrong = difference(key, given, lambda value, case: compare_shapes(value, truth_of(case)), first=2)
        yield Line(1, not wrong, wrong)
        if not wrong:
            wrong = difference(key, given, lambda value, case: compare(value, truth_of(case), case.tolerance))
            yield Line(2, not wrong, wrong or f"on {len(cases)} cases")
        broken = next(answers)
        expect(broken is None or isinstance(broken, str))
        if not wrong:
            wrong, tried = broken or "", broken is not None
            held = "; ".join(each.sentence for each in properties) if tried else NOT_TRIED
            yield Line(3, not wrong, wrong or held)
        if whole:
            given, due = next(answers), truth()
            expect(isinstance(given, str) or alike_run(given, due))
            yield Line(4, *verdict(key, given, due, not wrong))
    except Stopped as reason:
        yield Line(0, False, str(reason))


def expect(fits: bool) -> None:
    if not fits:
        raise Stopped(UNREADABLE)


def alike_run(given, due: list) -> bool:
    """Whether an answer has the form of what a whole model gives."""
    match given:
        case [Tensor() as values, list(calls), str()]:
            return values.dtype == due[0].dtype and len(calls) == len(due[1]) and all(type(n) is int for n in calls)
    return False


# ------------------------------------------------------------ steps 1 and 2
def difference(key: str, given: list, differ: Callable, first: int | None = None) -> str:
    """What is wrong with the first case that differs, or the known mistake that it is; "" if none does."""
    for case, value in zip(TRIALS[key].cases()[:first], given):
        if (wrong := differ(value, case)) is not None:
            return known_mistake(key, given) or f"on {case.name} {wrong}"
    return ""


def truth_of(case: Case):
    return settled(case.truth())


def known_mistake(key: str, given: list) -> str | None:
    """The sentence of the mistake that gives the same on every case."""
    cases = TRIALS[key].cases()
    for index, mistake in enumerate(MISTAKES[key]):
        if all(alike(a, b, case.tolerance) for a, b, case in zip(given, mistaken(key, index), cases, strict=True)):
            return mistake.sentence
    return None


@functools.cache
def mistaken(key: str, index: int) -> list:
    """What a known mistake gives on the cases."""
    mistake = MISTAKES[key][index]
    names = namespace(solution(key))
    setattr(names, mistake.name, mistake.part)
    return [outcome(case, names) for case in TRIALS[key].cases()]


def alike(a, b, tolerance: float) -> bool:
    if isinstance(a, Raises) and isinstance(b, Raises):
        return a.kind == b.kind and (a.kind != "WrongWeights" or a.text == b.text)
    return not isinstance(b, Raises) and compare(a, b, tolerance) is None


# ------------------------------------------------------------ comparing
def kind(value) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    return "None" if value is None else f"a {value.kind if isinstance(value, Other) else type(value).__name__}"


def compare_shapes(given, truth) -> str | None:
    """What is wrong with the type or shape, in words; None if nothing is."""
    if isinstance(truth, Raises):
        return None if isinstance(given, Raises) and given.kind == truth.kind else "an error is due"
    if isinstance(given, Raises):
        return f"it raises {given.text}"
    if isinstance(truth, int | float) and isinstance(given, int | float):
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
            return f"it gives {given.dtype} where {truth.dtype} is due".replace("torch.", "")
    return None


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
