"""Check an exercise: `python -m lessons.check rope`, or `check("rope")` in a notebook.

Four steps, a line each: it runs and has the right shape; it equals the definition in lessons/specs.py, or the known
mistake is named; its properties hold; the whole model runs on it. The last is tried even where an earlier one failed,
to hear what the model says with such a part.

A student's file may do anything, so it runs in a process of its own, with a time limit and a limit on what it prints.
However it ends, nothing of it is left running."""

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from minillava.arguments import Parser
from minillava.errors import UserError, run

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = ROOT / "lessons" / "exercises"
SECONDS = 120  # that a check may take; one takes about 10, and much longer on a busy machine
START = 300  # that Python and PyTorch may take to start, before the student's file is read
PRINTED = 100_000  # bytes that a student's file may print
SHOWN = 1_000  # characters of them that are shown
MARK = "MINILLAVA_CHECK"  # an environment variable that all processes of a check inherit
# {"rope": .../e05_rope.py}
FILES = {file.stem.partition("_")[2]: file for file in sorted(EXERCISES.glob("e[0-9][0-9]_*.py"))}


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
    path = Path(file) if file else FILES[key]
    print(f"{key} ({path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path})", flush=True)
    right = True
    for line in examine_file(key, path, seconds):
        right = right and line["ok"]
        if line["text"]:
            print(line["text"], flush=True)
    return right


# ------------------------------------------------------------ the guarded process
def examine_file(key: str, path: Path, seconds: float = SECONDS) -> Iterator[dict]:
    """The lines of the check, {"ok", "text"}, from a process that is ended with all that it started.

    The time counts once PyTorch is imported.
    """
    mark = uuid.uuid4().hex
    receive, send = os.pipe()
    command = [
        sys.executable,
        "-m",
        "lessons.check",
        key,
        "--file",
        str(Path(path).resolve()),
        "--report-to",
        str(send),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, MARK: mark, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[send],
        start_new_session=True,
    )
    os.close(send)
    printed, finished, ended = bytearray(), False, None
    try:
        for line in _lines(process, receive, printed, seconds):
            if isinstance(line, str):
                ended = line
            else:
                finished = finished or line.pop("last", False)
                yield line
    finally:
        _end(process, mark)
        os.close(receive)
        process.stdout.close()
    said = printed.decode("utf-8", "replace").strip()
    if not finished:
        words = f" Its last words: {_short(said[-300:])}" if said and not ended else ""
        yield {"ok": False, "text": f"  {ended or _cause(process.returncode)}{words}"}
    elif said:
        yield {"ok": True, "text": "  (your file printed: " + _short(said) + ")"}


def _short(text: str) -> str:
    text = text if len(text) <= SHOWN else text[:SHOWN] + " ..."
    return " | ".join(text.splitlines())


def _lines(process: subprocess.Popen, receive: int, printed: bytearray, seconds: float) -> Iterator[dict | str]:
    """What the process reports, as it comes; a str says why it was cut short."""
    held, deadline = b"", time.monotonic() + START
    with selectors.DefaultSelector() as selector:
        selector.register(receive, selectors.EVENT_READ)
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                yield "It did not come to an end in time: is there a loop that never stops?"
                return
            for ready, _ in selector.select(min(left, 0.2)):
                data = os.read(ready.fd, 65536)
                if not data:
                    selector.unregister(ready.fileobj)
                    if ready.fd == receive:  # the check itself is over; what it left running is not waited for
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(max(0.0, min(2.0, deadline - time.monotonic())))
                        return
                elif ready.fd == receive:
                    *lines, held = (held + data).split(b"\n")
                    for line in map(json.loads, lines):
                        if "ready" in line:
                            deadline = time.monotonic() + seconds
                        else:
                            yield line
                    if lines and json.loads(lines[-1]).get("last"):
                        return
                else:
                    printed += data
                    if len(printed) > PRINTED:
                        yield f"It printed more than {PRINTED:,} characters and was stopped: is there a print in a loop?"
                        return
            if process.poll() is not None and not selector.select(0):
                return


def _cause(status: int | None) -> str:
    """Why a process ended before the check was over."""
    if status is not None and status < 0 and status != -signal.SIGKILL:
        return f"It crashed Python itself ({signal.Signals(-status).name})."
    if status == -signal.SIGKILL:
        return "It was killed: perhaps it asked for more memory than there is."
    return f"It ended the whole program (exit status {status}): does it call exit?"


def _end(process: subprocess.Popen, mark: str) -> None:
    """End the process, its group, and whatever left the group but bears the mark in its environment (Linux)."""
    killed, deadline = set(), time.monotonic() + 10  # a killed process takes a while to go where the machine is busy
    while time.monotonic() < deadline:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in _marked(mark):
            killed.add(pid)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if process.poll() is not None and not any(map(_runs, killed)):
            break
        time.sleep(0.02)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)


def _marked(mark: str) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if _runs(int(folder.name)) and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                yield int(folder.name)


def _runs(pid: int) -> bool:
    """Is there such a process, and is it more than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ------------------------------------------------------------ inside of it
def _child(key: str, path: str, report_to: int) -> None:
    """Examine the file in this process and report each line as JSON."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.RLIM_INFINITY))
    out = os.fdopen(report_to, "w", buffering=1)

    own = os.getpid()

    def tell(ok: bool, text: str, last: bool = False) -> None:
        if os.getpid() != own:  # the file has forked, and this is the copy
            os._exit(0)
        out.write(json.dumps({"ok": ok, "text": text, "last": last}) + "\n")

    from lessons.examine import examine
    from lessons.swap import load_file, parts_of, targets_of

    out.write('{"ready": true}\n')
    try:
        module = load_file(path)
        parts = parts_of(module, targets_of(FILES[key]))
    except UserError as error:
        return tell(False, f"  {error}", last=True)
    for line in examine(key, parts, path):
        tell(line.ok, line.text)
    tell(True, "", last=True)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key", help=", ".join(FILES))
    parser.add_argument("--file", help="another file than the exercise's own")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time limit (default {SECONDS})")
    parser.add_argument("--report-to", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.report_to is not None:
        _child(flags.key, flags.file, flags.report_to)
        return 0
    return 0 if report(flags.key, flags.file, flags.seconds) else 1


if __name__ == "__main__":
    sys.exit(run(main, "check"))
