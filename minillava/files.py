"""Files that are whole or absent, and paths that stay in their folder."""

import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote_to_bytes

from minillava.errors import UserError

GIT_LFS = b"version https://git-lfs.github.com/spec/"  # so begins a note of where the real file is kept


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
    """The path in `folder` of a name that a file gave; UserError if it is absolute or holds '..'.

    Links are the user's own, and followed.
    """
    check_name(str(relative))
    return Path(folder) / relative


def check_name(name: str) -> None:
    """UserError for a name, given by a file, that is absolute or holds '..'."""
    if name[:1] != "/" and not re.search(r"\.\.|[\\:\0]", name):
        return  # nearly every name, told quickly
    if Path(name).is_absolute() or PureWindowsPath(name).anchor or ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise UserError(f"The path {name!r} must be relative and must not hold '..'.")


def given_path(text: str) -> str:
    """A path (or URL) as people give it: surrounding quotes, a shell's backslashes, ~ and file:// are undone.

    What exists as typed stays as typed.
    """
    if os.path.lexists(text):
        return text
    text = text.strip()
    for opening, closing in ('""', "''", "“”", "‘’", "«»"):
        if len(text) > 1 and text[0] == opening and text[-1] == closing and closing not in text[1:-1]:
            return given_path(text[1:-1])
    if text.lower().startswith("file:"):
        return _of_file_url(text)
    for words in _as_a_shell_would(text):
        if len(words) == 1 and (os.path.lexists(os.path.expanduser(words[0])) or words[0].lower().startswith("http")):
            text = words[0]
    return os.path.expanduser(text)


def _as_a_shell_would(text: str) -> list[list[str]]:
    try:
        return [shlex.split(text)]
    except ValueError:  # a lone quote is a part of the name
        return []


def _of_file_url(url: str) -> str:
    path = url[len("file:") :]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise UserError(f"{url} names another machine: a file of this one is written file:///path.")
        path = slash + path
    path = os.fsdecode(unquote_to_bytes(path))
    return path[1:] if os.name == "nt" and re.match(r"/[A-Za-z]:", path) else path


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; UserError in one sentence if it cannot be read or is not an object."""
    value = parse_json(read_file(path), path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


def read_file(path: str | Path) -> bytes:
    """The bytes of a file; UserError if it cannot be read or is Git LFS's pointer."""
    try:
        if stat.S_ISCHR(os.stat(path).st_mode):
            raise UserError(f"{path} is a device, not a file.")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    check_not_git_lfs(data[:100], path)
    return data


def check_not_git_lfs(beginning: bytes, path: str | Path) -> None:
    """UserError where a file's beginning is that of Git LFS's pointer to it."""
    if beginning.startswith(GIT_LFS):
        raise UserError(f"{path} is Git LFS's pointer to the file, not the file itself: `git lfs pull` fetches it.")


def parse_json(data: bytes, path: str | Path):
    """What JSON text means, in UTF-8, 16 or 32, with or without a byte order mark."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None


def write_json(path: str | Path, value: dict) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
