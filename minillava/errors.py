"""Errors that a user can mend: one sentence each, shown as one line by the commands."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

LONGEST_LINE, LONGEST_SENTENCE = 200, 180  # characters; the difference is "chat.py: error: "
# What a terminal obeys instead of showing: control characters but newline and tab, changes of the writing direction,
# and halves of surrogate pairs, which no encoding can write.
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What PyTorch and Python say about the machine, and what can be done about it.
MACHINE = {
    r"out of memory|allocate memory|not enough memory|bad_alloc": (
        "the memory is not enough: lower --batch-size, --micro-batch-size or --max-new-tokens, or take a smaller model"
    ),
    r"no kernel image|not compatible with the current PyTorch": (
        "this PyTorch has no kernels for this GPU: install one that is built for it, or take --device cpu"
    ),
    r"driver .*(too old|insufficient)": (
        "the GPU's driver is too old for this PyTorch: update the driver, or take --device cpu"
    ),
    r"DataLoader worker": (
        "a process of --workers was killed, perhaps because memory or /dev/shm is short: --resume with fewer goes on"
    ),
}


class UserError(Exception):
    """Something that the user can mend; its text is one sentence, of at most 180 characters, that names the thing and
    the remedy.
    """

    def __init__(self, sentence: str):
        super().__init__(shortened(sentence, LONGEST_SENTENCE))


def shortened(text: str, length: int) -> str:
    """One line of at most `length` characters, all of which can be shown: the middles of long names go first, then the
    end.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) > length:
        text = re.sub(r"\S{61,}", lambda name: f"{name[0][:15]}...{name[0][-42:]}", text)
    return text if len(text) <= length else text[: length - 3] + "..."


def shown(text: str) -> str:
    """The text with what a terminal would obey written as Python writes it: "\\x1b"."""
    return UNSHOWN.sub(lambda match: ascii(match[0])[1:-1], text)


def say(line: str) -> None:
    """One line on stderr; nothing where stderr is closed or full."""
    with suppress(AttributeError, OSError, ValueError):  # a closed stream is None, a full one raises
        sys.stderr.write(shortened(line, LONGEST_LINE) + "\n")
        sys.stderr.flush()


def quiet_interrupts() -> None:
    """Let Ctrl-C end the program without a traceback until `run` takes over, in the seconds that the imports take."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(*_) -> None:
    os._exit(130)


def run(main: Callable[[], object], program: str) -> int:
    """Call `main()` and return the exit status: 0 or its own, 2 for an error that is told in one line, 130 for Ctrl-C,
    141 for a closed pipe, 1 for an output that is full. All commands end here; a bug alone shows a traceback.
    """
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with _streams() as stdout:
        try:
            try:
                status = main()
            except SystemExit as leaving:  # --help
                status = leaving.code
            stdout.flush()
            return status if isinstance(status, int) else 0
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            if stdout.lost:
                return 141 if isinstance(error, BrokenPipeError) else 1
            sentence = in_words(error)
            if sentence is None:
                raise
            if sentence:  # empty where another process says why
                say(f"{program}: error: {sentence}")
            return 2


def in_words(error: BaseException) -> str | None:
    """One sentence for what a user, a disk or a machine can do to a program; None for a bug of the program."""
    said = " ".join(str(error).split())
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return in_words(RuntimeError("out of memory"))
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return next((words for pattern, words in MACHINE.items() if re.search(pattern, said, re.IGNORECASE)), None)
    if isinstance(error, OSError):
        name = error.filename if isinstance(error.filename, str | os.PathLike) else ""
        if isinstance(error, FileExistsError):
            return f"{name} is there already, and is no folder"
        return f"{name}: {error.strerror or said or type(error).__name__}".removeprefix(": ")
    if isinstance(error, RecursionError):
        return "something in the files or flags is nested too deeply to be read"
    if isinstance(error, UnicodeError):
        return f"a text holds characters that cannot be read or written here: {said}"
    return None


class _Shown:
    """A stream that shows control characters, which a terminal would obey, and knows when nothing can be printed any
    more, as in `chat.py ... | head` or `> /dev/full`.
    """

    def __init__(self, stream):
        self._stream, self.lost = stream, False

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(shown(text)) and len(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable):
        try:
            return act()
        except OSError:
            self.lost = True
            with suppress(OSError, ValueError):  # the interpreter's last flush then has somewhere to go
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextmanager
def _streams() -> Iterator[_Shown]:
    """stdin, stdout and stderr as every command needs them: there, even if the shell closed them (`>&-`), and able to
    print any character. stdout is a `_Shown`.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open as long as the program runs)
        with suppress(AttributeError):  # a stream of another kind, such as a notebook's
            getattr(sys, name).reconfigure(errors="replace")
    before, sys.stdout = sys.stdout, _Shown(sys.stdout)
    try:
        yield sys.stdout
    finally:
        sys.stdout = before
