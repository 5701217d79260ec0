"""The Triton kernels: their numbers in the interpreter, what the compiler makes of them, and, where there is a GPU,
both on it.
"""

import copy
import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import minillava
from minillava import weights
from minillava.attention import attention
from minillava.config import TextConfig
from minillava.decode_graph import DecodeStep
from minillava.errors import UserError
from minillava.generation import new_cache, sample
from minillava.language_model import LanguageModel, apply_rope, rope_tables

pytest.importorskip("triton")
flash_decoding, report = (pytest.importorskip(f"minillava.kernels.{name}") for name in ("flash_decoding", "report"))
ROOT = Path(__file__).resolve().parent.parent
WITH_INTERPRETER = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}


def test_in_the_interpreter():
    """In a process of its own, since Triton interprets or compiles, once for all."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/interpreted_kernels.py"]
    run = subprocess.run(command, env=WITH_INTERPRETER, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-6000:] + run.stderr[-2000:]


def test_the_command_line_in_the_interpreter():
    command = [
        sys.executable,
        "chat.py",
        "--image",
        "lessons/images/cat.png",
        "--attention",
        "triton",
        "--device",
        "cpu",
        "Is there a dog?",
    ]
    run = subprocess.run(command, env=WITH_INTERPRETER, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "No, there is no dog.\n"), run.stderr


def test_triton_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(UserError, match="runs on CUDA, not on cpu: choose sdpa"):
        weights.find_attention("triton", cpu)
    assert weights.find_attention("auto", cpu) == "sdpa" and weights.find_attention("auto", cuda) == "triton"
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find_spec(name, *rest)
    )
    with pytest.raises(UserError, match="needs the package triton"):
        weights.find_attention("triton", cuda)
    assert weights.find_attention("auto", cuda) == "sdpa"


def test_importing_the_product_does_not_import_triton():
    code = "import sys, minillava, minillava.training, minillava.attention; print('triton' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


# ------------------------------------------------------------ what the compiler makes of them
REPORT = """
from concurrent.futures import ProcessPoolExecutor
from minillava.kernels import report
if __name__ == "__main__":
    chosen = {(80, 64, "float16"): ["causal", "all"], (80, 128, "bfloat16"): ["causal"], (90, 64, "bfloat16"): ["causal"],
              (90, 128, "float16"): ["causal", "layer"]}
    jobs = [job for (card, D, dtype), kinds in chosen.items() for job in report.jobs([card], [D], [dtype]) if job.sees in kinds]
    with ProcessPoolExecutor(2) as pool:
        for job, compiled in zip(jobs, pool.map(report.Job.run, jobs)):
            print(job.architecture, job.D, compiled.name, compiled.async_copies, report.problems(compiled, report.DTYPES[job.dtype], job.D))
"""


def test_compiled_for_the_cards_that_matter(tmp_path):
    """No spills in a loop, tensor cores, shared memory within the card's, two programs a multiprocessor at head 64; the
    report itself compiles all.
    """
    script = tmp_path / "compile.py"
    script.write_text(REPORT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(lines) == 4 * 5 + 3 + 12
    for line in lines:
        assert line.endswith(" []"), line
        name, copies = line.split()[2:4]
        # tiles of the loop are loaded while others are multiplied
        assert name in report.WITHOUT_PRODUCTS or int(copies) > 0, line


def test_a_kernel_that_spills_would_be_found(monkeypatch):
    compiled = report.Compiled("forward", 80, 8, 255, 5, 3, 200 << 10, 0, 0)
    assert len(report.problems(compiled, torch.float16, 64)) == 4
    half_registers = dataclasses.replace(compiled, spills_in_loop=0, shared=70 << 10, tensor_core=9, registers=128)
    assert half_registers.programs == 2 and report.problems(half_registers, torch.float16, 64) == []


def test_what_lies_in_a_loop():
    """A loop over heads that holds one over tiles: what is outside of the inner one runs once a head."""
    code = """
        /*0010*/                   STL [R1], R4 ;
        /*0020*/                   LDL R4, [R1] ;
        /*0030*/                   STL [R1+0x8], R5 ;
        /*0040*/              @!P0 LDL R6, [R1+0x8] ;
        /*0050*/               @P1 BRA 0x30 ;
        /*0060*/                   BRA 0x20 ;
        /*0070*/                   BRA 0x70;
    """
    instructions = [(int(at, 16), line) for at, line in report.INSTRUCTION.findall(code)]
    assert len(instructions) == 7
    assert [at for at, _ in report.innermost(instructions)] == [0x30, 0x40, 0x50]


# ------------------------------------------------------------ how many there are
class Kernels(TorchDispatchMode):
    """Counts PyTorch's operations that a GPU would run: not views, and no empty memory."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(out.alias_info and not out.alias_info.is_write for out in function._schema.returns)
        name = function._schema.name.split("::")[1]
        self.count += not is_view and name not in ("empty", "empty_like", "new_empty", "_unsafe_view")
        return function(*args, **(kwargs or {}))


def kernels_of(run) -> int:
    """Our own and PyTorch's, on the meta device, as on a card of 132 multiprocessors."""
    with torch.inference_mode(), report.recorded(90) as launches, Kernels() as operations:
        run()
    return operations.count + len(launches)


def test_kernels_of_a_token_and_of_a_prompt(monkeypatch):
    """LLaMA-7B: 7 products and 6 kernels of ours a layer, of which one is the second launch of flash decoding."""
    monkeypatch.setattr(flash_decoding, "multiprocessors", lambda device: 132)
    with torch.device("meta"):
        model = LanguageModel(TextConfig(), "triton")
    cache = new_cache(model, 1, 2048)
    prompt = kernels_of(lambda: model.hidden_states(torch.empty(1, 640, 4096, device="meta"), cache=cache))
    with torch.inference_mode():
        step = DecodeStep(model, cache)
    token = kernels_of(lambda: sample(step.run()[:, -1].float()))
    assert (cache.length, 13 * 32 < prompt <= 430, 13 * 32 < token <= 430) == (640, True, True), (prompt, token)


@pytest.mark.parametrize("T, causal", [(577, False), (640, True)], ids=["a picture", "a prompt"])
@pytest.mark.parametrize("architecture", report.CARDS)
@pytest.mark.parametrize("D", [64, 128])
def test_tiles_compute_little_that_is_not_visible(T, causal, architecture, D):
    launch = report.attention_launches(architecture, D, torch.float16, causal, False, T)[0]
    assert report.useful_share(launch) >= 0.8


def test_the_report_narrowed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", "--cards", "80", "--widths", "16", "--dtypes", "float16"])
    monkeypatch.setattr(report, "jobs", lambda *chosen: [report.Job(80, 16, "float16", "causal", 4)])
    assert report.main() == 0
    assert capsys.readouterr().out.splitlines()[-2:][0].startswith("| combine | sm_80 | 16 | float16 | causal | 4 | ")


# ------------------------------------------------------------ on a GPU
cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and -m cuda"),
]
ON_CARD = [
    pytest.param(*case, marks=cuda)
    for case in [(2, 16, 16, 577, 577, 64, False), (2, 8, 2, 300, 300, 128, True), (1, 4, 4, 37, 513, 80, True)]
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("B, H, K, T, S, D, causal", ON_CARD)
def test_on_a_gpu_as_exact_as_the_formula(B, H, K, T, S, D, causal, dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = ((H, T), (K, S), (K, S), (H, T))
    q, k, v, grad = (torch.randn(B, heads, length, D, generator=generator).cuda().to(dtype) for heads, length in shapes)
    results = []
    for name, kind in (("eager", torch.float64), ("eager", dtype), ("triton", dtype), ("triton", dtype)):
        qkv = [x.to(kind).requires_grad_() for x in (q, k, v)]
        out = attention(*qkv, causal=causal, implementation=name)
        results.append([out, *torch.autograd.grad(out, qkv, grad.to(kind))])
    for allowed, exact, formula, ours, again in zip((2, 3, 3, 3), *results, strict=True):
        assert torch.equal(ours, again)
        rounding = torch.finfo(dtype).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= allowed * torch.maximum((formula - exact).abs().max(), rounding)


@pytest.mark.parametrize("backend", [pytest.param(name, marks=cuda) for name in ("FLASH_ATTENTION", "MATH")])
def test_on_a_gpu_beside_pytorch(backend):
    q, k, v = (torch.randn(2, 8, 1000, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    ours = attention(q, k, v, causal=True, implementation="triton")
    assert (ours - theirs).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * v.abs().max()


@pytest.mark.parametrize("dtype", [pytest.param(d, marks=cuda) for d in (torch.bfloat16, torch.float16, torch.float32)])
def test_on_a_gpu_a_layer_is_as_exact_as_the_plain_one(dtype):
    """With the gradients of its input and its parameters; the yardstick is the plain layer in float64."""
    torch.manual_seed(0)
    model = LanguageModel(TextConfig(64, 520, 1030, 1, 8, 2, head_dim=64)).cuda()
    x, grad = torch.randn(2, 300, 520, device="cuda"), torch.randn(2, 300, 520, device="cuda")
    results = []
    for name, kind in (("eager", torch.float64), ("eager", dtype), ("triton", dtype), ("triton", dtype)):
        layer = copy.deepcopy(model.layers[0]).to(kind)
        cos, sin = rope_tables(model.frequencies, 0, 300, kind, x.device)
        given = x.to(kind).requires_grad_()
        out = layer(given, cos, sin, 0, None, None, name)
        results.append([out, *torch.autograd.grad(out, [given, *layer.parameters()], grad.to(kind))])
    for exact, plain, ours, again in zip(*results, strict=True):
        assert torch.equal(ours, again)
        rounding = torch.finfo(dtype).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= 3 * torch.maximum((plain - exact).abs().max(), rounding)


@pytest.mark.parametrize("dtype", [pytest.param(d, marks=cuda) for d in (torch.bfloat16, torch.float16, torch.float32)])
@pytest.mark.parametrize("rows, past", [(1, 1999), (1, 70), (64, 511)])
def test_on_a_gpu_a_new_token(rows, past, dtype):
    """In several parts and in one; it is written into the cache, of which what lies behind is NaN."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(rows, heads, 1, 128, device="cuda").to(dtype) for heads in (8, 2, 2))
    keys, values = torch.full((2, rows, 2, 2100, 128), torch.nan, device="cuda", dtype=dtype)
    for cache in (keys, values):
        cache[:, :, :past] = torch.randn(rows, 2, past, 128, device="cuda")
    start = torch.arange(rows, device="cuda") % 50
    cos, sin = rope_tables(torch.rand(64), past, past + 1, dtype, q.device)
    filled = [torch.cat([x[:, :, :past], new], 2) for x, new in ((keys, apply_rope(k, cos, sin)), (values, v))]
    expected = attention(apply_rope(q, cos, sin), *filled, causal=True, implementation="eager", start=start)
    new, past = (k, v, cos, sin), torch.tensor([past], device="cuda")
    out = flash_decoding.flash_decoding(q, keys, values, start=start, past=past, new=new)
    for ours, theirs in ((out, expected), (keys[:, :, past], filled[0][:, :, past]), (values[:, :, past], v)):
        assert (ours - theirs).abs().max() <= 8 * torch.finfo(dtype).eps * theirs.abs().max()


@pytest.mark.parametrize("question", [pytest.param("What is in the picture?", marks=cuda)])
def test_on_a_gpu_the_tiny_model_answers_as_on_a_cpu(question):
    """Prefill by flash attention, then a CUDA graph of flash decoding."""
    picture = ROOT / "lessons/images/cat.png"
    answers = [
        minillava.answer(*minillava.load("weights/tiny", device, "float32"), picture, question)
        for device in ("cpu", "cuda")
    ]
    assert answers[0] == answers[1]
