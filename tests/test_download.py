"""Weights from a stand-in for the Hub on 127.0.0.1: whole, broken off and resumed, refused, corrupted."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save
from test_weights import CPU, llava, shard  # noqa: F401  (llava is a fixture)

from minillava import weights
from minillava.config import VisionConfig
from minillava.errors import UserError, run
from minillava.vision import VisionTransformer
from minillava.weights import download as downloads
from minillava.weights import folders
from minillava.weights.__main__ import main
from minillava.weights.download import SUMS, needed_files
from minillava.weights.download import download as fetch
from minillava.weights.tensor_files import INDEX

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
        if body and self.server.endless and self.path.startswith(self.server.endless):
            return self.go_on_for_ever()
        if match := re.fullmatch(r"/api/models/some/llava(/revision/(main|\w{40}))?(\?.*)?", self.path):
            answer = self.server.info or json.dumps(self.index()).encode()
            return self.send(answer, body, {"Content-Type": "application/json"})
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
        return self.index_of(self.server.files)

    @staticmethod
    def index_of(contents: dict[str, bytes]) -> dict:
        files = []
        for name, content in contents.items():
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

    def go_on_for_ever(self) -> None:
        self.send_response(200)
        if self.server.endless_headers:
            self.flush_headers()
            self.wfile.write(b"X: ")
        else:
            self.end_headers()
        with suppress(OSError):
            while not self.server.go_on.wait(self.server.pause):
                self.wfile.write(b" " * (1 if self.server.pause else 1 << 16))

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
    server.info, server.endless, server.endless_headers, server.pause = None, "", False, 0
    server.reached, server.go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def online(hub, monkeypatch):
    """This process believes that the stand-in is the Hub."""
    address = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    return hub


def download(out, capsys, *options) -> tuple[int, str, str]:
    """The command's status, and what it printed."""
    status = run(lambda: main(["download", "some/llava", "--out", str(out), *options]), "weights")
    return status, *capsys.readouterr()


def test_what_is_needed_comes_whole_and_once(online, llava, tmp_path, capsys, monkeypatch):  # noqa: F811
    out = tmp_path / "weights" / "llava"
    status, said, noted = download(out, capsys)
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
        INDEX,
        *(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)),
    }
    assert {path.name for path in out.iterdir()} == {*needed, SUMS} and not list(tmp_path.rglob("*.part"))
    assert (out / SUMS).read_text().startswith(f"# some/llava at {COMMIT}\n")
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=out, check=False).returncode == 0
    assert not any(name in path for path, _ in online.asked for name in BAIT)
    model, _ = weights.load(out, **CPU)
    assert all((a == b).all() for a, b in zip(model.parameters(), llava[0].parameters(), strict=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("some/llava", COMMIT[:7], out) == out  # without asking again
    with pytest.raises(UserError, match="not at main2"):
        fetch("some/llava", "main2", out)


def test_a_broken_off_download_leaves_nothing_that_loads_and_goes_on(online, tmp_path, capsys):
    """The process is killed in the middle of the second shard."""
    hub = online
    out, shards = tmp_path / "llava", [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    hub.cut = shards[1]
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "minillava.weights", "download", "some/llava", "--out", str(out)]
    process = subprocess.Popen(command, env=environment, cwd=weights.ROOT, stderr=subprocess.DEVNULL)
    assert hub.reached.wait(120)
    process.kill()
    process.wait()
    hub.go_on.set()
    assert not out.exists() and not list(tmp_path.glob(".*/config.json"))
    for folder in (out, tmp_path / ".llava.part"):
        with pytest.raises(UserError):
            weights.load(folder, **CPU)
    hub.cut, hub.asked = None, []
    status, _, noted = download(out, capsys)
    assert status == 0, noted
    asked = [(path.rsplit("/", 1)[1], part) for path, part in hub.asked]
    assert not any(name == shards[0] for name, _ in asked)
    weights.load(out, **CPU)


def test_what_is_corrupted_is_deleted_and_comes_anew(online, tmp_path, capsys):
    """First a shard, whose SHA-256 the Hub says, then the index, of which it says Git's hash."""
    for name in ("model-00002-of-00002.safetensors", INDEX):
        online.lies = {name}
        status, _, noted = download(tmp_path / "llava", capsys)
        assert status == 2 and f"{name} came broken from the Hub and was deleted: run the command again" in noted
        assert not (tmp_path / "llava").exists() and not (tmp_path / ".llava.part" / name).exists()
    online.lies = set()
    assert download(tmp_path / "llava", capsys)[0] == 0


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
def test_what_the_hub_refuses_is_a_sentence(online, tmp_path, capsys, refusal, said):
    online.refusal = refusal
    status, out, noted = download(tmp_path / "llava", capsys)
    assert (status, out, noted.count("\n")) == (2, "", 1) and said in noted and "Traceback" not in noted
    assert not list(tmp_path.glob("*llava*"))


def file(name: str, **more) -> dict:
    return {"rfilename": name, "size": 9, "blobId": "0" * 40, **more}


@pytest.mark.parametrize(
    "answer",
    [
        {"sha": None, "siblings": [file("config.json"), file("model.safetensors")]},
        {"sha": "../../etc", "siblings": []},
        {"sha": COMMIT, "siblings": None},
        {"sha": COMMIT, "siblings": ["config.json"]},
        {"sha": COMMIT, "siblings": [file(["config.json"])]},
        {"sha": COMMIT, "siblings": [file("config.json", size="large")]},
        {"sha": COMMIT, "siblings": [file("config.json", size=float("inf"))]},
        {"sha": COMMIT, "siblings": [file("config.json", lfs="yes")]},
        ["sha", COMMIT],
        COMMIT,
        None,
    ],
    ids=str,
)
def test_an_answer_that_makes_no_sense(online, tmp_path, capsys, answer):
    online.info = json.dumps(answer).encode()
    status, _, noted = download(tmp_path / "llava", capsys)
    assert (status, noted.count("\n")) == (2, 1) and "answer about some/llava makes no sense" in noted
    assert not list(tmp_path.glob("*llava*"))


@pytest.mark.parametrize("answer", [b"<html>Sign in</html>", b"[" * 100_000, b"{", b"\xff\xfe\x00"])
def test_an_answer_that_is_no_json(online, tmp_path, capsys, answer):
    online.info = answer
    status, _, noted = download(tmp_path / "llava", capsys)
    assert (status, noted.count("\n")) == (2, 1) and "is not valid JSON" in noted


@pytest.mark.parametrize("pause", [0, 0.1])
@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("path", ["/api/models/", f"/some/llava/resolve/{COMMIT}/config.json"])
def test_an_answer_without_end(online, tmp_path, capsys, monkeypatch, path, headers, pause):
    """Fast, and a byte at a time, with which a time limit of the library begins anew."""
    online.endless_headers = headers
    monkeypatch.setattr(downloads, "LARGEST", 1 << 20)
    monkeypatch.setattr(downloads, "SECONDS", 1.5 if pause else 60)
    online.endless, online.pause = path, pause
    began = time.monotonic()
    status, _, noted = download(tmp_path / "llava", capsys)
    assert (status, noted.count("\n")) == (2, 1) and "the Hub cannot be asked" in noted
    assert time.monotonic() - began < 20 and not list(tmp_path.glob("*llava*"))


def test_tensors_that_are_longer_than_the_hub_says(online, tmp_path, capsys):
    shard = "model-00001-of-00002.safetensors"
    content = online.files[shard]
    online.info = json.dumps({**Hub.index_of(online.files), "sha": COMMIT}).encode()
    online.files[shard] = content + b"x" * (1 << 20)
    status, _, noted = download(tmp_path / "llava", capsys)
    assert status == 2 and f"{shard} is longer than the Hub says" in noted
    online.files[shard] = content
    assert download(tmp_path / "llava", capsys)[0] == 0


def without_tokenizer(files: dict) -> None:
    del files["tokenizer.json"]
    files["tokenizer.model"] = b"sentencepiece"


def of_another_kind(files: dict) -> None:
    files["config.json"] = b'{"model_type": "qwen2_vl"}'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_tokenizer, "some/llava has no tokenizer.json"),
        (of_another_kind, "'qwen2_vl' is not supported"),
        (lambda files: files.update({"config.json": b"[]"}), "must hold a JSON object"),
        (lambda files: files.pop("config.json"), "has no config.json"),
    ],
)
def test_a_model_that_cannot_be_used_is_told_before_its_tensors(online, tmp_path, capsys, change, said):
    change(online.files)
    status, _, noted = download(tmp_path / "llava", capsys)
    assert (status, noted.count("\n")) == (2, 1) and said in noted
    assert not any("safetensors" in path.rsplit("/", 1)[1] and "index" not in path for path, _ in online.asked)
    assert not list(tmp_path.glob("*llava*"))


def test_a_tower_needs_no_tokenizer(online, tmp_path, capsys):
    weights.save_vision_tower(VisionTransformer(VisionConfig(24, 37, 3, 3, 14, 7)), tmp_path / "tower")
    online.files = {path.name: path.read_bytes() for path in (tmp_path / "tower").iterdir()}
    assert download(tmp_path / "llava", capsys)[0] == 0
    assert weights.load_vision_tower(tmp_path / "llava").config.hidden_size == 24


def test_an_adapter_comes_alone(online, tmp_path, capsys):
    config = b'{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf", "r": 1, "lora_alpha": 1}'
    online.files = {"adapter_config.json": config, "adapter_model.safetensors": save({"a": torch.ones(2)}), **BAIT}
    assert download(tmp_path / "llava", capsys)[0] == 0
    held = {path.name for path in (tmp_path / "llava").iterdir()}
    assert held == {"adapter_config.json", "adapter_model.safetensors", SUMS}
    with pytest.raises(UserError, match="There is no weights folder llava-hf/llava-1"):
        with_hub_off(lambda: weights.load_model(tmp_path / "llava"))


def with_hub_off(act):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        return act()


@pytest.mark.parametrize("pickle", ["non_lora_trainables.bin", "adapter_model.bin"])
def test_an_adapter_in_pickles_is_told_at_once(online, tmp_path, capsys, pickle):
    """LLaVA's own LoRA."""
    online.files = {"adapter_config.json": b"{}", "config.json": b"{}", pickle: b"PK", "adapter_model.safetensors": b""}
    status, _, noted = download(tmp_path / "llava", capsys)
    assert (status, noted.count("\n")) == (2, 1) and f"{pickle}, a pickle, which is never read" in noted


def test_pickles_alone_are_refused():
    with pytest.raises(UserError, match="has no safetensors, and a pickle is never loaded"):
        needed_files("some/llava", ["config.json", "pytorch_model.bin", "sub/model.safetensors"])


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    with pytest.raises(UserError, match="exists already, and is not a download of some/llava"):
        fetch("some/llava", out=tmp_path)
    for name in ("llava", "../llava", "some/..", "a/b/c", "some/llava; rm"):
        with pytest.raises(UserError, match="is not the name of a model"):
            fetch(name, out=tmp_path)


def test_a_name_of_the_hub_is_a_folder_where_there_is_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    monkeypatch.setattr(downloads, "ROOT", tmp_path)
    (tmp_path / "weights" / "tiny").mkdir(parents=True)
    assert weights.find_folder("weights/tiny") == tmp_path / "weights" / "tiny"
    (tmp_path / "weights" / "llava").mkdir()
    (tmp_path / "weights" / "llava" / SUMS).write_text(f"# some/llava at {COMMIT}\n")
    assert weights.find_folder("some/llava") == tmp_path / "weights" / "llava"
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        weights.find_folder("some/other")
    with pytest.raises(UserError, match="is not a download of other/llava"):
        weights.find_folder("other/llava")
