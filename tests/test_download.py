"""Weights from a stand-in for the Hub on 127.0.0.1: whole, broken off and resumed, refused, corrupted."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from types import SimpleNamespace

import pytest
from test_weights import CPU, llava, shard  # noqa: F401  (llava is a fixture)

from minillava import weights
from minillava.errors import UserError, run
from minillava.weights.__main__ import main
from minillava.weights.download import SUMS, folder_or_download, needed_files
from minillava.weights.download import download as fetch

LIBRARY = "huggingface_hub"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BAIT = {
    "pytorch_model.bin": b"\x80\x04",
    "README.md": b"words",
    "tf_model.h5": b"other",
    "sub/model.safetensors": b"elsewhere",
}


class Hub(BaseHTTPRequestHandler):
    """One model, `some/llava`, as the Hub serves it.

    The server's `cut` breaks the first answer with that file off in its middle.
    """

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        if self.server.refusal:
            return self.refuse(*self.server.refusal)
        if match := re.fullmatch(r"/api/models/some/llava(/revision/(main|\w{40}))?(\?.*)?", self.path):
            return self.send(json.dumps(self.index()).encode(), body, {"Content-Type": "application/json"})
        match = re.fullmatch(rf"/some/llava/resolve/{COMMIT}/(.+)", self.path)
        if not match or match[1] not in self.server.files:
            return self.refuse(404, "RevisionNotFound" if "/revision/" in self.path else "RepoNotFound")
        name = match[1]
        content = self.server.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if name in self.server.lies:
            content = bytes(reversed(content))
        self.send(content, body, headers, cut=body and name == self.server.cut)

    def index(self) -> dict:
        files = []
        for name, content in self.server.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            files.append(
                {
                    "rfilename": name,
                    "size": len(content),
                    "blobId": git,
                    **({"lfs": lfs} if name.endswith(".safetensors") else {}),
                }
            )
        return {"id": "some/llava", "sha": COMMIT, "siblings": files}

    def send(self, content: bytes, body: bool, headers: dict, cut: bool = False) -> None:
        begin = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        for key, value in {**headers, "Content-Length": len(content) - begin}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if not body:
            return
        self.wfile.write(content[begin : len(content) // 2] if cut else content[begin:])
        if cut:
            self.wfile.flush()
            self.server.reached.set()
            self.server.go_on.wait(60)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(llava, tmp_path):  # noqa: F811
    """The stand-in, with a LLaVA in two shards among files that nobody needs."""
    shutil.copytree(llava[2], tmp_path / "repository")
    shard(tmp_path / "repository")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "repository").iterdir()} | BAIT
    server.asked, server.lies, server.refusal, server.cut = [], set(), None, None
    server.reached, server.go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


def environment(hub) -> dict[str, str]:
    return {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_none"}


@contextmanager
def library(hub):
    """huggingface_hub as a new process with this Hub has it, since it reads the environment when it is imported."""
    forget = lambda: {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == LIBRARY}
    before = forget()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(hub).items():
            patch.setenv(name, value)
        try:
            yield
        finally:
            forget()
            sys.modules.update(before)


def download(hub, out, *options) -> tuple[int, str, str]:
    """The command's status, and what it says on stdout and stderr."""
    arguments = ["download", "some/llava", "--out", str(out), *options]
    with library(hub), redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as noted:
        status = run(lambda: main(arguments), "minillava.weights")
    return status, said.getvalue(), noted.getvalue()


def test_what_is_needed_comes_whole_and_once(hub, llava, tmp_path):  # noqa: F811
    out = tmp_path / "weights" / "llava"
    status, said, noted = download(hub, out)
    assert (status, said) == (0, f"{out}\n"), noted
    assert f"downloading some/llava at {COMMIT[:12]}: 10 files, 0.00 GB, to {out}" in noted
    needed = {
        "chat_template.jinja",
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    needed |= {
        "generation_config.json",
        weights.INDEX,
        *(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)),
    }
    assert {path.name for path in out.iterdir()} == {*needed, SUMS} and not list(tmp_path.rglob("*.part"))
    assert (out / SUMS).read_text().startswith(f"# some/llava at {COMMIT}\n")
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=out, check=False).returncode == 0
    assert not any(name in path for path, _ in hub.asked for name in BAIT)
    model, _ = weights.load(out, **CPU)
    assert all((a == b).all() for a, b in zip(model.parameters(), llava[0].parameters(), strict=True))
    assert fetch("some/llava", COMMIT[:7], out) == out  # without asking again: here the Hub is out of reach
    with pytest.raises(UserError, match="not at main2"):
        fetch("some/llava", "main2", out)


def test_a_broken_off_download_leaves_nothing_that_loads_and_goes_on(hub, tmp_path):
    """The process is killed in the middle of the second shard."""
    out, shards = tmp_path / "llava", [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    hub.cut = shards[1]
    command = [sys.executable, "-m", "minillava.weights", "download", "some/llava", "--out", out]
    process = subprocess.Popen(command, env={**os.environ, **environment(hub)}, cwd=weights.ROOT)
    assert hub.reached.wait(120)
    process.kill()
    process.wait()
    hub.go_on.set()
    assert not out.exists() and not list(tmp_path.glob(".*/config.json"))
    for folder in (out, tmp_path / ".llava.part"):
        with pytest.raises(UserError):
            weights.load(folder, **CPU)
    hub.cut, hub.asked = None, []
    status, _, noted = download(hub, out)
    assert status == 0, noted
    asked = [(path.rsplit("/", 1)[1], part) for path, part in hub.asked]
    assert not any(name == shards[0] for name, _ in asked)
    weights.load(out, **CPU)


def test_what_is_corrupted_is_deleted_and_comes_anew(hub, tmp_path):
    """First a shard, whose SHA-256 the Hub says, then the index, of which it says Git's hash."""
    for name in ("model-00002-of-00002.safetensors", weights.INDEX):
        hub.lies = {name}
        status, _, noted = download(hub, tmp_path / "llava")
        assert status == 2 and f"{name} came broken from the Hub and was deleted: run the command again" in noted
        assert not (tmp_path / "llava").exists() and not (tmp_path / ".llava.part" / name).exists()
    hub.lies = set()
    assert download(hub, tmp_path / "llava")[0] == 0


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((404, "RepoNotFound"), "The Hub has no model some/llava, or it is private: check the name"),
        ((401, "GatedRepo"), "some/llava is gated: accept its terms on its page on the Hub, then `hf auth login`"),
        ((401, "RepoNotFound"), "`hf auth login`"),
        ((404, "RevisionNotFound"), "some/llava has no such revision: look at its branches and commits"),
        ((500, "ServerError"), "The Hub answered 500 when asked for some/llava: run the command again later"),
    ],
    ids=str,
)
def test_what_the_hub_refuses_is_a_sentence(hub, tmp_path, refusal, said):
    hub.refusal = refusal
    status, out, noted = download(hub, tmp_path / "llava")
    assert (status, out, noted.count("\n")) == (2, "", 1) and said in noted and "Traceback" not in noted
    assert not list(tmp_path.glob("*llava*"))


def test_pickles_alone_are_refused():
    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "pytorch_model.bin", "sub/model.safetensors")]
    with pytest.raises(UserError, match="has no safetensors, and a pickle is never loaded"):
        needed_files("some/llava", files)


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="exists already, and is not a download of some/llava"):
        fetch("some/llava", out=tmp_path)
    for name in ("llava", "../llava", "some/..", "a/b/c", "some/llava; rm"):
        with pytest.raises(UserError, match="is not the name of a model"):
            fetch(name, out=tmp_path)


def test_a_name_of_the_hub_is_a_folder_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    (tmp_path / "weights" / "tiny").mkdir(parents=True)
    assert folder_or_download("weights/tiny") == "weights/tiny" and folder_or_download("nowhere") == "nowhere"
    (tmp_path / "weights" / "llava").mkdir()
    (tmp_path / "weights" / "llava" / SUMS).write_text(f"# some/llava at {COMMIT}\n")
    assert folder_or_download("some/llava") == tmp_path / "weights" / "llava"
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        folder_or_download("some/other")
