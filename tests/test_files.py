"""Files are whole or absent, paths stay in their folder, and a user's mistake is one line."""

import os
import re
import shlex
import sys
from urllib.parse import quote

import pytest

from minillava.errors import UserError, run, say, shortened
from minillava.files import given_path, inside, read_json, write_atomically, write_json


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
