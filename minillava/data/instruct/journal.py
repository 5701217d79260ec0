"""The journal: every reply is on disk as soon as it has come, so that nothing is paid for twice.

A line a reply: {"key", "text", "prompt_tokens", "reply_tokens", "truncated"}. A line is written whole and synced before
its request counts as done. A killed run can leave half a line at the end: it is cut off when the journal is opened
again.
"""

import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from minillava.data.instruct.teacher import Reply
from minillava.errors import UserError


class Journal:
    """The replies by key; several threads may add."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        try:
            self.file = open(path, "a+b", buffering=0)  # noqa: SIM115 (open as long as the journal is)
            self.replies = self._read()
        except OSError as error:
            raise UserError(f"The journal {path} cannot be opened: {error.strerror}.") from None

    def _read(self) -> dict[str, Reply]:
        self.file.seek(0)
        data = self.file.read()
        whole = data.rfind(b"\n") + 1
        self.file.truncate(whole)
        replies = {}
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):
            try:
                values = json.loads(line)
                counts = int(values["prompt_tokens"]), int(values["reply_tokens"])
                replies[str(values["key"])] = Reply("" + values["text"], *counts, bool(values["truncated"]))
            except (ValueError, KeyError, TypeError, ArithmeticError):
                self.file.close()
                raise UserError(
                    f"{self.path}, line {number} is no reply of a teacher; remove the line, or the file to begin anew."
                ) from None
        return replies

    def add(self, key: str, reply: Reply) -> None:
        """Append a reply and wait until the disk has it; UserError where it does not take it, with no half line left."""
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        with self.lock:
            before = self.file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[self.file.write(line) :]
                os.fsync(self.file.fileno())
            except OSError as error:
                with suppress(OSError):
                    self.file.truncate(before)
                raise UserError(
                    f"{self.path} cannot be written: {error.strerror}; all replies before are in it, and the same "
                    "command goes on from there."
                ) from None
            self.replies[key] = reply

    def close(self) -> None:
        """Close the file once no line is being written, and remove it if no reply has come."""
        with self.lock:
            self.file.close()
        if not self.replies:
            self.path.unlink(missing_ok=True)
