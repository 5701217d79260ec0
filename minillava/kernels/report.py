"""What the compiler makes of every kernel that is shipped, without a GPU: `python -m minillava.kernels.report`.

Each launch is recorded with tensors that hold no data, and compiled ahead of time for a card by Triton and the ptxas of
its wheel. The table shows what decides a kernel's speed before it has run once: registers of a thread, spills
(instructions that move a register to slow memory or back) and those of them that lie in an innermost loop, where they
run for every tile, shared memory of a program, tensor-core instructions, asynchronous copies, and how many programs a
multiprocessor can hold at once.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from minillava.kernels import flash_attention, flash_decoding, rms_norm, rope, swiglu, tiles


@dataclass(frozen=True)
class Card:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities")."""

    name: str
    shared: int  # bytes of shared memory, of which each program needs 1 KiB more than it asks for
    most_shared: int  # bytes that one program may have
    threads: int
    registers: int = 65536


CARDS = {
    80: Card("A100", 164 << 10, 163 << 10, 2048),
    89: Card("L4, RTX 4090", 100 << 10, 99 << 10, 1536),
    90: Card("H100", 228 << 10, 227 << 10, 2048),
    100: Card("B200", 228 << 10, 227 << 10, 2048),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
WIDTHS = (16, 32, 64, 80, 128, 256)  # of a head: SmolLM2's, CLIP's and TinyLlama's 64, CLIP-H's 80, LLaMA's 128


# ------------------------------------------------------------ what is launched
@dataclass
class Launch:
    kernel: JITFunction
    grid: tuple
    arguments: dict


class Recorder:
    """Stands in a kernel's place and keeps what it would have been launched with."""

    def __init__(self, kernel: JITFunction, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        def launch(*positional, **named):
            self.launches.append(Launch(self.kernel, grid, dict(zip(self.kernel.arg_names, positional)) | named))

        return launch


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """The launches of the calls inside, none of which runs, as on a card of this architecture."""
    launches, saved = [], [(tiles, "architecture", tiles.architecture)]
    tiles.architecture = lambda device: architecture
    for module in (flash_attention, flash_decoding, rms_norm, rope, swiglu):
        for name, kernel in vars(module).copy().items():
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                saved.append((module, name, kernel))
                setattr(module, name, Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, value in saved:
            setattr(module, name, value)


def empty(*shape: int, dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def attention_launches(architecture: int, D: int, dtype, causal: bool, padded: bool, T: int = 640) -> list[Launch]:
    """A training step's and a decoded token's kernels at this head: two query heads to a key head."""
    q, k = empty(2, 8, T, D, dtype=dtype), empty(2, 4, T, D, dtype=dtype)
    start = empty(2, T, dtype=torch.int64) if padded else None
    with recorded(architecture) as launches:
        out, lse = flash_attention.forward(q, k, k, start, causal)
        flash_attention.backward(q, k, k, start, out, lse, out, causal)
        if causal:
            flash_decoding.flash_decoding(q[:, :, -1:], k, k, start=None if start is None else start[:, 0])
    return launches


def layer_launches(architecture: int, D: int, dtype, T: int = 640) -> list[Launch]:
    """The other kernels of a decoder layer of 32 heads of this width: a training step's, a prompt's and a token's, the
    token's attention in several parts and in one.
    """
    C, H, K = 32 * D, 32, 4
    x, weight, gate = empty(T, C, dtype=dtype), empty(C, dtype=dtype), empty(T, 3 * C, dtype=dtype)
    q, k, angles = empty(1, T, H, D, dtype=dtype), empty(1, T, K, D, dtype=dtype), empty(T, D, dtype=dtype)
    cache = empty(1, K, T, D, dtype=dtype)
    token = [y[:, :1].transpose(1, 2) for y in (q, k, k)]
    past, start = empty(1, dtype=torch.int64), empty(1, dtype=torch.int64)
    with recorded(architecture) as launches:
        rms_norm.forward(x, None, weight, 1e-5)
        rms_norm.backward(x, weight, x, eps=1e-5, learns=True)
        rms_norm.forward(x, x, weight, 1e-5)
        rms_norm.backward(x, weight, x, x, eps=1e-5, learns=True)
        rope.turn(q, k, angles, angles)
        rope.turn(q, k, angles, angles, backward=True)
        rope.rope_into_cache(q, k, k, angles, angles, cache, cache)
        swiglu.swiglu(gate, gate)
        swiglu.backward(gate, gate, gate)
        for keys in (cache, cache[:, :, :100]):
            new = (*token[1:], angles[:1], angles[:1])
            flash_decoding.flash_decoding(token[0], keys, keys, start=start, past=past, new=new)
    return launches


# ------------------------------------------------------------ what becomes of it
@dataclass(frozen=True)
class Compiled:
    """A kernel for one card, read from its machine code."""

    name: str
    architecture: int
    warps: int
    registers: int
    spills: int  # instructions that store to or load from local memory
    spills_in_loop: int  # those of them in an innermost loop
    shared: int  # bytes
    tensor_core: int  # HMMA and HGMMA instructions
    async_copies: int  # LDGSTS instructions: from global to shared memory without passing the registers

    @property
    def programs(self) -> int:
        """How many fit a multiprocessor at once; registers are given to a warp in units of 256."""
        card, threads = CARDS[self.architecture], 32 * self.warps
        by_registers = card.registers // (self.warps * -(-self.registers * 32 // 256) * 256)
        return min(by_registers, card.shared // (self.shared + 1024), card.threads // threads, 32)


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile as the launch on a GPU would: a 1 is a constant, and multiples of 16 are known to be such."""
    options = {name: launch.arguments.pop(name) for name in ("num_warps", "num_stages") if name in launch.arguments}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            names = {
                torch.float16: "fp16",
                torch.bfloat16: "bf16",
                torch.float32: "fp32",
                torch.int64: "i64",
                torch.int32: "i32",
            }
            signature[parameter.name] = "*" + names[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    kernel = triton.compile(
        ASTSource(launch.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        show = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    instructions = [(int(at, 16), line) for at, line in INSTRUCTION.findall(text)]
    count = lambda names, some=instructions: sum(bool(re.match(rf"(?:{names})\b", line)) for _, line in some)
    return Compiled(
        launch.kernel.__name__.removesuffix("_kernel"),
        architecture,
        options.get("num_warps", 4),
        int(re.search(r"REG:(\d+)", text)[1]),
        count("STL|LDL"),
        count("STL|LDL", innermost(instructions)),
        kernel.metadata.shared,
        count("HMMA|HGMMA|UTCHMMA"),
        count("LDGSTS"),
    )


# an address and what stands there, without its condition
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+ )?(.*?);", re.MULTILINE)


def innermost(instructions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The instructions of the loops that hold no other loop. A loop ends in a branch to an earlier place."""
    branches = [(at, re.search(r"^BRA.*?\b0x([0-9a-f]+)", line)) for at, line in instructions]
    loops = [(int(target[1], 16), at) for at, target in branches if target and int(target[1], 16) < at]
    inner = [loop for loop in loops if not any(loop[0] <= low and high < loop[1] for low, high in loops)]
    return [(at, line) for at, line in instructions if any(low <= at <= high for low, high in inner)]


WITHOUT_PRODUCTS = ("combine", "rms_norm", "rms_norm_gradient", "rope", "swiglu", "swiglu_gradient")


def problems(compiled: Compiled, dtype: torch.dtype, D: int) -> list[str]:
    """What a shipped kernel may not have."""
    found = []
    if compiled.spills_in_loop:
        found.append(f"{compiled.spills_in_loop} spills in a loop")
    if compiled.shared > CARDS[compiled.architecture].most_shared:
        found.append("more shared memory than the card has")
    if not compiled.tensor_core and compiled.name not in WITHOUT_PRODUCTS:
        found.append("no tensor cores")
    if D == 64 and dtype != torch.float32 and compiled.programs < 2:
        found.append("only one program on a multiprocessor")
    return found


def useful_share(launch: Launch) -> float:
    """The share of visible scores among those that the forward kernel's tiles compute; without `start`."""
    a = launch.arguments
    T, S, BLOCK_T, BLOCK_S, causal = (a[name] for name in ("T", "S", "BLOCK_T", "BLOCK_S", "CAUSAL"))
    visible = sum(t + S - T + 1 if causal else S for t in range(T))
    # of the keys of each tile of queries
    ends = [min(S, begin + BLOCK_T + S - T) if causal else S for begin in range(0, T, BLOCK_T)]
    return visible / sum(BLOCK_T * -(-end // BLOCK_S) * BLOCK_S for end in ends)


# ------------------------------------------------------------ the table
@dataclass(frozen=True)
class Job:
    """One kernel of one configuration; `number` counts the launches of the configuration."""

    architecture: int
    D: int
    dtype: str
    sees: str  # "causal", "causal, start", "all", or "layer": the kernels beside attention
    number: int

    def launches(self) -> list[Launch]:
        """Of the whole configuration."""
        if self.sees == "layer":
            return layer_launches(self.architecture, self.D, DTYPES[self.dtype])
        causal, padded = self.sees != "all", "start" in self.sees
        return attention_launches(self.architecture, self.D, DTYPES[self.dtype], causal, padded)

    def run(self) -> Compiled:
        return compile_launch(self.launches()[self.number], self.architecture)


def jobs(architectures: list[int], widths: list[int], dtypes: list[str]) -> list[Job]:
    """All that the tiles hold. There are none for float32 heads beyond 128."""
    found = []
    for architecture, D, dtype in itertools.product(architectures, widths, dtypes):
        if dtype == "float32" and max(tiles.FLOAT32["forward"]) < D:
            continue
        for sees in ("causal", "causal, start", "all", "layer"):
            first = Job(architecture, D, dtype, sees, 0)
            found += [replace(first, number=number) for number in range(len(first.launches()))]
    return found


def main() -> int:
    """Print the table; status 1 if a kernel has what none may have."""
    parser = argparse.ArgumentParser(prog="python -m minillava.kernels.report", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cards", type=int, nargs="+", choices=CARDS, default=list(CARDS), help="architectures (default: all)"
    )
    parser.add_argument(
        "--widths", type=int, nargs="+", choices=WIDTHS, default=list(WIDTHS), help="of a head (default: all)"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="(default: all)")
    flags = parser.parse_args()
    todo, bad = jobs(flags.cards, flags.widths, flags.dtypes), 0
    print(
        "| kernel | card | head | dtype | sees | warps | registers | spills | in a loop | shared KB | tensor core | async copies | programs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor() as pool:
        for job, c in zip(todo, pool.map(Job.run, todo), strict=True):
            cells = (
                c.name,
                f"sm_{c.architecture}",
                job.D,
                job.dtype,
                job.sees,
                c.warps,
                c.registers,
                c.spills,
                c.spills_in_loop,
                f"{c.shared / 1024:.0f}",
                c.tensor_core,
            )
            found = problems(c, DTYPES[job.dtype], job.D)
            bad += bool(found)
            print("|", " | ".join(map(str, (*cells, c.async_copies, c.programs))), "|", *found, flush=True)
    print(f"{len(todo)} kernels, {bad} with problems")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
