"""The body of an HTTP response, with an end."""

import time
from collections.abc import Iterator

LARGEST = 10_000_000  # bytes


def bound(response, seconds: float) -> None:
    """Let the reading of a response fail after so many seconds or LARGEST bytes; a hook of httpx's clients, which read
    a body through `iter_bytes`.
    """
    parts, deadline = response.iter_bytes(), time.monotonic() + seconds
    response.iter_bytes = lambda: _bounded(parts, deadline)


def _bounded(parts: Iterator[bytes], deadline: float) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > LARGEST or time.monotonic() > deadline:
            raise ValueError(f"the reply has more than {LARGEST / 1e6:.0f} MB, or no end")
        yield part
