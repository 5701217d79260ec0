"""The endpoint teacher against a real HTTP server on this machine that speaks chat completions, with every fault that
such servers have.
"""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minillava.data.instruct import __main__ as command
from minillava.data.instruct import body, endpoint
from minillava.data.instruct.collect import collect, missing
from minillava.data.instruct.generate import make_requests
from minillava.data.instruct.journal import Journal
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.secret import hidden, secrets_of
from minillava.data.instruct.settings import Settings
from minillava.data.instruct.sources import Picture
from minillava.errors import UserError, run

pytest.importorskip("openai")
ROOT = Path(__file__).resolve().parent.parent
GOOD = "Question:\nWhat is there?\n===\nAnswer:\nThere is a cat on a mat."
KEY = "sk-proj-QkZ7SECRET1234567890"
PICTURES = [Picture(str(n), f"{n}.jpg", (f"A cat on mat {n}.",), (("cat", (0.1, 0.2, 0.3, 0.4)),)) for n in range(4)]
HTML = {"Content-Type": "text/html"}


def completion(text=GOOD, finish: str = "stop", **changes) -> dict:
    """A body as the protocol has it: 100 tokens read, 20 written."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
    return {**about, "choices": [choice], "usage": usage, **changes}


class Server(ThreadingHTTPServer):
    """Answers with what `script` holds, one item a request, then with good replies; an item is (status, headers, body),
    "slow", or a list of bytes, which are sent as they are, one every 0.1 s. `refuse` may give an item for a request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.times, self.lock, self.pause = [], [], [], threading.Lock(), 0.0
        self.at_once = self.most_at_once = 0
        self.refuse = lambda told: None

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
            item = self.server.refuse(told) or item
        time.sleep(self.server.pause)
        with self.server.lock:
            self.server.at_once -= 1
        with suppress(OSError):  # the client has given up waiting
            self.answer(item)

    def answer(self, item):
        if isinstance(item, list):
            for number, piece in enumerate(item):
                time.sleep(0.1 if number else 0)
                self.wfile.write(piece)
            return self.connection.close()
        if item == "slow":
            time.sleep(0.8)
            item = (200, {}, completion())
        status, headers, body = item
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, value in (("BASE_URL", server.url), ("API_KEY", KEY), ("MODEL", "a-model")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    yield server
    server.shutdown()
    server.server_close()


def teacher(tries: int = 3, concurrency: int = 1, timeout: float = 10.0):
    settings = Settings(temperature=0.5, max_tokens=64, concurrency=concurrency, timeout=timeout, tries=tries)
    made = endpoint.from_environment(settings)
    made.first_pause = 0.01
    return made


def requests(count: int = 1):
    return make_requests(PICTURES[:count], ["conversation"], Prompts(), seed=0)


def arguments(folder: Path, *more: str, concurrency: int = 1) -> list[str]:
    """Of a run with four pictures into `folder`/data.json."""
    folder.mkdir(exist_ok=True)
    boxes = [{"category": "cat", "bbox": [0.1, 0.2, 0.3, 0.4]}]
    lines = [json.dumps({"id": p.id, "image": p.image, "captions": p.captions, "instances": boxes}) for p in PICTURES]
    (folder / "source.jsonl").write_text("\n".join(lines))
    names = f"--source {folder}/source.jsonl --out {folder}/data.json --concurrency {concurrency}"
    return [*names.split(), "--teacher", "openai", "--kind", "conversation", *more]


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} - {"source.jsonl"}


def test_a_reply_and_what_was_sent(server):
    (request,) = requests()
    reply = teacher().write(request)
    assert (reply.text, reply.prompt_tokens, reply.reply_tokens, reply.truncated) == (GOOD, 100, 20, False)
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["key"] == f"Bearer {KEY}"
    expected = {"model": "a-model", "temperature": 0.5, "max_tokens": 64, "seed": request.seed}
    assert {name: asked[name] for name in expected} == expected
    roles = [message["role"] for message in asked["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert asked["messages"][-1]["content"] == "A cat on mat 0."


# ------------------------------------------------------------ faults that may pass
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LARGE = json.dumps(completion()).encode() + b" " * 300_000
PASSING = {
    "429": (429, {}, {"error": {"message": "slow down"}}),
    "500": (500, {}, {"error": {"message": "oops"}}),
    "503 in HTML": (503, HTML, b"<html>busy</html>"),
    "cut connection": [HEAD + b'Content-Length: 500\r\n\r\n{"id":'],
    "nothing": [b""],
    "not HTTP": [b"\0\xff" * 99],
    "not JSON": (200, {}, b"{this is not"),
    "empty": (200, {}, b""),
    "not UTF-8": (200, {}, b'{"id": "\xff"}'),
    "HTML for 200": (200, HTML, b"<html>hello</html>"),
    "another JSON": (200, {}, {"hello": "there"}),
    "a list": (200, {}, [1, 2]),
    "a text": (200, {}, "hello"),
    "nested deeply": (200, {}, b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested less deeply": (200, {}, b'{"choices": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "a number of 5000 digits": (200, {}, b'{"choices": ' + b"9" * 5000 + b"}"),
    "empty choices": (200, {}, completion(choices=[])),
    "choices that are a text": (200, {}, completion(choices="hello")),
    "no message": (200, {}, completion(choices=[{"index": 0, "finish_reason": "stop", "message": None}])),
    "a message that is a text": (200, {}, completion(choices=[{"message": "hello"}])),
    "a message that is a list": (200, {}, completion(choices=[{"message": ["hello"]}])),
    "too large": (200, {}, LARGE),
    "too large when unpacked": (200, {"Content-Encoding": "gzip"}, gzip.compress(LARGE)),
    "too large, an error": (400, {}, LARGE),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(body, "LARGEST", 250_000)


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_is_tried_again(server, small, fault):
    server.script = [fault]
    assert teacher().write(requests()[0]).text == GOOD
    assert len(server.asked) == 2


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_lasting_fault_ends_in_one_sentence(server, small, fault):
    server.script = [fault] * 9
    with pytest.raises(UserError, match=r"no reply in 2 tries \(.*\); all replies so far"):
        teacher(tries=2).write(requests()[0])
    assert len(server.asked) == 2


SLOW = {
    "nothing comes": "slow",
    "the status line drips": [b"HTTP/1.1 200 O", *[b"K"] * 50],
    "headers drip": [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 50],
    "the body drips": [HEAD + b"Content-Length: 99\r\n\r\n", *[b" "] * 50],
    "chunks drip": [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 50],
}


@pytest.mark.parametrize("fault", SLOW.values(), ids=SLOW)
def test_a_slow_reply_is_given_up_and_asked_for_again(server, fault):
    """--timeout is that of the whole reply: it does not begin anew with each byte."""
    server.script, began = [fault], time.monotonic()
    assert teacher(timeout=0.5).write(requests()[0]).text == GOOD
    assert len(server.asked) == 2 and time.monotonic() - began < 4


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


# ------------------------------------------------------------ faults that stay, and parameters
@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.parametrize("error", [{"message": "Incorrect model."}, "Incorrect model."])
def test_a_fault_that_does_not_mend_is_told_at_once(server, status, error):
    server.script = [(status, {}, {"error": error})]
    with pytest.raises(UserError, match=rf"refuses \({status}\): Incorrect model"):
        teacher().write(requests()[0])
    assert len(server.asked) == 1


def test_a_wrong_key_leaves_nothing_behind(server, tmp_path):
    server.script = [(401, {}, {"error": {"message": "Incorrect API key provided."}})] * 9
    with pytest.raises(UserError, match="401"):
        command.main(arguments(tmp_path))
    assert len(server.asked) == 1 and not written(tmp_path)


OPENAI = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
REFUSALS = {  # as OpenAI, as Mistral, as nobody yet
    "max_tokens": (400, {"error": {"message": OPENAI, "param": "max_tokens", "code": "unsupported_parameter"}}),
    "temperature": (400, {"error": {"message": "'temperature' does not support 0.5. Only the default is supported."}}),
    "seed": (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]}),
    "max_completion_tokens": (400, {"error": "unknown field max_completion_tokens"}),
}


@pytest.mark.parametrize(
    "refused", [["max_tokens"], ["temperature"], ["seed"], ["seed", "temperature", "max_tokens"], list(REFUSALS)]
)
def test_parameters_that_an_endpoint_refuses_are_left_out_from_then_on(server, tmp_path, refused, capfd):
    def refuse(told):
        name = next((name for name in refused if name in told), None)
        return name and (REFUSALS[name][0], {}, REFUSALS[name][1])

    server.refuse = refuse
    made, journal = teacher(tries=1), Journal(tmp_path / "j")
    collect(requests(4), made, journal)
    assert len(server.asked) == 4 + len(refused) and len(journal.replies) == 4
    sent, told = server.asked[-1], capfd.readouterr().err
    assert not set(refused) & set(sent) and all(f"does not take {name}:" in told for name in refused)
    if "max_tokens" in refused and "max_completion_tokens" not in refused:
        assert sent["max_completion_tokens"] == 64
    # the journal knows the replies by what was wanted, not by what was sent
    assert not missing(requests(4), teacher(), journal)


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 64. This model supports at most 32 completion tokens",
        "temperature must be between 0 and 1",
        "This model's maximum context length is 99 tokens; reduce the messages or max_tokens",
    ],
)
def test_a_wrong_value_is_told_and_not_left_out(server, message):
    server.script = [(400, {}, {"error": {"message": message}})]
    with pytest.raises(UserError, match=message[:40]):
        teacher().write(requests()[0])
    assert len(server.asked) == 1


# ------------------------------------------------------------ the key
ECHOES = {
    "a refusal": (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}."}}),
    "a masked refusal": (
        401,
        {},
        {"error": {"message": f"Incorrect API key: {KEY[:12]}*****{KEY[-4:]} or ..{KEY[-4:]}"}},
    ),
    "headers": (400, {}, {"error": {"message": f"headers: {{'Authorization': 'Bearer {KEY}'}}"}}),
    "not HTTP": [f"Bearer {KEY}\r\n\r\n".encode()],
    "a redirect": (307, {"Location": f"ftp://{KEY}/"}, b""),
    "a reply in another form": (200, {}, completion(f"Your key is {KEY}, or {KEY[:14]}***.")),
    "a good reply": (200, {}, completion(f"{GOOD} It says {KEY}.")),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_the_key_is_on_no_screen_and_in_no_file(server, tmp_path, capfd, echo):
    server.script = [echo]
    run(lambda: command.main(arguments(tmp_path, "--limit", "1", "--tries", "1")), "data.instruct")
    said = "".join(capfd.readouterr())
    assert said
    files = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    for text in [said, *files]:
        assert "SECRET" not in text and KEY[-4:] not in text and KEY[:12] not in text


def test_what_is_secret_and_what_is_not():
    secrets = secrets_of(KEY, "https://me:hunter2@host:8000/v1?key=longer-than-twelve")
    said = "host:8000 refuses me, hunter2, longer-than-***, with the model llama3 for the project"
    assert hidden(said, secrets, 4) == "host:8000 refuses me, ***, *** with the model llama3 for the ***"
    assert hidden(said, secrets_of(KEY, ""), 8) == said  # as in a reply: eight letters of the key, not four
    assert hidden("ollama pull llama3", secrets_of("ollama", ""), 4) == "*** pull llama3"
    assert secrets_of("", "http://host/v1") == secrets_of("k", "") == []


# ------------------------------------------------------------ what a reply holds
def test_truncated_and_empty_replies_are_replies(server):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": GOOD}]
    server.script = [
        (200, {}, completion("half a", "length")),
        (200, {}, completion(None)),
        (200, {}, completion(parts)),
        (200, {}, completion(usage={"prompt_tokens": float("nan"), "completion_tokens": -5})),
        (200, {}, completion(usage={"prompt_tokens": 10**400, "completion_tokens": "5"})),
        (200, {}, completion(usage=None)),
    ]
    replies = [teacher().write(requests()[0]) for _ in range(6)]
    assert [(reply.text, reply.truncated) for reply in replies[:3]] == [("half a", True), ("", False), (GOOD, False)]
    assert all((reply.text, reply.prompt_tokens, reply.reply_tokens) == (GOOD, 0, 0) for reply in replies[3:])


@pytest.mark.parametrize("name", ["MODEL", "API_KEY"])
def test_what_the_environment_lacks_is_named(monkeypatch, name):
    for other in ("MODEL", "API_KEY"):
        monkeypatch.setenv(f"OPENAI_{other}", "x")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv(f"OPENAI_{name}")
    with pytest.raises(UserError, match=f"OPENAI_{name}"):
        teacher()


@pytest.mark.parametrize(
    "name, value",
    [("API_KEY", "sk-\u2019"), ("API_KEY", "a\nb"), ("BASE_URL", "localhost:80"), ("BASE_URL", "http://[")],
)
def test_what_no_endpoint_has_is_told_at_once(server, monkeypatch, name, value):
    monkeypatch.setenv(f"OPENAI_{name}", value)
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
    with pytest.raises(UserError, match="no reply in 1 tries"):
        command.main(arguments(tmp_path, "--tries", "1"))
    assert written(tmp_path) == {"data.journal.jsonl"}
    assert len((tmp_path / "data.journal.jsonl").read_text().splitlines()) == 2
    server.script.clear()
    server.asked.clear()
    command.main(arguments(tmp_path))
    assert [asked["messages"][-1]["content"] for asked in server.asked] == ["A cat on mat 2.", "A cat on mat 3."]
    assert len(json.loads((tmp_path / "data.json").read_text())) == 4
    server.asked.clear()
    command.main(arguments(tmp_path))
    assert not server.asked


def test_the_same_request_is_asked_for_once(server, tmp_path):
    made, journal = teacher(), Journal(tmp_path / "j")
    collect(missing(requests(2) * 3, made, journal), made, journal)
    assert len(server.asked) == len(journal.replies) == 2


def test_the_order_in_which_replies_come_plays_no_part(server, tmp_path):
    for concurrency in (1, 4):
        command.main(arguments(tmp_path / str(concurrency), concurrency=concurrency))
    assert (tmp_path / "1/data.json").read_bytes() == (tmp_path / "4/data.json").read_bytes()


def test_the_budget_is_checked_before_and_kept_during_the_run(server, tmp_path, capsys):
    with pytest.raises(UserError, match="--budget is 1000"):
        command.main(arguments(tmp_path, "--budget", "1000"))
    command.main(arguments(tmp_path, "--estimate", "--price", "1000,1000", "--max-tokens", "100"))
    told = capsys.readouterr().out
    read = sum(len(message["content"]) for request in requests(4) for message in request.messages) // 4
    assert f"4 requests: about {read} tokens to read, at most 400 to write, {(read + 400) / 1000:.2f} at most" in told
    assert not server.asked and not written(tmp_path)
    journal = Journal(tmp_path / "j")
    with pytest.raises(UserError, match="used up"):  # 120 tokens a reply
        collect(requests(4), teacher(), journal, budget=240)
    assert len(server.asked) == len(journal.replies) == 2


def test_a_folder_in_the_place_of_the_data_is_told_before_anything_is_asked(server, tmp_path):
    (tmp_path / "data.json").mkdir()
    with pytest.raises(UserError, match="is a folder: choose another --out"):
        command.main(arguments(tmp_path))
    assert not server.asked


def test_a_second_run_is_refused_and_what_a_killed_one_left_is_removed(server, tmp_path):
    hold = (
        f"import time; from minillava.files import locked\n"
        f"with locked({str(tmp_path / 'data.json')!r}): print(1, flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, cwd=ROOT) as first:
        first.stdout.readline()
        with pytest.raises(UserError, match="another process writes to"):
            command.main(arguments(tmp_path))
        assert not server.asked
        first.kill()
    half = [tmp_path / f".data.{name}.x.minillava.tmp" for name in ("json", "report.md", "sheet.png")]
    for path in half:
        path.write_text("half")
    command.main(arguments(tmp_path))
    assert len(server.asked) == 4 and not [name for name in written(tmp_path) if name[0] == "."]


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_one_ctrl_c_waits_for_what_is_paid_for_and_a_second_does_not(server, tmp_path, capfd):
    """In this process: the status is 130, no data are written, and the journal holds what the server gave."""
    server.pause = 1.0
    interrupt_after(0.5)
    assert run(lambda: command.main(arguments(tmp_path, concurrency=2)), "data.instruct") == 130
    assert "stopped: 2 replies are in" in capfd.readouterr().err and written(tmp_path) == {"data.journal.jsonl"}
    assert len((tmp_path / "data.journal.jsonl").read_text().splitlines()) == len(server.asked) == 2
    server.pause, began = 20.0, time.monotonic()
    interrupt_after(0.5)
    interrupt_after(1.0)
    assert run(lambda: command.main(arguments(tmp_path)), "data.instruct") == 130
    assert time.monotonic() - began < 10 and "stopped: 2 replies are in" in capfd.readouterr().err
    assert len((tmp_path / "data.journal.jsonl").read_text().splitlines()) == 2 and len(server.asked) == 3
