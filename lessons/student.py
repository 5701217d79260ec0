"""The process in which a student's file runs: `python -m lessons.student KEY FILE` writes the answers of its parts on
stdout, one JSON a line; what the file prints goes to stderr. Without a FILE it is the product's own parts that answer,
with the whole model alone.

The file may do anything to this process, so nothing that comes out of it is more than an answer: lessons/check.py, in
another process, finds out whether it is right.
"""

import json
import os
import sys
from contextlib import suppress

from lessons.attempt import Stopped, answers, encoded
from lessons.guard import END_WITH_PARENT, set_option
from lessons.solutions import FILES, OwnPart, hidden
from lessons.swap import describe, load_file, parts_of, targets_of
from lessons.whole import product
from minillava.errors import UserError

MEMORY = 16 << 30  # bytes of address space


def main(key: str, path: str | None = None) -> None:
    set_option(*END_WITH_PARENT)
    limit_memory()
    report, own = os.fdopen(os.dup(1), "wb"), os.getpid()
    os.dup2(2, 1)

    def tell(answer) -> None:
        if os.getpid() != own:  # the file has forked, and this is the copy
            os._exit(0)
        report.write(json.dumps(encoded(answer)).encode() + b"\n")
        report.flush()

    tell("ready")
    try:
        if path is None:
            return tell(product(key))
        with hidden(key):
            for answer in answers(key, parts_of(load_file(path), targets_of(FILES[key])), path):
                tell(answer)
    except (Stopped, UserError, OwnPart) as reason:
        tell(Stopped(str(reason)))
    except Exception as error:  # what the part gave is a tensor of a kind that no file holds, or the like
        tell(Stopped(f"What it gives cannot be compared: {describe(error, path or '?')}"))


def limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main(*sys.argv[1:])
