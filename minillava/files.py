"""Files that are whole or absent, and paths that stay in their folder."""

import glob
import json
import os
import re
import shlex
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote, unquote_to_bytes

from minillava.errors import UserError

LONGEST_PATH = 4096  # characters; what is longer is no path
LARGEST = 1 << 28  # bytes of a file that is read whole: 268 MB, where its reader says nothing else
TEMPORARY = ".minillava.tmp"  # what the names of files end in that are not whole yet
# Every escape of a JSON text, of which (1) are those that mean a character.
ESCAPES = re.compile(
    r"(\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F][0-9a-fA-F]{2}", re.DOTALL
)
GIT_LFS = b"version https://git-lfs.github.com/spec/"  # so begins a note of where the real file is kept


def write_atomically(path: str | Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write bytes, text, or whatever `content(temporary_path)` writes; `path` shows the old file or the whole new one.

    UserError where `path` is a device, a pipe or a folder, which a file must not take the place of.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {kind_of(path)}, which is not written over: choose another name.")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; these are ordinary ones
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(out: str | Path) -> Iterator[None]:
    """Be the only one who writes to `out`, a file or a folder that is there; UserError where another process does.

    What an earlier process that was killed left half-written in the folder is removed.
    """
    folder, name = (out, ".lock") if os.path.isdir(out) else os.path.split(os.path.abspath(out))
    path = Path(folder) / (name if name.startswith(".") else f".{name}.lock")
    with open(path, "ab") as file:
        try:
            _lock(file.fileno())
            if os.fstat(file.fileno()).st_ino != os.stat(path).st_ino:  # another, just ended, took the file away
                raise OSError
        except OSError:
            raise UserError(f"another process writes to {out}: wait for it, stop it, or choose another --out") from None
        try:
            whose = "*" if path.name == ".lock" else glob.escape(Path(name).stem)  # data.report.md goes with data.json
            for left in [*Path(folder).glob(f".{whose}.*{TEMPORARY}"), *Path(folder).glob(f"*/.{whose}.*{TEMPORARY}")]:
                left.unlink(missing_ok=True)
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(handle: int) -> None:
    """A lock that ends with the process, whatever ends it, and that its children do not inherit."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
    if os.path.lexists(text) or len(text) > LONGEST_PATH:
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
    text = os.path.expanduser(text)
    return text if os.path.lexists(text) else _as_on_the_disk(text)


def _as_on_the_disk(path: str) -> str:
    """A path at which nothing is, with the names that its last parts have on the disk if only their writing differs."""
    folder = next((folder for folder in Path(path).parents if os.path.isdir(folder)), None)
    found = folder and FolderListings().find(folder, os.path.relpath(path, folder))
    return os.path.join(folder, found) if found else path


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


class FolderListings:
    """Which files are in folders, each of which is listed once: for hundreds of thousands of names much faster than
    asking for each.
    """

    def __init__(self):
        self._exact: dict[str, dict[str, os.DirEntry]] = {}
        self._alike: dict[str, dict[str, os.DirEntry]] = {}

    def find(self, folder: str | Path, name: str) -> str | None:
        """The file of the folder that is meant by `name`, which may come from another system or program: its name on
        the disk, or None.

        If no file is called exactly so, accents may be written in either way (NFC, NFD), "\\" may stand for "/", a
        character for its percent-encoding, and spaces around the whole.
        """
        path, last = os.path.split(name)
        if self._is_file(self._entries(os.path.join(folder, path)).get(last)):
            return name  # nearly every one
        path, entry = "", None
        for part in _plain(name).replace("\\", "/").split("/"):
            if part in ("", "."):
                continue
            entry = self._entries_alike(os.path.join(folder, path)).get(part)
            if entry is None:
                return None
            path = os.path.join(path, entry.name)
        return path if self._is_file(entry) else None

    def _entries(self, folder: str) -> dict[str, os.DirEntry]:
        if folder not in self._exact:
            self._exact[folder] = {}
            with suppress(OSError, ValueError), os.scandir(folder) as entries:
                self._exact[folder] = {entry.name: entry for entry in entries}
        return self._exact[folder]

    def _entries_alike(self, folder: str) -> dict[str, os.DirEntry]:
        if folder not in self._alike:
            entries = self._entries(folder)
            self._alike[folder] = {_plain(name): entry for name, entry in entries.items()} | entries
        return self._alike[folder]

    @staticmethod
    def _is_file(entry: os.DirEntry | None) -> bool:
        with suppress(OSError):  # a link that leads to itself
            return entry is not None and entry.is_file()
        return False


def _plain(name: str) -> str:
    """What all spellings of a name have in common."""
    return unicodedata.normalize("NFC", unquote(name)).strip()


def read_json(path: str | Path, limit: int = LARGEST) -> dict:
    """The object in a JSON file; UserError in one sentence if it cannot be read or is not an object."""
    value = parse_json(read_file(path, limit), path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(value).__name__}.")
    return value


def read_file(path: str | Path, limit: int = LARGEST) -> bytes:
    """The bytes of a file; UserError if it cannot be read, is no ordinary file, is larger than `limit` bytes, or is Git
    LFS's pointer.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is {kind_of(path)}, not a file.")
        if status.st_size > limit:
            size = f"{status.st_size / 1e6:,.0f} MB"
            raise UserError(f"{path} has {size}, which is too large for its kind: at most {limit / 1e6:,.0f} MB.")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    check_not_git_lfs(data[:100], path)
    return data


def kind_of(path: str | Path) -> str:
    """What is there in the place of a file, in words."""
    mode = os.stat(path).st_mode
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((words for is_kind, words in kinds.items() if is_kind(mode)), "a device")


def check_not_git_lfs(beginning: bytes, path: str | Path) -> None:
    """UserError where a file's beginning is that of Git LFS's pointer to it."""
    if beginning.startswith(GIT_LFS):
        raise UserError(f"{path} is Git LFS's pointer to the file, not the file itself: `git lfs pull` fetches it.")


def parse_json(data: bytes, path: str | Path):
    """What JSON text means, in UTF-8, 16 or 32, with or without a byte order mark; UserError where it means nothing.

    Half of a surrogate pair, which no file or terminal can take, becomes U+FFFD.
    """
    try:
        text = data.decode(json.detect_encoding(data))
        return json.loads(ESCAPES.sub(lambda escape: escape[1] or "\\ufffd", text) if "\\u" in text else text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None


def write_json(path: str | Path, value: dict) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
