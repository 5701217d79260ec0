"""Errors that a user can mend: one sentence each, shown as one line by the commands."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

LONGEST_LINE, LONGEST_SENTENCE = 200, 180  # characters; the difference is "chat.py: error: "


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


def say(line: str) -> None:
    """One line on stderr; nothing where stderr is closed or full."""
    with suppress(AttributeError, OSError, ValueError):  # a closed stream is None, a full one raises
        sys.stderr.write(shortened(line, LONGEST_LINE) + "\n")
        sys.stderr.flush()


def run(main: Callable[[], object], program: str) -> int:
    """Call `main()` and return the exit status: 0, or 2 for a UserError, 130 for Ctrl-C, 141 for a closed pipe, 1 for
    an output that is full.
    """
    _open_closed_streams()
    try:
        try:
            status = main()
        except SystemExit as leaving:  # --help
            status = leaving.code
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UserError as error:
        if str(error):  # another process says why
            say(f"{program}: error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not _stdout_is_lost():
            raise
        return 141 if isinstance(error, BrokenPipeError) else 1


def _open_closed_streams() -> None:
    """`<&-`, `>&-`, `2>&-`: Python has None for a closed stream; an empty one in its place spares everyone else the
    question.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open as long as the program runs)


def _stdout_is_lost() -> bool:
    """Whether nothing can be printed any more, as in `chat.py ... | head` or `> /dev/full`; if so, the interpreter's
    last flush is kept quiet.
    """
    try:
        os.write(sys.stdout.fileno(), b"\n")  # a flush that has failed once does not fail again
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
