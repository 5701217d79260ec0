"""Check an exercise: `python -m lessons.check rope` (or `all`), or `check("rope")` in a notebook.

Four steps, a line each: it runs and has the right shape; it equals the definition in lessons/specs.py, or the known
mistake is named; its properties hold; the whole model runs on it. The last is tried even where an earlier one failed,
to hear what the model says with such a part.

A student's file may do anything, so it runs in a process of its own, with a time limit and a limit on what it prints,
and a guard that leaves nothing of it running. It only answers; whether the answers are right is found out here, where
none of its code runs.
"""

import argparse
import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lessons.attempt import Stopped, decoded
from lessons.examine import UNREADABLE, judge
from lessons.solutions import FILES
from minillava.arguments import Parser
from minillava.errors import UserError, run, shown

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120  # that a check may take; one takes about 10, and much longer on a busy machine
START = 300  # that Python and PyTorch may take to start, before the student's file is read
LONGEST = 1 << 28  # bytes of an answer
PRINTED = 100_000  # bytes that a student's file may print
SHOWN = 1_000  # characters of them, and of a line, that are shown
STUDENT = [sys.executable, "-u", "-m", "lessons.student"]


def check(key: str, file: str | Path | None = None, seconds: float = SECONDS) -> None:
    """Print the four steps for the exercise `key`."""
    try:
        report(key, file, seconds)
    except UserError as error:
        print(error)


def report(key: str, file: str | Path | None = None, seconds: float = SECONDS) -> bool:
    """Print the steps as they come; True if all are right."""
    if key not in FILES:
        raise UserError(f"there is no exercise {key!r}; there are {', '.join(FILES)}")
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be a finite number above 0, not {seconds}")
    path, right = Path(file or FILES[key]).resolve(), True
    print(shown(f"{key} ({path.relative_to(ROOT) if path.is_relative_to(ROOT) else file})"), flush=True)
    with Guarded([*STUDENT, key, str(path)], seconds) as student, Guarded([*STUDENT, key], START) as product:
        for line in judge(key, student.answers(), lambda: next(product.answers())):
            right = right and line.ok
            print(shown(line.text[:SHOWN]), flush=True)
        if said := student.said():
            print(shown(f"  (your file printed: {said})"), flush=True)
    return right


class Guarded:
    """A command that answers with JSON lines on stdout, of which nothing is left once it is closed: see guard.py."""

    def __init__(self, command: list[str], seconds: float):
        self.seconds, self.printed, self.arrived = seconds, bytearray(), queue.Queue(maxsize=9)
        self.folder = tempfile.TemporaryDirectory(prefix="minillava-check-", ignore_cleanup_errors=True)
        guard = [sys.executable, "-I", str(ROOT / "lessons" / "guard.py"), self.folder.name]
        self.process = subprocess.Popen(
            [*guard, *command],
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read_prints, daemon=True)
        self.reader.start()
        threading.Thread(target=self._read_answers, daemon=True).start()

    def __enter__(self) -> "Guarded":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:  # the file has stopped its guard, and ends with it
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def _read_answers(self) -> None:
        for line in iter(lambda: self.process.stdout.readline(LONGEST), b""):
            self.arrived.put(line)

    def _read_prints(self) -> None:
        while len(self.printed) <= PRINTED and (data := self.process.stderr.read1(65536)):
            self.printed += data
        if len(self.printed) > PRINTED:
            why = f"It printed more than {PRINTED:,} characters and was stopped: is there a print in a loop?"
            self.arrived.put(json.dumps({"stopped": why}))

    def answers(self) -> Iterator:
        """What it answers, as it comes; Stopped, with the reason, where nothing more comes.

        The time counts from its first line, "ready", when PyTorch is imported.
        """
        self._next(time.monotonic() + START)
        deadline = time.monotonic() + self.seconds
        while True:
            yield self._next(deadline)

    def _next(self, deadline: float):
        """The next answer."""
        while True:
            ended, late = self.process.poll() is not None, time.monotonic() > deadline
            with suppress(queue.Empty):
                return read(self.arrived.get(timeout=0.2))
            if ended:
                raise Stopped(self._cause())
            if late:
                raise Stopped("It did not come to an end in time: is there a loop that never stops?")

    def _cause(self) -> str:
        """Why it ended before all was answered."""
        status, said = self.process.returncode, self.said()
        self.printed.clear()
        cause = f"It ended the whole program (exit status {status}): does it call exit?"
        names = {128 + each: each.name for each in signal.Signals}  # as guard.py tells them
        if status in names:
            cause = f"It crashed Python itself ({names[status]})."
        if status in (-9, 128 + 9):
            cause = "It was killed: perhaps it asked for more memory than there is."
        return f"{cause} Its last words: {said[-300:]}" if said else cause

    def said(self) -> str:
        """What it printed, on one line."""
        self.reader.join(2)  # which ends with the process
        text = self.printed.decode("utf-8", "replace").strip()
        return " | ".join((text if len(text) <= SHOWN else text[:SHOWN] + " ...").splitlines())


def read(line: bytes | str):
    """The answer that a line holds, which may be anything."""
    try:
        answer = decoded(json.loads(line))
    except Exception:
        answer = Stopped(UNREADABLE)
    if isinstance(answer, Stopped):
        raise answer
    return answer


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key", help=f"all, or one of {', '.join(FILES)}")
    parser.add_argument("--file", help="another file than the exercise's own")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time limit (default {SECONDS})")
    flags = parser.parse_args(argv)
    keys = FILES if flags.key == "all" and not flags.file else [flags.key]
    return 0 if all([report(key, flags.file, flags.seconds) for key in keys]) else 1


if __name__ == "__main__":
    sys.exit(run(main, "check"))
