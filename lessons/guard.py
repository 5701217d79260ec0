"""Run a command so that nothing of it is left: `python lessons/guard.py FOLDER COMMAND ...` (the standard library only).

Whoever starts the guard holds the other end of its stdin, which closes when that process ends, even if it is killed.
Then, or when the command is over, the guard kills whatever the command has started and removes the folder, which is the
command's folder for temporary files. On Linux it finds all of that, since it adopts what loses its parent; elsewhere
what has left the command's process group may escape it.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

END_WITH_PARENT, ADOPT_ORPHANS = (1, 9), (36, 1)  # options of Linux's prctl, each with its value (9: SIGKILL)
SECONDS = 10  # after which a process that does not go, although it is killed, is left to itself


def set_option(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def guard(folder: str, command: list[str]) -> int:
    """Run the command; its exit status, or 128 + the signal that ended it."""
    set_option(*ADOPT_ORPHANS)
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env={**os.environ, **temporary}, start_new_session=True
    )
    signal.signal(signal.SIGTERM, lambda *_: end(process))
    threading.Thread(target=lambda: (os.read(0, 1), end(process)), daemon=True).start()
    status = process.wait()
    if os.name != "nt":
        kill_all(process.pid)
    shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def end(process: subprocess.Popen) -> None:
    if os.name == "nt":  # which finds the command's own processes as long as the command is there
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    process.kill()


def kill_all(group: int) -> None:
    """Kill the process group, and all that this process is an ancestor of."""
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while (left := descendants()) and time.monotonic() < deadline:
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def descendants() -> set[int]:
    """The children of this process, their children, and so on (Linux)."""
    parents, found = {}, {os.getpid()}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_bytes().rpartition(b")")[2].split()[1])
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1], sys.argv[2:]))
