"""RMSNorm in Triton, with the residual sum before it: h = x + delta, y = h / sqrt(mean(h^2) + eps) * weight. The first
kernel to read.

Root Mean Square Layer Normalization (arXiv 1910.07467). x and delta (..., C), weight (C,) -> h and y (..., C).
`minillava.language_model.rms_norm` is the specification of y: six PyTorch operations, of which each reads a tensor from
memory and writes one back, and the sum is a seventh. This kernel reads x and delta once and writes h and y once, and
that is all its speed: the arithmetic costs nothing beside the memory.

A kernel is a function that runs many times at once, as many programs. Each asks for its own number and does its share:
here, one row.

Backward, with r = 1 / sqrt(mean(h^2) + eps), n = r h and g = dy * weight:

    dh = r (g - n mean(g n)) + what reaches h itself      dx = ddelta = dh      dweight = sum over the rows of dy * n
"""

import torch
import triton
import triton.language as tl

from minillava.kernels.tiles import next_power_of_2

PROGRAMS = 256  # of the backward kernel at most: each sums dweight over its own rows, and PyTorch sums these sums


@triton.jit
def rms_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, sum_ptr, out_ptr, C, eps, HAS_DELTA: tl.constexpr, BLOCK_C: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)  # which of the rows is mine; 64 bits, since row * C may be beyond 2^31
    columns = tl.arange(0, BLOCK_C)  # all columns at once: a tile of BLOCK_C, the power of two that C fits in
    inside = columns < C  # what lies beyond C is neither read nor written
    x = tl.load(x_ptr + row * C + columns, mask=inside, other=0.0)
    if HAS_DELTA:
        delta = tl.load(delta_ptr + row * C + columns, mask=inside, other=0.0)
        x = (x.to(tl.float32) + delta.to(tl.float32)).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * C + columns, x, mask=inside)
    h = x.to(tl.float32)
    normed = h * tl.rsqrt(tl.sum(h * h, 0) / C + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    out = weight * normed.to(x.dtype)  # rounded before the weight, as LLaMA does it
    tl.store(out_ptr + row * C + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_gradient_kernel(
    h_ptr, weight_ptr, grad_ptr, sum_grad_ptr, dx_ptr, dweight_ptr, rows, C, eps,
    HAS_DELTA: tl.constexpr, LEARNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx of every PROGRAMS-th row, and, where the weight learns, this program's part of dweight (PROGRAMS, C)."""
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_C], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * C + columns
        h = tl.load(h_ptr + at, mask=inside, other=0.0)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        wide = h.to(tl.float32)
        r = tl.rsqrt(tl.sum(wide * wide, 0) / C + eps)
        normed, g = wide * r, grad * weight
        dx = r * (g - normed * (tl.sum(g * normed, 0) / C))
        if HAS_DELTA:
            dx += tl.load(sum_grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if LEARNS:
            dweight += grad * normed.to(h.dtype).to(tl.float32)
    if LEARNS:
        tl.store(dweight_ptr + tl.program_id(0) * C + columns, dweight, mask=inside)


# ------------------------------------------------------------ launch
# Where no gradient is asked for, PyTorch's part in it is left out: it takes as long as starting the kernel.
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., C), weight (C,) -> (..., C), in the type of their product or, under autocast, in autocast's."""
    return RMSNorm.apply(x, None, weight, eps) if torch.is_grad_enabled() else forward(x, None, weight, eps)[1]


def add_rms_norm(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float):
    """(x + delta, rms_norm(x + delta, weight, eps)); all but weight (C,) are (..., C)."""
    return RMSNorm.apply(x, delta, weight, eps) if torch.is_grad_enabled() else forward(x, delta, weight, eps)


class RMSNorm(torch.autograd.Function):
    """Both as one differentiable function."""

    @staticmethod
    def forward(ctx, x, delta, weight, eps):
        h, out = forward(x, delta, weight, eps)
        ctx.save_for_backward(h, weight)
        ctx.eps, ctx.types = eps, (x.dtype, None if delta is None else delta.dtype)
        return out if delta is None else (h, out)

    @staticmethod
    def backward(ctx, *grads):
        h, weight = ctx.saved_tensors
        dx, dweight = backward(h, weight, *reversed(grads), eps=ctx.eps, learns=ctx.needs_input_grad[2])
        x_type, delta_type = ctx.types
        return dx.to(x_type), None if delta_type is None else dx.to(delta_type), dweight, None


def shape_settings(C: int) -> dict:
    """A tile that holds a whole row, and eight of its numbers for each thread."""
    BLOCK_C = next_power_of_2(C)
    return dict(BLOCK_C=BLOCK_C, num_warps=max(1, min(16, BLOCK_C // 256)))


def forward(x, delta, weight, eps):
    """(x + delta, y); without delta the first is x itself."""
    x, C = x.contiguous(), x.shape[-1]
    h = x if delta is None else torch.empty_like(x, dtype=wider(x.dtype, delta.dtype))
    out = torch.empty_like(x, dtype=result_type(h, weight))
    rms_norm_kernel[(x.numel() // C,)](
        x, x if delta is None else delta.contiguous(), weight, h, out, C, eps,
        HAS_DELTA=delta is not None, **shape_settings(C),
    )  # fmt: skip
    return h, out


def result_type(h: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """Under autocast that of matrix products, since nothing but these will read y: they need not convert it first."""
    device = h.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return wider(h.dtype, weight.dtype)


def wider(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    return a if a == b else torch.promote_types(a, b)


def backward(h, weight, grad, sum_grad=None, *, eps, learns):
    """(dx, dweight); dweight is None where the weight does not learn."""
    C = h.shape[-1]
    rows = h.numel() // C
    programs, dx = min(PROGRAMS, rows), torch.empty_like(h)
    parts = torch.empty(programs if learns else 1, C, dtype=torch.float32, device=h.device)  # (PROGRAMS, C)
    rms_norm_gradient_kernel[(programs,)](
        h, weight, grad.contiguous(), h if sum_grad is None else sum_grad.contiguous(), dx, parts, rows, C, eps,
        HAS_DELTA=sum_grad is not None, LEARNS=learns, **shape_settings(C),
    )  # fmt: skip
    return dx, parts.sum(0).to(weight.dtype) if learns else None
