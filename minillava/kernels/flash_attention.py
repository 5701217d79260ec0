"""Flash attention in Triton: softmax(q k^T / sqrt(D)) v, forward and backward, without ever writing the (T, S) scores
to memory.

FlashAttention (arXiv 2205.14135), FlashAttention-2 (arXiv 2307.08691); the online softmax is Milakov and Gimelshein's
(arXiv 1805.02867). q (B, H, T, D); k, v (B, K, S, D) -> out (B, H, T, D). The queries are the last T of the S
positions; K divides H, and query head h reads key head h // (H / K) where it lies, without a copy.
`minillava.attention.eager_attention` is the specification.

Forward. One program holds a tile of queries and walks over the keys tile by tile. Of each query it keeps m, the largest
score so far, l, the sum of exp(score - m), and acc, the same sum with the values. A new tile whose largest score is m'
rescales what was summed:

    m_new = max(m, m')      l = l * exp(m - m_new) + sum exp(s - m_new)      acc = acc * exp(m - m_new) + exp(s - m_new) v

and at the end out = acc / l. It also stores LSE = m + log l, from which the backward pass computes the probabilities P
= exp(s - LSE) again.

Backward, with dO the gradient of out and delta = sum over D of out * dO for each query:

    dV = P^T dO      dP = dO V^T      dS = P * (dP - delta)      dQ = dS K / sqrt(D)      dK = dS^T Q / sqrt(D)

One kernel holds a tile of keys and walks over the queries, for dK and dV; another holds a tile of queries and walks
over the keys, for dQ. Each number is so summed by one program in one order: there are no atomic additions, and a
repeated run gives the same bits.

Exponentials are powers of two, since the hardware has exp2 and no exp: log2(e) is multiplied into the scale, and m and
LSE are in base 2.
"""

import math

import torch
import triton
import triton.language as tl

from minillava.kernels.attention_tile import (
    LN_2,
    LOG2_E,
    attend,
    dot,
    end_of_queries,
    first_keys,
    key_ranges,
    load_row,
    load_tile,
    sees,
    store_tile,
)
from minillava.kernels.tiles import tile


# ------------------------------------------------------------ forward
@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, out_ptr, lse_ptr,
    stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd, stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ob, stride_oh, stride_ot, stride_od, stride_start_b, stride_start_t,
    H, T, S, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, HAS_START: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    if CAUSAL:  # the last queries see most keys: they begin first, so that no long program is left for the end
        block = tl.num_programs(0) - 1 - block
    b, h = (row // H).to(tl.int64), (row % H).to(tl.int64)
    key_head = h // GROUP
    k_ptr += b * stride_kb + key_head * stride_kh
    v_ptr += b * stride_vb + key_head * stride_vh

    queries = block * BLOCK_T + tl.arange(0, BLOCK_T)
    position = queries + S - T
    first = first_keys(start_ptr + b * stride_start_b, queries, T, stride_start_t, HAS_START, BLOCK_T)
    q = load_tile(
        q_ptr + b * stride_qb + h * stride_qh, queries, T, stride_qt, stride_qd, D, BLOCK_D, True
    )  # (BLOCK_T, D)

    low, full, high = key_ranges(block, first, T, S, CAUSAL, HAS_START, BLOCK_T, BLOCK_S)
    m = tl.full([BLOCK_T], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    if not HAS_START:
        m, l, acc = attend(q, k_ptr, v_ptr, m, l, acc, position, first, low, full, S, stride_ks, stride_kd, stride_vs, stride_vd, scale,
                           False, CAUSAL, D, BLOCK_D, BLOCK_S)  # fmt: skip
    m, l, acc = attend(q, k_ptr, v_ptr, m, l, acc, position, first, full, high, S, stride_ks, stride_kd, stride_vs, stride_vd, scale,
                       True, CAUSAL, D, BLOCK_D, BLOCK_S)  # fmt: skip

    saw_nothing = l == 0.0  # its output is 0; its LSE is +inf, so that exp2(s - LSE) is 0 in the backward pass
    out = acc / tl.where(saw_nothing, 1.0, l)[:, None]
    lse = tl.where(saw_nothing, float("inf"), m + tl.log2(tl.where(saw_nothing, 1.0, l)))
    store_tile(out_ptr + b * stride_ob + h * stride_oh, out, queries, T, stride_ot, stride_od, D, BLOCK_D)
    tl.store(lse_ptr + row.to(tl.int64) * T + queries, lse, mask=queries < T)


# ------------------------------------------------------------ backward
@triton.jit
def query_gradient(
    q, grad, lse, delta, dq, k_ptr, v_ptr, position, first, low, high, S, stride_ks, stride_kd, stride_vs, stride_vd, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Add to dq what the keys from `low` to `high` contribute."""
    zeros = tl.zeros([q.shape[0], BLOCK_S], tl.float32)
    for begin in range(low, high, BLOCK_S):
        keys = begin + tl.arange(0, BLOCK_S)
        k = load_tile(k_ptr, keys, S, stride_ks, stride_kd, D, BLOCK_D, MASKED)  # (BLOCK_S, D)
        v = load_tile(v_ptr, keys, S, stride_vs, stride_vd, D, BLOCK_D, MASKED)  # (BLOCK_S, D)
        p = tl.exp2(dot(q, tl.trans(k), zeros) * scale - lse[:, None])  # (BLOCK_T, BLOCK_S)
        if MASKED:
            p = tl.where(sees(position[:, None], first[:, None], keys[None, :], S, CAUSAL), p, 0.0)
        ds = p * (dot(grad, tl.trans(v), zeros) - delta[:, None])  # (BLOCK_T, BLOCK_S)
        dq = dot(ds.to(k.dtype), k, dq)  # (BLOCK_T, D)
    return dq


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, out_ptr, lse_ptr, grad_ptr, delta_ptr, dq_ptr,
    stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd, stride_vb, stride_vh, stride_vs, stride_vd,
    stride_ob, stride_oh, stride_ot, stride_od, stride_gb, stride_gh, stride_gt, stride_gd, stride_start_b, stride_start_t,
    H, T, S, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, HAS_START: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of queries; delta too, which the next kernel reads. Laid out as the forward kernel; dq is as `out`."""
    block, row = tl.program_id(0), tl.program_id(1)
    if CAUSAL:
        block = tl.num_programs(0) - 1 - block
    b, h = (row // H).to(tl.int64), (row % H).to(tl.int64)
    key_head = h // GROUP
    k_ptr += b * stride_kb + key_head * stride_kh
    v_ptr += b * stride_vb + key_head * stride_vh
    lse_ptr += row.to(tl.int64) * T
    delta_ptr += row.to(tl.int64) * T

    queries = block * BLOCK_T + tl.arange(0, BLOCK_T)
    position = queries + S - T
    first = first_keys(start_ptr + b * stride_start_b, queries, T, stride_start_t, HAS_START, BLOCK_T)
    q = load_tile(
        q_ptr + b * stride_qb + h * stride_qh, queries, T, stride_qt, stride_qd, D, BLOCK_D, True
    )  # (BLOCK_T, D)
    grad = load_tile(
        grad_ptr + b * stride_gb + h * stride_gh, queries, T, stride_gt, stride_gd, D, BLOCK_D, True
    )  # (BLOCK_T, D)
    out = load_tile(
        out_ptr + b * stride_ob + h * stride_oh, queries, T, stride_ot, stride_od, D, BLOCK_D, True
    )  # (BLOCK_T, D)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)  # (BLOCK_T,)
    tl.store(delta_ptr + queries, delta, mask=queries < T)
    lse = load_row(lse_ptr, queries, T, float("inf"))

    low, full, high = key_ranges(block, first, T, S, CAUSAL, HAS_START, BLOCK_T, BLOCK_S)
    dq = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    if not HAS_START:
        dq = query_gradient(q, grad, lse, delta, dq, k_ptr, v_ptr, position, first, low, full, S, stride_ks, stride_kd, stride_vs, stride_vd,
                            scale, False, CAUSAL, D, BLOCK_D, BLOCK_S)  # fmt: skip
    dq = query_gradient(q, grad, lse, delta, dq, k_ptr, v_ptr, position, first, full, high, S, stride_ks, stride_kd, stride_vs, stride_vd,
                        scale, True, CAUSAL, D, BLOCK_D, BLOCK_S)  # fmt: skip
    dq = dq * (scale * LN_2)
    store_tile(dq_ptr + b * stride_ob + h * stride_oh, dq, queries, T, stride_ot, stride_od, D, BLOCK_D)


@triton.jit
def key_value_gradient(
    k, v, dk, dv, q_ptr, grad_ptr, lse_ptr, delta_ptr, start_ptr, keys, low, high, T, S, stride_qt, stride_qd, stride_gt, stride_gd,
    stride_start_t, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, HAS_START: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Add to dk and dv what the queries from `low` to `high` contribute.

    Scores are computed transposed, so that no tile has to be turned later.
    """
    zeros = tl.zeros([k.shape[0], BLOCK_T], tl.float32)
    for begin in range(low, high, BLOCK_T):
        queries = begin + tl.arange(0, BLOCK_T)
        q = load_tile(q_ptr, queries, T, stride_qt, stride_qd, D, BLOCK_D, True)  # (BLOCK_T, D)
        grad = load_tile(grad_ptr, queries, T, stride_gt, stride_gd, D, BLOCK_D, True)  # (BLOCK_T, D)
        lse = load_row(lse_ptr, queries, T, float("inf"))  # a query beyond the last has P = 0
        delta = load_row(delta_ptr, queries, T, 0.0)
        p = tl.exp2(dot(k, tl.trans(q), zeros) * scale - lse[None, :])  # (BLOCK_S, BLOCK_T)
        if MASKED:
            first = first_keys(start_ptr, queries, T, stride_start_t, HAS_START, BLOCK_T)
            p = tl.where(sees((queries + S - T)[None, :], first[None, :], keys[:, None], S, CAUSAL), p, 0.0)
        dv = dot(p.to(grad.dtype), grad, dv)  # (BLOCK_S, D)
        ds = p * (dot(v, tl.trans(grad), zeros) - delta[None, :])  # (BLOCK_S, BLOCK_T)
        dk = dot(ds.to(q.dtype), q, dk)  # (BLOCK_S, D)
    return dk, dv


@triton.jit
def key_value_gradient_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, lse_ptr, grad_ptr, delta_ptr, dk_ptr, dv_ptr,
    stride_qb, stride_qh, stride_qt, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd, stride_vb, stride_vh, stride_vs, stride_vd,
    stride_gb, stride_gh, stride_gt, stride_gd, stride_dkb, stride_dkh, stride_dks, stride_dkd, stride_start_b, stride_start_t,
    H, T, S, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, HAS_START: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys, over all query heads that read it; dv is as dk."""
    block, row = tl.program_id(0), tl.program_id(1)
    K = H // GROUP
    b, key_head = (row // K).to(tl.int64), (row % K).to(tl.int64)
    keys = block * BLOCK_S + tl.arange(0, BLOCK_S)
    k = load_tile(
        k_ptr + b * stride_kb + key_head * stride_kh, keys, S, stride_ks, stride_kd, D, BLOCK_D, True
    )  # (BLOCK_S, D)
    v = load_tile(
        v_ptr + b * stride_vb + key_head * stride_vh, keys, S, stride_vs, stride_vd, D, BLOCK_D, True
    )  # (BLOCK_S, D)

    # Queries before `low` see none of the keys, those from `full_low` to `high` all of them.
    low, full_low, high = 0, 0, T
    if CAUSAL:
        low = tl.maximum(0, block * BLOCK_S - (S - T)) // BLOCK_T * BLOCK_T
        full_low = tl.minimum(T, tl.cdiv(tl.maximum(0, (block + 1) * BLOCK_S - 1 - (S - T)), BLOCK_T) * BLOCK_T)
    starts = start_ptr + b * stride_start_b
    if HAS_START:  # any query may begin anywhere, so each tile needs its mask
        high = end_of_queries(starts, tl.minimum(S, (block + 1) * BLOCK_S), T, stride_start_t, 1024)
        full_low = high

    dk = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for member in range(GROUP):
        h = key_head * GROUP + member
        q_head, grad_head = q_ptr + b * stride_qb + h * stride_qh, grad_ptr + b * stride_gb + h * stride_gh
        lse_head, delta_head = lse_ptr + (b * H + h) * T, delta_ptr + (b * H + h) * T
        if CAUSAL or HAS_START:
            dk, dv = key_value_gradient(k, v, dk, dv, q_head, grad_head, lse_head, delta_head, starts, keys, low, full_low, T, S, stride_qt,
                                        stride_qd, stride_gt, stride_gd, stride_start_t, scale, True, CAUSAL, HAS_START, D, BLOCK_D,
                                        BLOCK_T)  # fmt: skip
        if not HAS_START:
            dk, dv = key_value_gradient(k, v, dk, dv, q_head, grad_head, lse_head, delta_head, starts, keys, full_low, high, T, S, stride_qt,
                                        stride_qd, stride_gt, stride_gd, stride_start_t, scale, False, CAUSAL, HAS_START, D, BLOCK_D,
                                        BLOCK_T)  # fmt: skip
    dk = dk * (scale * LN_2)
    store_tile(dk_ptr + b * stride_dkb + key_head * stride_dkh, dk, keys, S, stride_dks, stride_dkd, D, BLOCK_D)
    store_tile(dv_ptr + b * stride_dkb + key_head * stride_dkh, dv, keys, S, stride_dks, stride_dkd, D, BLOCK_D)


# ------------------------------------------------------------ launch
class FlashAttention(torch.autograd.Function):
    """The kernels as one differentiable function. Saved for the backward pass: q, k, v, out and LSE, none of size T x
    S.
    """

    @staticmethod
    def forward(ctx, q, k, v, start, causal):
        out, lse = forward(q, k, v, start, causal)
        ctx.save_for_backward(q, k, v, start, out, lse)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx, grad):
        return *backward(*ctx.saved_tensors, grad, ctx.causal), None, None


def flash_attention(q, k, v, *, causal: bool, start=None):
    """Attend: q (B, H, T, D), k and v (B, K, S, D), float32, float16 or bfloat16, any strides -> (B, H, T, D) in their
    dtype.

    start (B,) or (B, T) int64: the first visible key of each row or each query. A query without a visible key gives
    zeros. Raises ValueError for a head that is too wide: more than 256, or 128 in float32.
    """
    if start is not None and start.ndim == 1:
        start = start[:, None].expand(-1, q.shape[2])  # (B, T), of stride 0
    if not torch.is_grad_enabled():
        return forward(q, k, v, start, causal)[0]
    return FlashAttention.apply(q, k, v, start, causal)


def like_heads(x):
    """An empty tensor of the shape of x (B, H, T, D) that lies in memory as (B, T, H, D): joining the heads then copies
    nothing.
    """
    B, H, T, D = x.shape
    return x.new_empty(B, T, H, D).transpose(1, 2)  # (B, H, T, D)


def settings(name: str, q, k, start, causal: bool) -> dict:
    """The constants that a kernel is compiled for, with the tile of this card and head."""
    flags = dict(GROUP=q.shape[1] // k.shape[1], CAUSAL=causal, HAS_START=start is not None)
    return flags | tile(name, q.shape[-1], q.dtype, q.device)


def start_arguments(q, start):
    """The pointer and strides of `start`; without one, some pointer that is never read."""
    return (q, 0, 0) if start is None else (start, *start.stride())


def forward(q, k, v, start, causal):
    """(out (B, H, T, D), lse (B, H, T) float32 in base 2)."""
    (B, H, T, D), S = q.shape, k.shape[2]
    out, lse = like_heads(q), q.new_empty(B, H, T, dtype=torch.float32)
    begin, *begin_strides = start_arguments(q, start)
    constants = settings("forward", q, k, start, causal)
    forward_kernel[-(-T // constants["BLOCK_T"]), B * H](
        q,
        k,
        v,
        begin,
        out,
        lse,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        *out.stride(),
        *begin_strides,
        H,
        T,
        S,
        LOG2_E / math.sqrt(D),
        **constants,
    )
    return out, lse


def backward(q, k, v, start, out, lse, grad, causal):
    """(dq, dk, dv)."""
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    dq, dk, dv, delta = like_heads(q), like_heads(k), like_heads(k), torch.empty_like(lse)
    begin, *begin_strides = start_arguments(q, start)
    strides = (*q.stride(), *k.stride(), *v.stride())
    sizes = (H, T, S, LOG2_E / math.sqrt(D))
    constants = settings("query_gradient", q, k, start, causal)
    query_gradient_kernel[-(-T // constants["BLOCK_T"]), B * H](
        q,
        k,
        v,
        begin,
        out,
        lse,
        grad,
        delta,
        dq,
        *strides,
        *out.stride(),
        *grad.stride(),
        *begin_strides,
        *sizes,
        **constants,
    )
    constants = settings("key_value_gradient", q, k, start, causal)
    key_value_gradient_kernel[-(-S // constants["BLOCK_S"]), B * K](
        q,
        k,
        v,
        begin,
        lse,
        grad,
        delta,
        dk,
        dv,
        *strides,
        *grad.stride(),
        *dk.stride(),
        *begin_strides,
        *sizes,
        **constants,
    )
    return dq, dk, dv
