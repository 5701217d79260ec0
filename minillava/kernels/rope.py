"""RoPE in Triton, together with the write into the cache.

RoFormer (arXiv 2104.09864). q (B, T, H, D), k and v (B, T, K, D) as the projections give them, cos and sin (T, D).
`minillava.language_model.apply_rope` and `KVCache.append` are the specification: some twelve operations, each through
memory. Here one program takes one token: it turns all its heads, and writes k and v to their places in the cache at
once. With the halves of a head exchanged and the first one's sign changed (the "other" numbers),

    y = x * cos + other(x) * sin        and backward        dx = dy * cos - other(dy * sin)
"""

import torch
import triton
import triton.language as tl

from minillava.kernels.tiles import next_power_of_2


@triton.jit
def turned(
    x_ptr, rows, num_rows, stride_row, cos_ptr, sin_ptr, BACKWARD: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows of width D, all turned by the angles of one position: (rows, BLOCK_D) float32."""
    d = tl.arange(0, BLOCK_D)
    other = tl.where(d < D // 2, d + D // 2, d - D // 2)
    inside = (rows < num_rows)[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + rows[:, None] * stride_row + d[None, :], mask=inside, other=0.0).to(tl.float32)
    x_other = tl.load(x_ptr + rows[:, None] * stride_row + other[None, :], mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    if BACKWARD:
        sin = tl.load(sin_ptr + other, mask=d < D, other=0.0).to(tl.float32)
        sin = tl.where(d < D // 2, sin, -sin)
    else:
        sin = tl.load(sin_ptr + d, mask=d < D, other=0.0).to(tl.float32)
        sin = tl.where(d < D // 2, -sin, sin)
    return x * cos[None, :] + x_other * sin[None, :]


@triton.jit
def rope_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, v_out_ptr,
    stride_kb, stride_kh, stride_kt, T, H, K,
    HAS_CACHE: tl.constexpr, BACKWARD: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One token: its heads lie one after the other in q, k and v; in k_out and v_out by the strides of k_out."""
    row = tl.program_id(0).to(tl.int64)
    b, t = row // T, row % T
    cos_ptr += t * D
    sin_ptr += t * D
    d = tl.arange(0, BLOCK_D)

    heads = tl.arange(0, BLOCK_H)
    q = turned(q_ptr + row * H * D, heads, H, D, cos_ptr, sin_ptr, BACKWARD, D, BLOCK_D)  # (BLOCK_H, BLOCK_D)
    inside = (heads < H)[:, None] & (d < D)[None, :]
    q_out = q_out_ptr + row * H * D + heads[:, None] * D + d[None, :]
    tl.store(q_out, q.to(q_out_ptr.dtype.element_ty), mask=inside)

    heads = tl.arange(0, BLOCK_K)
    k = turned(k_ptr + row * K * D, heads, K, D, cos_ptr, sin_ptr, BACKWARD, D, BLOCK_D)  # (BLOCK_K, BLOCK_D)
    inside = (heads < K)[:, None] & (d < D)[None, :]
    place = b * stride_kb + t * stride_kt + heads[:, None] * stride_kh + d[None, :]
    tl.store(k_out_ptr + place, k.to(k_out_ptr.dtype.element_ty), mask=inside)
    if HAS_CACHE:
        v = tl.load(v_ptr + row * K * D + heads[:, None] * D + d[None, :], mask=inside, other=0.0)
        tl.store(v_out_ptr + place, v.to(v_out_ptr.dtype.element_ty), mask=inside)


# ------------------------------------------------------------ launch
def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q (B, T, H, D) and k (B, T, K, D), turned by cos and sin (T, D): in their shapes and types."""
    return Rope.apply(q, k, cos, sin) if torch.is_grad_enabled() else turn(q, k, cos, sin)


def rope_into_cache(q, k, v, cos, sin, keys, values) -> torch.Tensor:
    """q turned. k is turned into `keys`, and v copied into `values`: (B, K, T, D), the cache's positions of these tokens,
    of the same strides and with the numbers of a head beside each other. Without gradients.
    """
    return launch(q, k, v, cos, sin, keys.transpose(1, 2), values.transpose(1, 2))[0]


class Rope(torch.autograd.Function):
    """Backward is the same kernel, which turns back."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turn(q, k, cos, sin)

    @staticmethod
    def backward(ctx, dq, dk):
        return *turn(dq, dk, *ctx.saved_tensors, backward=True), None, None


def turn(q, k, cos, sin, backward=False):
    k_out = torch.empty_like(k, memory_format=torch.contiguous_format)
    return launch(q, k, None, cos, sin, k_out, backward=backward)


def launch(q, k, v, cos, sin, k_out, v_out=None, backward=False):
    """(q turned, k_out); all but cos and sin are (B, T, heads, D)."""
    (B, T, H, D), K = q.shape, k.shape[2]
    q, k, v = (x if x is None else x.contiguous() for x in (q, k, v))
    q_out, BLOCK_D = torch.empty_like(q), next_power_of_2(D)
    rope_kernel[(B * T,)](
        q, k, k if v is None else v, cos.contiguous(), sin.contiguous(), q_out, k_out, k_out if v is None else v_out,
        k_out.stride(0), k_out.stride(2), k_out.stride(1), T, H, K,
        HAS_CACHE=v is not None, BACKWARD=backward, D=D, BLOCK_D=BLOCK_D,
        BLOCK_H=next_power_of_2(H), BLOCK_K=next_power_of_2(K),
        num_warps=max(1, min(8, next_power_of_2(H) * BLOCK_D // 512)),
    )  # fmt: skip
    return q_out, k_out
