"""Files are whole or absent, paths stay in their folder, and a user's mistake is one line."""

import pytest

from minillava.errors import UserError, run
from minillava.files import inside, read_json, write_atomically, write_json


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
    (folder / "good").symlink_to(folder)
    assert inside(folder, "a/b.png") == folder / "a/b.png"
    assert inside(folder, "good/b.png") == folder / "good/b.png"
    for outside in ("../x", "a/../../x", "/etc/passwd", "link/x", "link", "a\0b"):
        with pytest.raises(UserError):
            inside(folder, outside)


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2]}
    (tmp_path / "broken.json").write_text('{"a": ')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", "broken.json", "list.json", "binary.json", "."):
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
