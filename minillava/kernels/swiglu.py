"""SwiGLU in Triton: silu(gate) * up, where silu(z) = z * sigmoid(z).

GLU Variants Improve Transformer (arXiv 2002.05202). gate and up, of one shape -> the same shape. The specification is
`F.silu(gate) * up`, two operations. Backward, with s = sigmoid(gate):

    dgate = dout * up * s * (1 + gate * (1 - s))        dup = dout * gate * s

which needs gate and up alone, where PyTorch keeps silu(gate), too.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024  # numbers a program takes


@triton.jit
def swiglu_kernel(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < count)


@triton.jit
def swiglu_gradient_kernel(gate_ptr, up_ptr, grad_ptr, dgate_ptr, dup_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    dgate, dup = grad * up * s * (1 + gate * (1 - s)), grad * gate * s
    tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=at < count)
    tl.store(dup_ptr + at, dup.to(dup_ptr.dtype.element_ty), mask=at < count)


# ------------------------------------------------------------ launch
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, of one shape and type."""
    return SwiGLU.apply(gate, up) if torch.is_grad_enabled() else forward(gate, up)


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return forward(gate, up)

    @staticmethod
    def backward(ctx, grad):
        return backward(*ctx.saved_tensors, grad)


def forward(gate, up):
    gate, up = gate.contiguous(), up.contiguous()
    out, count = torch.empty_like(gate), gate.numel()
    swiglu_kernel[(-(-count // BLOCK),)](gate, up, out, count, BLOCK=BLOCK)
    return out


def backward(gate, up, grad):
    """(dgate, dup)."""
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    dgate, dup, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    swiglu_gradient_kernel[(-(-count // BLOCK),)](gate, up, grad, dgate, dup, count, BLOCK=BLOCK)
    return dgate, dup
