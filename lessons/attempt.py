"""What the parts of an exercise give, right or wrong: `answers("rope", {target: part})` yields their results on all
cases, then the property that does not hold, then what the whole model gives with them.

The results are plain values (tensors, lists, tuples, numbers, texts, None), which go from process to process as JSON,
tensors as safetensors: nothing that is read there can run.
"""

import base64
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
import torch
from torch import Tensor

from lessons.swap import describe, short
from lessons.trials import TRIALS
from lessons.trials.base import Case, Raises, WrongWeights
from lessons.whole import attempt


class Stopped(Exception):
    """Why there is nothing more to check; the text is the sentence."""


@dataclass(frozen=True)
class Other:
    """What a case gives when it is no plain value."""

    kind: str  # the name of its type


def answers(key: str, parts: dict[str, object], path: str | Path = "?") -> Iterator:
    """The three answers; Stopped where a part is not written yet. `path` is the file that exceptions are traced to."""
    names = namespace(parts)
    yield [outcome(case, names, path) for case in TRIALS[key].cases()]
    yield broken_property(TRIALS[key].properties(), names, path)
    yield settled(attempt(key, parts, path))


def namespace(parts: dict[str, object]) -> SimpleNamespace:
    """The parts by the names that a case calls them by."""
    return SimpleNamespace(**{short(target): part for target, part in parts.items()})


def outcome(case: Case, names, path: str | Path = "?"):
    """What the parts give on a case, or what they raise."""
    try:
        return settled(case.run(names))
    except NotImplementedError as error:
        raise unfinished(error) from None
    except WrongWeights as error:
        return Raises("WrongWeights", str(error))
    except (Exception, SystemExit) as error:
        return Raises(type(error).__name__, describe(error, path))


def unfinished(error: NotImplementedError) -> Stopped:
    return Stopped(f"Not written yet: {error}. Until then everything here runs on the product's own.")


def broken_property(properties, names, path: str | Path) -> str | None:
    """What is wrong with the first property that does not hold; "" if all hold, None if they cannot be tried."""
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        return None
    for each in properties:
        try:
            with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
                each.holds(names)
        except AssertionError:
            return f"this does not hold: {each.sentence}"
        except NotImplementedError as error:
            raise unfinished(error) from None
        except (Exception, SystemExit) as error:
            return f"it raises {describe(error, path)} while this is tried: {each.sentence}"
    return ""


# ------------------------------------------------------------ plain values
def settled(value):
    """A copy as a plain value, without a graph, so that what is changed later does not count."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(map(settled, value))
    if isinstance(value, int) and abs(value) >= 2**63:
        return float("inf") if value > 0 else -float("inf")
    return value if isinstance(value, int | float | str | Raises | None) else Other(type(value).__name__)


def encoded(value):
    """A plain value, or Stopped, as JSON has them."""
    match value:
        case Tensor():
            return {"tensor": base64.b64encode(safetensors.torch.save({"": value})).decode()}
        case list():
            return [encoded(item) for item in value]
        case tuple():
            return {"tuple": [encoded(item) for item in value]}
        case Raises():
            return {"raises": [value.kind, value.text]}
        case Other():
            return {"other": value.kind}
        case Stopped():
            return {"stopped": str(value)}
    return value


def decoded(value):
    """What was encoded; an exception for everything else."""
    match value:
        case {"tensor": str(text)}:
            return safetensors.torch.load(base64.b64decode(text))[""]
        case list():
            return [decoded(item) for item in value]
        case {"tuple": list(items)}:
            return tuple(map(decoded, items))
        case {"raises": [str(kind), str(text)]}:
            return Raises(kind, text)
        case {"other": str(kind)}:
            return Other(kind)
        case {"stopped": str(text)}:
            return Stopped(text)
        case None | int() | float() | str():
            return settled(value)
    raise ValueError("no plain value")
