"""Attention: every implementation at the shapes of LLaVA-1.5, beside PyTorch's own kernels.

For each: milliseconds, TFLOP/s and their share of a large matrix product measured in the same run; for decoding GB/s
and their share of a large copy. A causal matrix counts half. A decoded token is so short that Python takes longer to
start its kernels than a GPU to run them, so it is measured on a GPU as the product runs it, recorded in a CUDA graph,
and called from Python beside that; and each call reads keys and values of its own, which no cache holds. On a CPU the
Triton kernels do not run, and the shapes are one picture and one prompt.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillava.attention import attention
from minillava.bench.measure import bandwidth, matmul_peak, name_of, recorded, seconds
from minillava.weights import DTYPES, find_device


@dataclass(frozen=True)
class Shape:
    name: str
    B: int
    H: int
    K: int
    T: int
    S: int
    D: int
    causal: bool

    @property
    def flops(self) -> float:
        """Of the forward pass: two products of T x S x D, a multiplication and an addition each; the backward pass has
        five.
        """
        return 4 * self.B * self.H * self.T * self.S * self.D * (0.5 if self.causal and self.T > 1 else 1)


CUDA_SHAPES = [
    Shape("CLIP ViT-L/14-336", 16, 16, 16, 577, 577, 64, False),
    Shape("LLaMA-7B, 704 tokens", 4, 32, 32, 704, 704, 128, True),
    Shape("LLaMA-7B, 2048 tokens", 4, 32, 32, 2048, 2048, 128, True),
    Shape("LLaMA-7B, one token", 1, 32, 32, 1, 2048, 128, True),
    Shape("LLaMA-7B, one token, 16 rows", 16, 32, 32, 1, 2048, 128, True),
    Shape("grouped queries, one token", 16, 32, 8, 1, 4096, 128, True),
]
CPU_SHAPES = [
    Shape("CLIP ViT-L/14-336", 1, 16, 16, 577, 577, 64, False),
    Shape("LLaMA-7B, 704 tokens", 1, 32, 32, 704, 704, 128, True),
    Shape("LLaMA-7B, one token", 1, 32, 32, 1, 2048, 128, True),
]


def implementations(device: torch.device, shape: Shape) -> dict[str, Callable]:
    """name -> f(q, k, v). Of PyTorch's backends each by itself; flex_attention is compiled."""
    found = {name: partial(attention, causal=shape.causal, implementation=name) for name in ("eager", "sdpa")}
    if device.type != "cuda":
        return found
    found["triton"] = partial(attention, causal=shape.causal, implementation="triton")
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        found[f"torch {name.split('_')[0].lower()}"] = partial(torch_attention, shape, getattr(SDPBackend, name))
    if shape.T > 1:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = (
            create_block_mask(lambda b, h, t, s: t >= s, None, None, shape.T, shape.S, device=device)
            if shape.causal
            else None
        )
        found["torch flex"] = partial(torch.compile(flex_attention), block_mask=mask, enable_gqa=shape.H != shape.K)
    return found


def torch_attention(shape: Shape, backend: SDPBackend, q, k, v):
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=shape.causal and shape.T > 1, enable_gqa=shape.H != shape.K
        )


def measure(shape: Shape, device: torch.device, dtype: torch.dtype, peak: float, copy: float) -> None:
    """One table: a line for each implementation."""
    q, k, v = random_qkv(shape, device, dtype)
    print(f"\n{shape.name}: q {tuple(q.shape)}, k and v {tuple(k.shape)}")
    for name, function in implementations(device, shape).items():
        try:
            found = token_line(function, q, k, v, copy) if shape.T == 1 else prompt_line(function, q, k, v, shape, peak)
        except RuntimeError as error:  # a backend that does not take this shape
            found = " ".join(str(error).split())[:90]
        print(f"  {name:16} {found}", flush=True)


def random_qkv(shape: Shape, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """q (B, H, T, D), k and v (B, K, S, D), laid out as the model's: heads beside each other."""
    lengths = ((shape.H, shape.T), (shape.K, shape.S), (shape.K, shape.S))
    return [
        torch.randn(shape.B, length, heads, shape.D, device=device).to(dtype).transpose(1, 2)
        for heads, length in lengths
    ]


@torch.no_grad()
def token_line(function: Callable, q, k, v, copy: float) -> str:
    """Of a decoded token: the time to run it and, on a GPU, the time to start it from Python as well."""
    device, read = q.device, k.nbytes + v.nbytes
    caches = [(k, v)]
    if device.type == "cuda":
        caches += [(k.clone(), v.clone()) for _ in range((1 << 28) // read)]
    call = lambda: [function(q, *cache) for cache in caches]
    called = seconds(call, device) / len(caches)
    ran = seconds(recorded(call, device), device) / len(caches) if device.type == "cuda" else called
    line = f"forward {ran * 1e3:8.3f} ms  {read / ran / 1e9:7.0f} GB/s ({read / ran / copy:4.0%} of a copy)"
    return line + (f"   called from Python {called * 1e3:8.3f} ms" if device.type == "cuda" else "")


def prompt_line(function: Callable, q, k, v, shape: Shape, peak: float) -> str:
    """Of a prompt or a picture: the forward and the backward pass."""
    with torch.no_grad():
        forward = seconds(lambda: function(q, k, v), q.device)
    backward = both_passes(function, q, k, v, q.device) - forward
    return (
        f"forward {forward * 1e3:8.3f} ms  {shape.flops / forward / 1e12:7.3f} TFLOP/s"
        f" ({shape.flops / forward / peak:4.0%} of a product)"
        f"   backward {backward * 1e3:8.3f} ms  {2.5 * shape.flops / backward / 1e12:7.3f} TFLOP/s"
    )


def both_passes(function: Callable, q, k, v, device) -> float:
    qkv = [x.detach().requires_grad_() for x in (q, k, v)]
    grad = torch.randn_like(q)
    return seconds(lambda: torch.autograd.grad(function(*qkv), qkv, grad), device)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m minillava.bench attention", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default bfloat16 on a GPU, float32 on a CPU")
    flags = parser.parse_args(arguments)
    device = find_device(flags.device)
    cuda = device.type == "cuda"
    dtype = DTYPES[flags.dtype or ("bfloat16" if cuda else "float32")]
    torch.manual_seed(0)
    peak, copy = matmul_peak(device, dtype), bandwidth(device)
    print(f"{name_of(device)}, {dtype}: a product of matrices {peak / 1e12:.3f} TFLOP/s, a copy {copy / 1e9:.0f} GB/s")
    for shape in CUDA_SHAPES if cuda else CPU_SHAPES:
        measure(shape, device, dtype, peak, copy)
