"""Files that are whole or absent, and paths that stay in their folder."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from minillava.errors import UserError


def write_atomically(path: str | Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write bytes, text, or whatever `content(temporary_path)` writes; `path` shows the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; these are ordinary ones
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def inside(folder: str | Path, relative: str | Path) -> Path:
    """The path of `relative` in `folder`; UserError if it is absolute, or leads out by `..` or by a symbolic link."""
    relative = Path(relative)
    path = Path(folder) / relative
    if relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
        raise UserError(f"The path {str(relative)!r} must be relative and must not hold '..'.")
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise UserError(f"The path {str(relative)!r} leads out of {folder}.")
    return path


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; UserError in one sentence if it cannot be read or is not an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


def write_json(path: str | Path, value: dict) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
