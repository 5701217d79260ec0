"""The guarded check of an exercise: nothing of a student's file is left, nothing that it does makes the check fail or
pass, and the project's own parts are named.

Most of it is seen on commands that do not import PyTorch, which start in a tenth of a second.
"""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_imports import MODULES, circle, names_of

import chat
from lessons import check, mutate, specs, swap
from lessons.attempt import Other, Stopped, answers, decoded, encoded, settled
from lessons.check import ROOT, Guarded, main, report
from lessons.examine import judge
from lessons.solutions import FILES, HELPERS, OwnPart, hidden, solution
from lessons.swap import COMPANIONS, load_file, parts_of, short, targets_of
from lessons.trials.base import Raises
from minillava import decode_graph, generation, language_model, training
from minillava.errors import UserError, run

GUARD = str(ROOT / "lessons" / "guard.py")
WRONG = "def rms_norm(x, weight, eps):\n    return x\n"
RIGHT = """
import torch
def rms_norm(x, weight, eps):
    y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)
"""
# A program that leaves its parent, its session and its environment, and writes its number into a file.
DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(sys.argv[1], "w") as file:
            file.write(str(os.getpid()))
        import time
        time.sleep(99)
"""
DAEMON = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {DAEMON!r}, sys.argv[1]], env={{}}, start_new_session=True)
"""


def runs(pid: int) -> bool:
    """Is there such a process, and is it more than a zombie?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(fact, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not fact() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(fact())


def guarded(code: str, *arguments, seconds: float = 30) -> Guarded:
    return Guarded([sys.executable, "-u", "-c", f"print('\"ready\"')\n{code}", *map(str, arguments)], seconds)


def reason(code: str, seconds: float = 30) -> str:
    """Why such a command gives no answer."""
    with guarded(code, seconds=seconds) as command, pytest.raises(Stopped) as stopped:
        next(command.answers())
    return str(stopped.value)


# ------------------------------------------------------------ nothing is left
linux = pytest.mark.skipif(sys.platform != "linux", reason="what has left its parent is found on Linux alone")


@linux
def test_what_left_its_parent_session_and_environment_is_ended(tmp_path):
    pid = tmp_path / "pid"
    with guarded(DAEMON + "print(1)\nwhile True: pass", pid) as command:
        assert next(command.answers()) == 1 and wait_for(lambda: pid.exists() and pid.read_text())
        assert runs(int(pid.read_text()))
    assert not runs(int(pid.read_text()))


@linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_all_ends_with_the_check_and_its_folder_goes(tmp_path, number):
    pid, folder = tmp_path / "pid", tmp_path / "folder"
    folder.mkdir()
    code = DAEMON + "import tempfile; tempfile.mkdtemp()\nwhile True: pass"
    command = [sys.executable, "-I", GUARD, str(folder), sys.executable, "-c", code, str(pid)]
    starter = f"import subprocess, time; subprocess.Popen({command!r}, stdin=subprocess.PIPE, start_new_session=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", starter])
    assert wait_for(lambda: pid.exists() and pid.read_text() and any(folder.iterdir()))
    process.send_signal(number)
    process.wait()
    assert wait_for(lambda: not runs(int(pid.read_text())) and not folder.exists())


@linux
def test_the_command_ends_with_its_guard(tmp_path):
    code = "import sys; sys.path.insert(0, 'lessons'); import guard, os; guard.set_option(*guard.END_WITH_PARENT)\n"
    code += "print(os.getpid())\nwhile True: pass"
    with guarded(code) as command:
        pid = next(command.answers())
        command.process.kill()
        assert wait_for(lambda: not runs(pid))
    assert not Path(command.folder.name).exists()


def test_its_temporary_folder_goes():
    with guarded("import tempfile, json; print(json.dumps(tempfile.mkdtemp()))") as command:
        made = Path(next(command.answers()))
        assert made.parent == Path(command.folder.name)
    assert not made.parent.exists()


def test_without_what_windows_lacks(tmp_path):
    """There the command's tree is ended by taskkill, for which a file stands here."""
    (tmp_path / "taskkill").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/told\n")
    (tmp_path / "taskkill").chmod(0o755)
    code = "import guard, os, sys; sys.platform = 'win32'; del os.killpg, os.fork, os.setsid\n"
    code += "os.name = 'nt'; os._exit(guard.guard('none', [sys.executable, '-c', 'while True: pass']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT / "lessons",
        stdin=subprocess.PIPE,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    time.sleep(0.5)
    process.stdin.close()
    assert process.wait(20) == 128 + signal.SIGKILL
    assert (tmp_path / "told").read_text().startswith("/F /T /PID ")
    source = (ROOT / "lessons" / "check.py").read_text() + (ROOT / "lessons" / "student.py").read_text()
    assert not [word for word in ("pass_fds", "preexec_fn", "os.fork", "killpg", "SIGKILL") if word in source]


# ------------------------------------------------------------ one sentence, whatever it does
@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("import os; os._exit(0)", r"ended the whole program \(exit status 0\)"),
        ("print('a word', file=__import__('sys').stderr); raise SystemExit(3)", "status 3.*last words: a word"),
        ("import os; os.kill(os.getpid(), 11)", r"crashed Python itself \(SIGSEGV\)"),
        ("import os; os.kill(os.getpid(), 9)", "was killed"),
        ("import os; os.kill(os.getpid(), 40)", "ended the whole program"),
        ("import os; os.kill(os.getppid(), 9)", "was killed"),
        ("while True: print('x' * 1000, file=__import__('sys').stderr)", "printed more than 100,000"),
        ("import os; os.fork(); os.closerange(0, 9); 1 / 0", "ended the whole program"),
    ],
)
def test_a_command_that_gives_no_answer(code, sentence):
    assert re.search(sentence, reason(code))


def test_a_command_that_takes_too_long():
    assert "did not come to an end in time" in reason("while True: pass", seconds=0.3)


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe",
        b"[1",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"raises": 5}',
        b'{"tensor": "aaaa"}',
        b'{"tensor": "8J+YgA=="}',
        b'{"unknown": 1}',
        b"{}",
    ],
)
def test_a_line_that_is_no_answer(line):
    assert "no answer" in reason(f"import sys; sys.stdout.buffer.write({line!r} + b'\\n')")


ROW = [torch.zeros(2, 3)] * 7
VALUES, CALLS = torch.zeros(1, 3), [22]


@pytest.mark.parametrize(
    "given",
    [
        [5],
        [None],
        [[1]],
        ["text"],
        [[None] * 7, ""],
        [[Raises("A", "b")] * 7, "", 7],
        [[float("nan")] * 7, "", []],
        [[(1, 2), [[]], "\ud800", True, Other("x"), 1e400, -1], "", [VALUES, CALLS]],
        [ROW, 5],
        [ROW, "", [VALUES, [None], ""]],
        [ROW, "", [VALUES.to(torch.complex64), CALLS, ""]],
        [ROW, "", [VALUES.bool(), CALLS, ""]],
        [ROW, "", [VALUES, [], ""]],
        [ROW, "", ["x", CALLS, ""]],
    ],
    ids=range(14),
)
def test_answers_of_any_form_are_judged(given):
    """None makes the check itself fail, and none passes."""
    *_, last = judge("rms_norm", iter([*given, 1, 1, 1]), lambda: [VALUES, CALLS, "a cat"])
    assert not last.ok and isinstance(last.text, str)


def test_plain_values_come_back():
    for value in (
        None,
        True,
        -5,
        2.5,
        float("inf"),
        "\ud800é",
        [],
        (1, [2.0, ("a",)]),
        Raises("A", "b"),
    ):
        assert decoded(json.loads(json.dumps(encoded(settled(value))))) == value
    for tensor in (
        torch.rand(2, 3).T,
        torch.tensor(3),
        torch.empty(0, 2),
        torch.tensor([True]),
        torch.rand(2).bfloat16(),
    ):
        given = decoded(json.loads(json.dumps(encoded(settled(tensor)))))
        assert given.dtype == tensor.dtype and torch.equal(given, tensor)
    assert (
        decoded(encoded(settled({}))) == Other("dict")
        and settled(10**5000) == float("inf")
        and settled(torch.Size([2])) == (2,)
    )


@pytest.mark.parametrize(
    "text",
    [  # what would forge a result in the process that compares; lines on every descriptor that it may find; an early end
        "import os, torch\ntorch.Tensor.abs = torch.Tensor.double = lambda s: torch.zeros(s.shape, dtype=torch.float64)\n"
        "import lessons.examine as e\ne.judge.__code__ = (lambda *a: iter(())).__code__\n" + WRONG,
        "import atexit, json, os\nfor fd in range(40):\n  for n in (1, 2, 3, 4):\n    try: os.write(fd, (json.dumps({'ok': True,"
        "'text': f'{n} ... yes', 'last': True}) + '\\n').encode())\n    except OSError: pass\natexit.register(os._exit, 0)\n"
        "raise SystemExit(0)",
    ],
    ids=["patched", "lines"],
)
def test_a_forged_result_does_not_pass(tmp_path, capsys, text):
    (tmp_path / "mine.py").write_text(text)
    assert main(["rms_norm", "--file", str(tmp_path / "mine.py")]) == 1
    assert " no" in capsys.readouterr().out


def test_a_check_from_start_to_end(tmp_path, capsys):
    """A known mistake is named, the model heard, what was printed is shown, and nothing of it reaches the terminal raw."""
    file = tmp_path / "mine.py"
    file.write_text(
        "def rms_norm(x, weight, eps):\n    print('hi\\x1b]0;')\n    return weight * (x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt())\n"
    )
    assert not report("rms_norm", file)
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines[1:4]] == ["1", "2", "4"] and lines[1].endswith("yes")
    assert "in float16 the square of 300" in lines[2] and "the model says" in lines[3]
    assert r"your file printed: hi\x1b]0;" in lines[4] and "\x1b" not in "".join(lines)


def test_the_command(monkeypatch, capsys):
    checked = []
    monkeypatch.setattr(check, "report", lambda key, *_: checked.append(key) or key != "rope")
    assert main(["all"]) == 1 and checked == list(FILES)
    assert main(["rope"]) == 1 and main(["mlp"]) == 0
    monkeypatch.undo()
    for seconds in ("nan", "inf", "-inf", "0", "-1", "x"):
        assert run(lambda seconds=seconds: main(["rope", f"--seconds={seconds}"]), "check") == 2
        assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------ the project's own parts
OWN = {
    "rms_norm": [
        "from minillava.language_model import rms_norm",
        "from minillava.language_model import rms_norm as own\nrms_norm = own",
        "import minillava.language_model as m\ndef rms_norm(*a):\n    try: return m.rms_norm(*a)\n    except Exception: return 0",
        "from minillava.language_model import RMSNorm\ndef rms_norm(x, weight, eps):\n    n = RMSNorm(len(weight), eps)\n    return n(x)",
        "import functools, minillava\nrms_norm = functools.partial(minillava.language_model.rms_norm)",
        "from helper import anything as rms_norm",
        "from lessons.specs import rms_norm",
        "import lessons.specs as s\nrms_norm = lambda *a: s.rms_norm(*a)",
        "from lessons import specs\nrms_norm = specs.rms_norm",
        "from lessons.solutions import solution\n(rms_norm,) = solution('rms_norm').values()",
        "from lessons.trials import TRIALS\nrms_norm = lambda *a: [case.truth() for case in TRIALS['rms_norm'].cases()][0]",
    ],
    "projector": [
        "from minillava.projector import Projector",
        "import minillava.projector as p\nclass Projector(p.Projector):\n    pass",
    ],
    "attention": ["from minillava.attention import sdpa_attention as eager_attention"],
    "loss": ["from minillava.training.loss import chunked_loss as next_token_loss"],
    "kv_cache": ["from minillava.kv_cache import KVCache\nappend = KVCache.append"],
    "sample": [
        "import minillava.generation as g\ndef sample(logits, *a, **k):\n    return g.keep_top_k(logits, 1).argmax(-1)"
    ],
    "bpe": ["from lessons.bpe import merge_pieces"],
}


@pytest.mark.parametrize(("key", "text"), [(key, text) for key in OWN for text in OWN[key]])
def test_the_projects_own_part_is_named(tmp_path, monkeypatch, key, text):
    (tmp_path / "helper.py").write_text("import minillava.language_model as m\nanything = lambda *a: m.rms_norm(*a)\n")
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    before = [*solution(key).values(), specs, sys.modules["lessons.specs"], specs.rms_norm]
    with hidden(key), pytest.raises(OwnPart, match=r"this is the project's own (function|class)"):
        list(answers(key, parts_of(load_file(tmp_path / "mine.py"), targets_of(FILES[key])), tmp_path / "mine.py"))
    assert [*solution(key).values(), specs, sys.modules["lessons.specs"], specs.rms_norm] == before


def test_it_is_told_in_the_check(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN["rms_norm"][0])
    assert not report("rms_norm", tmp_path / "mine.py")
    assert "rms_norm: this is the project's own function" in capsys.readouterr().out


@pytest.mark.parametrize("key", FILES)
def test_a_part_of_ones_own_passes_where_the_projects_is_hidden(key):
    """The solutions' source, run again, is a part of one's own."""
    names = {}
    for part in mutate.written(key).values():
        names = names or dict(vars(sys.modules[part.__module__]))
        exec(mutate.plain(mutate.inspect.getsource(part)), names)
    parts = {target: names[short(target)] for target in solution(key)}
    with hidden(key):
        given = answers(key, parts)
        given = [next(given), next(given)]
    assert [line.text for line in judge(key, iter(given), None, whole=False) if not line.ok] == []


# ------------------------------------------------------------ twins
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
# What bears a part's name, or stands beside it, and is no twin; or gives way in another way.
NO_TWINS = {
    "minillava.decode_graph.StaticKVCache.append": "made for a recorded step alone, of which there is none: swap.RECORDS",
    "minillava.kernels.rms_norm.rms_norm": "a kernel to be measured and tested, which no model calls",
    "minillava.model.embed_text": "what a prompt without a picture needs in place of merge",
    "minillava.lora.merge": "adds an adapter to a weight",
    "minillava.data.instruct.generate.merge": "joins sets of data",
    "minillava.data.scenes.Draws.sample": "draws things for a scene",
}


def name_of(node: ast.AST) -> str | None:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)


def alternatives(node: ast.AST) -> list[ast.AST]:
    """What a node chooses from: the sides of a conditional expression, the values of a table, a function's results."""
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    if isinstance(node, ast.Dict):
        return node.values
    if isinstance(node, ast.FunctionDef):
        return [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
    return []


def twins(target: str, trees: dict[str, ast.Module]) -> set[str]:
    """What is chosen in the place of the target, or bears its name elsewhere."""
    found, name = set(), short(target)
    for module, tree in trees.items():
        for node in ast.walk(tree):
            names = set(map(name_of, alternatives(node))) - {None}
            found |= {f"{module}.{other}" for other in names - {name}} if name in names else set()
            holder = module if isinstance(node, ast.Module) else f"{module}.{getattr(node, 'name', '')}"
            kinds = (ast.FunctionDef, ast.ClassDef)
            for child in ast.iter_child_nodes(node):
                if isinstance(child, kinds) and child.name == name and isinstance(node, (ast.Module, ast.ClassDef)):
                    found.add(f"{holder}.{name}")
    return found - {target}


def same(name: str) -> str:
    """Where a name that a module has only imported is defined."""
    part = swap.original(name)
    return f"{part.__module__}.{part.__qualname__}"


@pytest.mark.parametrize("target", [target for key in FILES for target in targets_of(FILES[key])])
def test_every_twin_gives_way(target):
    named = {*COMPANIONS.get(target, ()), *NO_TWINS, target}
    assert {same(twin) for twin in twins(target, TREES) if twin not in NO_TWINS} <= named


def test_a_twin_would_be_found():
    trees = {
        "a.b": ast.parse(
            "f = fast_norm if big else norm\ndef g(x):\n    if x:\n        return other_norm(x)\n    return norm(x)"
        ),
        "a.c": ast.parse("class C:\n    def norm(self): pass\ntable = {'x': norm, 'y': m.table_norm}"),
    }
    assert twins("a.b.norm", trees) == {"a.b.fast_norm", "a.b.other_norm", "a.c.C.norm", "a.c.table_norm"}
    pytest.importorskip("triton")
    assert all(swap.original(target) for target in NO_TWINS if not target.endswith("embed_text"))


def test_companions_are_in_the_product():
    for target, twin in [(name, twin) for name in COMPANIONS for twin in COMPANIONS[name].items()]:
        assert all(map(callable, map(swap.original, (target, *twin))))
    assert all(callable(swap.original(helper)) for helpers in HELPERS.values() for helper in helpers)


def test_a_loss_is_called_however_many_logits_there_are(monkeypatch):
    monkeypatch.setattr(training, "MANY_LOGITS", 0)
    module = sys.modules["minillava.training.loss"]
    before = [training.chunked_loss, training.next_token_loss, module.chunked_loss]
    model, batch = small_model_and_batch()
    with swap.replaced({"minillava.training.loss.next_token_loss": lambda *_: torch.tensor(7.0)}) as calls:
        assert training.loss(model, batch) == 7 and calls.total() == 1
    assert [training.chunked_loss, training.next_token_loss, module.chunked_loss] == before


def small_model_and_batch():
    from lessons.trials.e11_trainable import small_llava

    ids = torch.tensor([[1, 2, 3]])
    return small_llava(), {"input_ids": ids, "labels": ids}


def test_no_step_is_recorded_while_a_part_is_replaced(monkeypatch):
    """A recorded step would have a cache of its own, and not call a part again."""
    monkeypatch.setattr(decode_graph, "world_size", lambda: 1)
    cache = SimpleNamespace(keys=SimpleNamespace(is_cuda=True))
    assert generation.can_be_recorded(cache)
    with swap.replaced({"minillava.language_model.rms_norm": language_model.rms_norm}):
        assert not generation.can_be_recorded(cache) and not decode_graph.can_be_recorded(cache)
    assert generation.can_be_recorded(cache)


# ------------------------------------------------------------ --with
def test_chat_keeps_its_exit_status(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text('REPLACES = "minillava.language_model.rms_norm"\n' + RIGHT)
    monkeypatch.setattr(chat, "talk", lambda flags: 2)
    assert chat.main(["--with", str(tmp_path / "mine.py")]) == chat.main([]) == 2


def test_what_a_disk_or_terminal_does_is_not_the_parts_fault(tmp_path):
    (tmp_path / "mine.py").write_text('REPLACES = "minillava.language_model.rms_norm"\n' + RIGHT)
    for error in (BrokenPipeError(), OSError(28, "No space left"), MemoryError(), UserError("no")):
        with pytest.raises(type(error)), swap.student_parts([str(tmp_path / "mine.py")]):
            raise error
    assert language_model.rms_norm.__module__ == "minillava.language_model"


@pytest.mark.parametrize("target", ["..x", "x", "os.path.join", "", "minillava..x", "antigravity.x"])
def test_a_name_that_is_not_the_products(tmp_path, target):
    (tmp_path / "mine.py").write_text(f"REPLACES = {target!r}\n")
    with pytest.raises(UserError, match=r"REPLACES|replaces"), swap.student_parts([str(tmp_path / "mine.py")]):
        pass
    assert "antigravity" not in sys.modules


def test_put_gives_each_name_its_own_back():
    before = [training.chunked_loss, training.next_token_loss]
    with ExitStack() as undo:
        swap.put("minillava.training.loss.next_token_loss", len, undo)
        assert training.next_token_loss is len
    assert [training.chunked_loss, training.next_token_loss] == before


# ------------------------------------------------------------ the floors of lessons/
FLOORS = [
    {"specs", "bpe", "guard", "plots", "data_flow"},
    {"swap", "build"},
    {"solutions"},
    {"trials", "mistakes"},
    {"whole"},
    {"attempt"},
    {"examine"},
    {"check", "student", "mutate"},
]


def lessons_imported(path: Path) -> set[str]:
    names = set().union(*map(names_of, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    return {name.split(".")[1] for name in names if name.startswith("lessons.")}


def test_imports_in_lessons_go_one_way():
    own = ROOT / "lessons"
    paths = [path for path in own.rglob("*.py") if path.parent.name not in ("src", "exercises")]
    part = {path: path.relative_to(own).parts[0].removesuffix(".py") for path in paths}
    assert set(part.values()) == {"__init__"}.union(*FLOORS)
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in paths:
        above = {name for name in lessons_imported(path) - {part[path]} if floor[name] >= floor.get(part[path], 99)}
        assert not above, f"{path} imports {above}"
    graph = {name: set() for name in floor} | {"__init__": set()}
    for path in paths:
        graph[part[path]] |= lessons_imported(path) - {part[path]}
    assert circle(graph) == []
