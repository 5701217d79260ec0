"""Attention: every implementation at the shapes of LLaVA-1.5, beside PyTorch's own kernels.

For each: milliseconds, TFLOP/s and their share of a large matrix product measured in the same run; for decoding GB/s
and their share of a large copy. A causal matrix counts half. On a CPU the Triton kernels do not run, and the shapes are
one picture and one prompt."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillava.attention import attention
from minillava.bench.measure import bandwidth, matmul_peak, seconds
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
    lengths = ((shape.H, shape.T), (shape.K, shape.S), (shape.K, shape.S))
    q, k, v = (
        torch.randn(shape.B, length, heads, shape.D, device=device).to(dtype).transpose(1, 2)
        for heads, length in lengths
    )
    print(
        f"\n{shape.name}: q ({shape.B}, {shape.H}, {shape.T}, {shape.D}), k and v ({shape.B}, {shape.K}, {shape.S}, {shape.D})"
    )
    for name, function in implementations(device, shape).items():
        try:
            with torch.no_grad():
                forward = seconds(lambda function=function: function(q, k, v), device)
            line = f"  {name:16} forward {forward * 1e3:8.3f} ms"
            if shape.T == 1:
                rate = (k.nbytes + v.nbytes) / forward
                line += f"  {rate / 1e9:7.0f} GB/s ({rate / copy:4.0%} of a copy)"
            else:
                line += (
                    f"  {shape.flops / forward / 1e12:7.3f} TFLOP/s ({shape.flops / forward / peak:4.0%} of a product)"
                )
                backward = both_passes(function, q, k, v, device) - forward
                line += f"   backward {backward * 1e3:8.3f} ms  {2.5 * shape.flops / backward / 1e12:7.3f} TFLOP/s"
        except RuntimeError as error:  # a backend that does not take this shape
            line = f"  {name:16} {' '.join(str(error).split())[:90]}"
        print(line, flush=True)


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
    name = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, {dtype}: a product of matrices {peak / 1e12:.3f} TFLOP/s, a copy {copy / 1e9:.0f} GB/s")
    for shape in CUDA_SHAPES if cuda else CPU_SHAPES:
        measure(shape, device, dtype, peak, copy)
