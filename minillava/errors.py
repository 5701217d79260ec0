"""Errors that a user can mend: one sentence each, shown as one line by the commands."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the user can mend; its text is one sentence that names the thing and the remedy."""


def run(main: Callable[[], object], program: str) -> int:
    """Call `main()` and return the exit status: 0, or 2 for a UserError, 130 for Ctrl-C, 141 for a closed pipe."""
    try:
        status = main()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UserError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `chat.py ... | head`: whoever read us has gone; keep the interpreter's last flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
