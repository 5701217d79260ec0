"""Which records a training could not use, and why."""

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from minillava.distributed import all_gather_objects, is_first, world_size
from minillava.files import write_atomically


class LeftOut:
    """Records that a training could not use and why, one JSON object a line in OUT/left_out.jsonl; a resumed run goes
    on with the file.
    """

    def __init__(self, out: Path, resume: bool):
        self.path = out / "left_out.jsonl"
        found = self.path.read_text(encoding="utf-8").splitlines() if resume and self.path.exists() else ()
        self.lines = dict.fromkeys(found)  # a set that keeps its order
        self.exchanged = len(self.lines)

    def add(self, label: dict, why: str) -> None:
        self._add([json.dumps({**label, "why": why})])

    def exchange(self) -> None:
        """Let every process know the records that the others found."""
        if world_size() > 1:
            self._add(chain.from_iterable(all_gather_objects(list(self.lines)[self.exchanged :])))
            self.exchanged = len(self.lines)

    def _add(self, lines: Iterable[str]) -> None:
        """Written at once, since a run may be killed at any moment."""
        known = len(self.lines)
        self.lines |= dict.fromkeys(lines)
        if is_first() and len(self.lines) > known:
            write_atomically(self.path, "".join(line + "\n" for line in self.lines))

    def report(self) -> None:
        if self.lines and is_first():
            were = "1 record was" if len(self.lines) == 1 else f"{len(self.lines)} records were"
            first = json.loads(next(iter(self.lines)))["why"]
            print(f"{were} left out, see {self.path}; the first: {first}")
