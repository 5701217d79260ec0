"""The journal: every reply on disk as soon as it has come, so that nothing is paid for twice.

A line a reply: {"key", "text", "prompt_tokens", "reply_tokens", "truncated"}. A line is written whole and synced before
the next request counts as done. A crash can leave half a line at the end: it is cut off when the journal is opened
again."""

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path

from minillava.data.instruct.teacher import Reply
from minillava.errors import UserError


class Journal:
    """The replies by key; several threads may add."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "a+b")  # noqa: SIM115 (open as long as the journal is)
            self.replies = self._read()
        except OSError as error:
            raise UserError(f"The journal {path} cannot be opened: {error.strerror}.") from None

    def _read(self) -> dict[str, Reply]:
        self.file.seek(0)
        data = self.file.read()
        whole = data.rfind(b"\n") + 1
        self.file.truncate(whole)
        replies = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                values = json.loads(line)
                reply = Reply(
                    values["text"], int(values["prompt_tokens"]), int(values["reply_tokens"]), bool(values["truncated"])
                )
                replies[str(values["key"])] = reply
            except (ValueError, KeyError, TypeError):
                self.file.close()
                raise UserError(
                    f"{self.path}, line {number} is no reply of a teacher; remove the line, or the file to begin anew."
                ) from None
        return replies

    def add(self, key: str, reply: Reply) -> None:
        """Append a reply and wait until the disk has it."""
        line = json.dumps({"key": key, **asdict(reply)}, ensure_ascii=True).encode() + b"\n"
        with self.lock:
            self.file.write(line)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.replies[key] = reply

    def close(self) -> None:
        """Close the file, and remove it if no reply has come."""
        self.file.close()
        if not self.replies:
            self.path.unlink(missing_ok=True)
