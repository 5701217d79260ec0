"""RMSNorm in Triton: x / sqrt(mean(x^2) + eps) * weight. The first kernel to read.

Root Mean Square Layer Normalization (arXiv 1910.07467). `minillava.language_model.rms_norm` is the specification: five
PyTorch operations, of which each reads x from memory and writes it back. This kernel reads x once and writes the result
once, and that is all its speed: the arithmetic costs nothing beside the memory. It has no backward pass and the model
does not use it; flash_attention.py goes on where it ends.

A kernel is a function that runs many times at once, as many programs. Each asks for its own number and does its share:
here, one row."""

import torch
import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(x_ptr, weight_ptr, out_ptr, C, eps, BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # which of the rows is mine; 64 bits, since row * C may be beyond 2^31
    columns = tl.arange(0, BLOCK_C)  # all columns at once: a tile of BLOCK_C, the power of two that C fits in
    inside = columns < C  # what lies beyond C is neither read nor written
    x = tl.load(x_ptr + row * C + columns, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / C + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    out = weight * x.to(out_ptr.dtype.element_ty)  # rounded before the weight, as LLaMA does it
    tl.store(out_ptr + row * C + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., C) and weight (C,), of one dtype -> (..., C)."""
    x = x.contiguous()
    out = torch.empty_like(x)
    C = x.shape[-1]
    BLOCK_C = triton.next_power_of_2(C)
    rms_norm_kernel[(x.numel() // C,)](
        x, weight, out, C, eps, BLOCK_C=BLOCK_C, num_warps=max(1, min(16, BLOCK_C // 256))
    )
    return out
