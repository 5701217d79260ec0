"""Files are whole or absent, paths stay in their folder, and a user's mistake is one line."""

import errno
import io
import multiprocessing
import os
import re
import shlex
import stat
import sys
import time
import unicodedata
from contextlib import suppress
from urllib.parse import quote

import pytest
import torch
from conftest import forked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillava.errors import UserError, run, say, shortened
from minillava.files import (
    FolderListings,
    check_name,
    given_path,
    inside,
    locked,
    parse_json,
    read_file,
    read_json,
    write_atomically,
    write_json,
)


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "first")

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_atomically(path, fails)
    assert path.read_text() == "first"
    write_atomically(path, lambda temporary: temporary.write_bytes(b"second"))
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_new_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").write_text("")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_inside(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    assert inside(folder, "a/b..c.png") == folder / "a/b..c.png"
    assert inside(folder, "link/b.png") == folder / "link/b.png"  # the user's own link
    for outside in ("../x", "a/../../x", "/etc/passwd", "a\0b", "..", "..\\x", "C:\\x", "C:x", "\\\\host\\x"):
        with pytest.raises(UserError):
            inside(folder, outside)


def test_paths_as_people_give_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("blue one.png", "it's.png", 'a "b".png', "50%.png", "é (1).png", "a\\ b.png", " c.png"):
        path = tmp_path / "my pics" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        typed = [
            f"my pics/{name}",
            str(path),
            f"~/my pics/{name}",
            shlex.quote(str(path)),
            shlex.quote(f"my pics/{name}") + " ",
            f"“{path}”",
        ]
        typed += [
            re.sub(r"([^\w/.%-])", r"\\\1", f"my pics/{name}"),
            "~/" + re.sub(r"([^\w/.%-])", r"\\\1", f"my pics/{name}"),
        ]
        typed += [path.as_uri(), "file://localhost" + quote(str(path)), f'"{path.as_uri()}"']
        typed += [f'"{path}"'] if '"' not in name else []
        for text in typed:
            assert os.path.samefile(given_path(text), path), text
    for text in ("https://example.org/a%20b.png?c=1&d='x", "nowhere.png", "", "a\0b"):
        assert given_path(text) == text
    assert given_path("'https://example.org/a.png'") == "https://example.org/a.png"
    with pytest.raises(UserError, match="another machine"):
        given_path("file://server/a.png")


def test_a_path_longer_than_any_costs_no_time():
    began = time.process_time()
    for text in ("a" * 3_000_000, "data:image/png;base64," + "A/" * 1_000_000):
        assert given_path(text) == text
    assert time.process_time() - began < 1


# ------------------------------------------------------------ names that others have written
@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "sub/ü 1.png", unicodedata.normalize("NFD", "Ordner ä/é.png"), "50%.png", "x%20y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    return tmp_path


def test_names_of_files_as_other_systems_and_programs_write_them(pictures):
    listings, accents = FolderListings(), unicodedata.normalize("NFD", "Ordner ä/é.png")
    for on_disk, others in {
        "a.png": ("a.png", " a.png\n", "./a.png", "%61.png"),
        "sub/ü 1.png": ("sub\\ü 1.png", "sub/u\u0308 1.png", "sub/%C3%BC%201.png", "sub%2Fü 1.png", "sub//ü 1.png"),
        accents: ("Ordner ä/é.png", "Ordner ä\\é.png", "Ordner%20a%CC%88/e\u0301.png"),
        "50%.png": ("50%.png", "50%25.png"),
        "x%20y.png": ("x%20y.png", "x y.png"),
    }.items():
        for name in (on_disk, *others):
            found = listings.find(pictures, name)
            assert found and os.path.samefile(pictures / found, pictures / on_disk), name
    for name in ("b.png", "A.png", "folder.png", "round.png", "sub", "", "/", ".", "%00", "a" * 5000, "sub/" * 999):
        assert listings.find(pictures, name) is None


def test_two_names_that_are_alike_are_each_its_own(tmp_path):
    names = ["é.png", "e\u0301.png", "%C3%A9.png", " é.png"]
    for name in names:
        (tmp_path / name).touch()
    assert [FolderListings().find(tmp_path, name) for name in names] == names
    assert FolderListings().find(tmp_path, ".\\é.png") == "é.png"


def test_hundreds_of_thousands_of_names_are_found_by_listing_each_folder_once(pictures, monkeypatch):
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    listings = FolderListings()
    for name in ("a.png", "gone.png", "sub\\ü 1.png", "sub\\gone.png", "no/where.png") * 50:
        listings.find(pictures, name)
    assert len(listed) <= 4


pieces = st.sampled_from(["a.png", "sub", "..", ".", "/", "\\", "%2F", "%5C", "%2e%2e", "~", "\0", "ü", " ", "C:"])


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.lists(pieces, max_size=6).map("".join))
def test_no_name_leads_out_of_the_folder(pictures, name):
    inner = pictures / "sub"
    (inner / "a.png").touch()
    with suppress(UserError):
        check_name(name)
        found = FolderListings().find(inner, name)
        assert found is None or ((inner / found).resolve().is_relative_to(inner) and (inner / found).is_file())


def test_a_path_that_is_typed_with_other_accents(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    for typed in ("Ordner ä/é.png", str(pictures / "Ordner ä/é.png"), "sub/../Ordner ä/é.png"):
        assert os.path.samefile(given_path(typed), unicodedata.normalize("NFD", "Ordner ä/é.png"))


def test_a_file_that_is_not_there_yet(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read_json(path)
    with pytest.raises(UserError, match="is a device"):
        read_json("/dev/zero")


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2]}
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a.json").write_text('{"é": 1}', encoding=encoding)
        assert read_json(tmp_path / "a.json") == {"é": 1}
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "broken.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", "broken.json", "list.json", "binary.json", "deep.json", "."):
        with pytest.raises(UserError):
            read_json(tmp_path / name)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (UserError("No such\nfile."), 2, "chat.py: error: No such file.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_run(error, status, line, capsys):
    def main():
        if error:
            raise error

    assert run(main, "chat.py") == status
    assert capsys.readouterr().err == line


def test_run_leaves_a_programmers_mistake_alone():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0, "chat.py")


def test_lines_are_short_and_can_be_shown(capsys, monkeypatch):
    say("note: \x1b[31mred\n" + "a" * 40_000 + " cannot be read.")
    line = capsys.readouterr().err
    assert line.startswith("note: [31mred aaa") and line.endswith("aaa cannot be read.\n") and len(line) <= 201
    assert len(shortened("word " * 100, 180)) <= 180 and len(str(UserError("x" * 999 + " y" * 999))) <= 180
    monkeypatch.setattr(sys, "stderr", None)
    say("to no one")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "out/model.safetensors"),
            "out/model.safetensors: Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "File name too long"),
        (FileExistsError(errno.EEXIST, "File exists", "runs/out"), "runs/out is there already, and is no folder"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory"),
        (MemoryError(), "the memory is not enough: lower --batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the memory is not enough"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the memory is not enough"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            "no kernels for this GPU",
        ),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)"), "update the driver"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "characters that cannot be read"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_machine_does_is_one_line(error, words, capsys):
    def main():
        raise error

    assert run(main, "train.py") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: error: ") and words in lines[0]


def test_a_mistake_of_ours_with_the_type_of_a_machines_is_not_hidden():
    def main():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(main, "chat.py")


def test_a_terminal_obeys_no_text_from_outside(capsys):
    run(lambda: print("a\x1b[2J\x07b\tc\nd\x9b1me\u202ef\ud800g é 猫"), "chat.py")
    assert capsys.readouterr().out == "a\\x1b[2J\\x07b\tc\nd\\x9b1me\\u202ef\\ud800g é 猫\n"


def test_an_encoding_without_the_letters_of_a_text_ends_nothing(monkeypatch):
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="cp1252"))
    assert run(lambda: print("猫 é"), "chat.py") == 0
    assert bytes_written.getvalue() == "? é\n".encode("cp1252")


def hold(folder, ready) -> None:
    with locked(folder):
        ready.set()
        time.sleep(99)


def test_one_writer_of_an_out(tmp_path):
    """The second is refused, the first is not disturbed; a lock ends with its process, and what that left goes."""
    ready = multiprocessing.Event()
    first = forked(hold, tmp_path, ready)
    assert ready.wait(60)
    with pytest.raises(UserError, match="another process writes to"), locked(tmp_path):
        pass
    (tmp_path / ".model.safetensors.abc.minillava.tmp").write_text("half")
    (tmp_path / ".other.abc.tmp").write_text("of another program")
    first.kill()
    first.join()
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".other.abc.tmp"}
    with locked(tmp_path / "data.json"):
        assert {path.name for path in tmp_path.iterdir()} == {".data.json.lock", ".other.abc.tmp"}


@pytest.mark.skipif(os.name == "nt", reason="named pipes and devices of Unix")
def test_no_device_or_pipe_is_read_or_written_over(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, "/dev/null", tmp_path):
        with pytest.raises(UserError, match=r"a named pipe|a device|a folder"):
            read_file(path)
        with pytest.raises(UserError, match="is not written over"):
            write_atomically(path, "text")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_that_is_too_large_is_told_before_it_is_read(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(20 << 30)  # takes no room on the disk
    with pytest.raises(UserError, match="21,475 MB, which is too large"):
        read_file(tmp_path / "large")


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_is_kept():
    text = rb'["\ud83d\ude00 \ud800 \udc00x \\ud800 \u00e9 \ud800\ud83d\ude00"]'
    assert parse_json(text, "a.json") == ["\U0001f600 \ufffd \ufffdx \\ud800 é \ufffd\U0001f600"]
