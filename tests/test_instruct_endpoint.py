"""The endpoint teacher against a real HTTP server on this machine that speaks chat completions, with every fault that
such servers have.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minillava.data.instruct import __main__ as command
from minillava.data.instruct import endpoint
from minillava.data.instruct.collect import collect
from minillava.data.instruct.generate import make_requests
from minillava.data.instruct.journal import Journal
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.settings import Settings
from minillava.data.instruct.sources import Picture
from minillava.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GOOD = "Question:\nWhat is there?\n===\nAnswer:\nThere is a cat on a mat."
PICTURES = [Picture(str(n), f"{n}.jpg", (f"A cat on mat {n}.",), (("cat", (0.1, 0.2, 0.3, 0.4)),)) for n in range(4)]


def completion(text: str | None = GOOD, finish: str = "stop", **changes) -> dict:
    """A body as the protocol has it: 100 tokens read, 20 written."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
        **changes,
    }


class Server(ThreadingHTTPServer):
    """Answers with what `script` holds, one item a request, then with good replies; an item is (status, headers, body)
    or "cut" or "slow".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.times, self.lock, self.pause = [], [], [], threading.Lock(), 0.0
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append({"path": self.path, "key": self.headers["Authorization"], **told})
            self.server.times.append(time.monotonic())
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
            item = self.server.script.pop(0) if self.server.script else (200, {}, completion())
        time.sleep(self.server.pause)
        with self.server.lock:
            self.server.at_once -= 1
        if item == "cut":
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"id":')
            return self.connection.close()
        if item == "slow":
            time.sleep(0.8)
            item = (200, {}, completion())
        status, headers, body = item
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client has given up waiting
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, value in (("BASE_URL", server.url), ("API_KEY", "a-key"), ("MODEL", "a-model")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    yield server
    server.shutdown()
    server.server_close()


def teacher(tries: int = 3, concurrency: int = 1, timeout: float = 10.0):
    made = endpoint.from_environment(
        Settings(temperature=0.5, max_tokens=64, concurrency=concurrency, timeout=timeout, tries=tries)
    )
    made.first_pause = 0.01
    return made


def requests(count: int = 1):
    return make_requests(PICTURES[:count], ["conversation"], Prompts(), seed=0)


def test_a_reply_and_what_was_sent(server):
    (request,) = requests()
    reply = teacher().write(request)
    assert (reply.text, reply.prompt_tokens, reply.reply_tokens, reply.truncated) == (GOOD, 100, 20, False)
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["key"] == "Bearer a-key"
    assert (asked["model"], asked["temperature"], asked["max_tokens"], asked["seed"]) == (
        "a-model",
        0.5,
        64,
        request.seed,
    )
    assert [message["role"] for message in asked["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert asked["messages"][-1]["content"] == "A cat on mat 0."


PASSING = {
    "429": (429, {}, {"error": {"message": "slow down"}}),
    "500": (500, {}, {"error": {"message": "oops"}}),
    "503 in HTML": (503, {"Content-Type": "text/html"}, b"<html>busy</html>"),
    "cut connection": "cut",
    "not JSON": (200, {}, b"{this is not"),
    "HTML for 200": (200, {"Content-Type": "text/html"}, b"<html>hello</html>"),
    "another JSON": (200, {}, {"hello": "there"}),
    "a list": (200, {}, [1, 2]),
    "empty choices": (200, {}, completion(choices=[])),
    "no message": (200, {}, completion(choices=[{"index": 0, "finish_reason": "stop", "message": None}])),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_is_tried_again(server, fault):
    server.script = [fault]
    assert teacher().write(requests()[0]).text == GOOD
    assert len(server.asked) == 2


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_lasting_fault_ends_in_one_sentence(server, fault):
    server.script = [fault] * 9
    with pytest.raises(UserError, match=r"no reply in 2 tries \(.*\); all replies so far are kept"):
        teacher(tries=2).write(requests()[0])
    assert len(server.asked) == 2


def test_a_slow_reply_is_given_up_and_asked_for_again(server):
    server.script = ["slow"]
    assert teacher(timeout=0.3).write(requests()[0]).text == GOOD
    assert len(server.asked) == 2


def test_retry_after_is_kept(server):
    server.script = [(429, {"Retry-After": "0.6"}, {"error": {"message": "slow down"}})]
    teacher().write(requests()[0])
    assert server.times[1] - server.times[0] >= 0.6  # the pause of its own would have been 0.01 s


def test_pauses_double_and_are_cut_short_by_a_stop(server, monkeypatch):
    made, pauses = teacher(tries=4), []
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: 1.0)
    made.stopping.wait = lambda seconds: bool(pauses.append(seconds)) or len(pauses) == 3
    server.script = [PASSING["500"]] * 9
    with pytest.raises(UserError, match="3 tries"):
        made.write(requests()[0])
    assert pauses == [0.01, 0.02, 0.04]


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "nan", None])
def test_a_retry_after_that_is_no_number_counts_as_none(value):
    assert endpoint._retry_after({"retry-after": value}) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_fault_that_does_not_mend_is_told_at_once(server, status):
    server.script = [(status, {}, {"error": {"message": "Incorrect API key provided."}})]
    with pytest.raises(UserError, match=rf"refuses \({status}\): Incorrect API key"):
        teacher().write(requests()[0])
    assert len(server.asked) == 1


def test_a_wrong_key_leaves_nothing_behind(server, tmp_path):
    server.script = [(401, {}, {"error": {"message": "Incorrect API key provided."}})] * 9
    source, out = write_source(tmp_path), tmp_path / "out" / "data.json"
    with pytest.raises(UserError, match="401"):
        command.main(
            [
                "--source",
                str(source),
                "--teacher",
                "openai",
                "--kind",
                "conversation",
                "--concurrency",
                "1",
                "--out",
                str(out),
            ]
        )
    assert len(server.asked) == 1 and not list(out.parent.glob("*"))


def test_truncated_and_empty_replies_are_replies(server):
    server.script = [
        (200, {}, completion("half a", "length")),
        (200, {}, completion(None)),
        (200, {}, {**completion(), "usage": None}),
    ]
    replies = [teacher().write(requests()[0]) for _ in range(3)]
    assert [(reply.text, reply.truncated) for reply in replies] == [("half a", True), ("", False), (GOOD, False)]
    assert replies[2].prompt_tokens == 0


@pytest.mark.parametrize("name", ["MODEL", "API_KEY"])
def test_what_the_environment_lacks_is_named(monkeypatch, name):
    for other in ("MODEL", "API_KEY"):
        monkeypatch.setenv(f"OPENAI_{other}", "x")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv(f"OPENAI_{name}")
    with pytest.raises(UserError, match=f"OPENAI_{name}"):
        teacher()


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="pip install openai"):
        teacher()


# ------------------------------------------------------------ many requests
def test_concurrency(server, tmp_path):
    server.pause, journal = 0.15, Journal(tmp_path / "j")
    collect(requests(4), teacher(concurrency=2), journal)
    assert server.most_at_once == 2 and len(journal.replies) == 4


def test_what_has_come_is_not_paid_for_twice(server, tmp_path):
    """A dead endpoint ends the run after two replies; the next run asks for the other two alone."""
    server.script = [(200, {}, completion()), (200, {}, completion()), *[PASSING["500"]] * 3]
    out = tmp_path / "data.json"
    source = write_source(tmp_path)
    arguments = [
        "--source",
        str(source),
        "--teacher",
        "openai",
        "--kind",
        "conversation",
        "--out",
        str(out),
        "--tries",
        "1",
        "--concurrency",
        "1",
    ]
    with pytest.raises(UserError, match="no reply in 1 tries"):
        command.main(arguments)
    assert not out.exists() and len((tmp_path / "data.journal.jsonl").read_text().splitlines()) == 2
    server.script.clear()
    server.asked.clear()
    command.main(arguments)
    assert [asked["messages"][-1]["content"] for asked in server.asked] == ["A cat on mat 2.", "A cat on mat 3."]
    assert len(json.loads(out.read_text())) == 4
    server.asked.clear()
    command.main(arguments)
    assert not server.asked


def write_source(folder: Path) -> Path:
    path = folder / "source.jsonl"
    boxes = [{"category": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]}]
    lines = [json.dumps({"id": p.id, "image": p.image, "captions": p.captions, "instances": boxes}) for p in PICTURES]
    path.write_text("\n".join(lines))
    return path


def test_the_order_in_which_replies_come_plays_no_part(server, tmp_path):
    files = []
    for concurrency in ("1", "4"):
        out = tmp_path / concurrency / "data.json"
        arguments = [
            "--source",
            str(write_source(tmp_path)),
            "--teacher",
            "openai",
            "--kind",
            "conversation",
            "--concurrency",
            concurrency,
        ]
        command.main([*arguments, "--out", str(out)])
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_the_budget_is_checked_before_and_kept_during_the_run(server, tmp_path, capsys):
    arguments = [
        "--source",
        str(write_source(tmp_path)),
        "--teacher",
        "openai",
        "--kind",
        "conversation",
        "--out",
        str(tmp_path / "data.json"),
    ]
    with pytest.raises(UserError, match="--budget is 1000"):
        command.main([*arguments, "--budget", "1000"])
    command.main([*arguments, "--estimate", "--price", "1000,1000", "--max-tokens", "100"])
    told = capsys.readouterr().out
    read = sum(len(message["content"]) for request in requests(4) for message in request.messages) // 4
    assert f"4 requests: about {read} tokens to read, at most 400 to write, {(read + 400) / 1000:.2f} at most" in told
    assert not server.asked and not (tmp_path / "data.json").exists()
    journal = Journal(tmp_path / "j")
    with pytest.raises(UserError, match="used up"):  # 120 tokens a reply
        collect(requests(4), teacher(), journal, budget=240)
    assert len(server.asked) == len(journal.replies) == 2


def test_ctrl_c_keeps_what_is_under_way(server, tmp_path):
    """A real interrupt of a real process: exit status 130, no data, and every reply that the server gave is in the
    journal.
    """
    server.pause = 0.4
    out = tmp_path / "data.json"
    arguments = [
        "--source",
        str(write_source(tmp_path)),
        "--teacher",
        "openai",
        "--kind",
        "conversation",
        "--concurrency",
        "1",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "minillava.data.instruct", *arguments],
        cwd=ROOT,
        env=os.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a shell's background job ignores it, and its children do
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while len(server.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in told and "stopped: 2 replies are in" in told
    assert (
        not out.exists() and len((tmp_path / "data.journal.jsonl").read_text().splitlines()) == len(server.asked) == 2
    )
