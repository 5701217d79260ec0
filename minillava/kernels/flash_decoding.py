"""Flash decoding in Triton: attention of one new token against the cache.

Flash-Decoding for long-context inference (Dao, Haziza, Massa, Sizov, 2023). q (B, H, 1, D); k, v (B, K, S, D) -> out
(B, H, 1, D).

One token brings little to compute and much to read: all keys and values. A program for each (row, head) would leave
most of the card idle, so the keys are split over several programs. Each attends to its own part and writes its output
and its LSE; a second kernel weighs the parts. With parts i,

    out = sum_i 2^(LSE_i - M) out_i / sum_i 2^(LSE_i - M)        M = max_i LSE_i

Where one part is enough, it is the result, and nothing is left to weigh. The query heads that share a key head are the
rows of one tile, so that keys and values are read once for all of them.

A token that has just been projected also has to be turned (RoPE) and written into the cache. The same kernel does it
on the way: every program turns the query, and the program of the first part turns the token's key, writes key and value
into the cache, and begins its sums with them.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from minillava.kernels.attention_tile import LOG2_E, attend, load_tile
from minillava.kernels.rope import turned
from minillava.kernels.tiles import next_power_of_2, tile


@triton.jit
def split_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, past_ptr, new_k_ptr, new_v_ptr, cos_ptr, sin_ptr, part_ptr, lse_ptr,
    stride_qb, stride_qh, stride_kb, stride_kh, stride_ks, stride_kd, stride_vb, stride_vh, stride_vs, stride_vd,
    H, past, splits, scale,
    GROUP: tl.constexpr, HAS_START: tl.constexpr, HAS_PAST: tl.constexpr, HAS_NEW: tl.constexpr, ONE_PART: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one key head, for the GROUP query heads that read it.

    part (B, H, splits, D), lse (B, H, splits); with ONE_PART part is the result, and lse is not written.
    """
    split, row = tl.program_id(0), tl.program_id(1)
    K = H // GROUP
    b, key_head = (row // K).to(tl.int64), (row % K).to(tl.int64)
    # how much of the cache is filled is known to the card alone, so that a captured CUDA graph stays right
    if HAS_PAST:
        past = tl.load(past_ptr).to(tl.int32)
    members, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    heads = key_head * GROUP + members
    q_ptr += b * stride_qb + key_head * GROUP * stride_qh
    k_ptr += b * stride_kb + key_head * stride_kh
    v_ptr += b * stride_vb + key_head * stride_vh
    begin = tl.load(start_ptr + b).to(tl.int32) if HAS_START else 0

    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    if HAS_NEW:
        S = past  # what is in the cache already
        q = turned(q_ptr, members, GROUP, stride_qh, cos_ptr, sin_ptr, False, D, BLOCK_D)  # (BLOCK_G, D)
        q = q.to(q_ptr.dtype.element_ty)
        if split == 0:
            one = tl.arange(0, 1)
            new_k = turned(new_k_ptr + row * D, one, 1, D, cos_ptr, sin_ptr, False, D, BLOCK_D)  # (1, D)
            new_k = new_k.to(k_ptr.dtype.element_ty)
            new_v = tl.load(new_v_ptr + row * D + d, mask=d < D, other=0.0)[None, :]  # (1, D)
            tl.store(k_ptr + past.to(tl.int64) * stride_ks + d[None, :] * stride_kd, new_k, mask=(d < D)[None, :])
            tl.store(v_ptr + past.to(tl.int64) * stride_vs + d[None, :] * stride_vd, new_v, mask=(d < D)[None, :])
            if begin <= past:
                m = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), 1) * scale
                l += 1.0
                acc += new_v.to(tl.float32)
    else:
        S = past + 1
        q = load_tile(q_ptr, members, GROUP, stride_qh, 1, D, BLOCK_D, True)  # (BLOCK_G, D)

    keys_each = tl.cdiv(tl.cdiv(S, splits), BLOCK_S) * BLOCK_S
    low = tl.maximum(split * keys_each, begin // BLOCK_S * BLOCK_S)
    high = tl.minimum(S, (split + 1) * keys_each)
    first = tl.zeros([BLOCK_G], tl.int32) + begin
    m, l, acc = attend(q, k_ptr, v_ptr, m, l, acc, first, first, low, high, S, stride_ks, stride_kd, stride_vs, stride_vd, scale,
                       True, False, D, BLOCK_D, BLOCK_S)  # fmt: skip

    parts = (b * H + heads) * splits + split
    real = members < GROUP
    tl.store(
        part_ptr + parts[:, None] * D + d[None, :],
        (acc / tl.where(l == 0.0, 1.0, l)[:, None]).to(part_ptr.dtype.element_ty),
        mask=real[:, None] & (d < D)[None, :],
    )
    if not ONE_PART:
        lse = tl.where(l == 0.0, float("-inf"), m + tl.log2(tl.where(l == 0.0, 1.0, l)))
        tl.store(lse_ptr + parts, lse, mask=real)


@triton.jit
def combine_kernel(
    part_ptr, lse_ptr, out_ptr, splits, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SPLITS: tl.constexpr
):
    """Weigh the parts of one query head. out (B, H, D)."""
    head = tl.program_id(0).to(tl.int64)
    i, d = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_D)
    lse = tl.load(lse_ptr + head * splits + i, mask=i < splits, other=float("-inf"))  # (splits,)
    largest = tl.max(lse, 0)
    weight = tl.exp2(lse - tl.where(largest == float("-inf"), 0.0, largest))  # (splits,)
    inside = (i < splits)[:, None] & (d < D)[None, :]
    part = tl.load(part_ptr + (head * splits + i)[:, None] * D + d[None, :], mask=inside, other=0.0)  # (splits, D)
    total = tl.sum(weight, 0)
    out = tl.sum(weight[:, None] * part, 0) / tl.where(total == 0.0, 1.0, total)  # (D,)
    tl.store(out_ptr + head * D + d, out.to(out_ptr.dtype.element_ty), mask=d < D)


# ------------------------------------------------------------ launch
def flash_decoding(q, k, v, *, start=None, past=None, new=None):
    """Attend with one query a head: q (B, H, 1, D), k and v (B, K, S, D), any strides -> (B, H, 1, D).

    start (B,) int64: the first real position of each row. past (1,) int64: how many of the S positions come before the
    query; without it, S - 1. Both are read on the card, and nothing is asked of it, so the call may be captured in a
    CUDA graph. new: (k, v, cos, sin) of the query's own token, k and v (B, K, 1, D), cos and sin (1, D). Then q and its
    k have not been turned yet, and the token's place in k and v, behind the `past` others, is empty and filled here;
    without it the place is filled already. Raises ValueError for a head that is too wide.
    """
    (B, H, _, D), (K, S) = q.shape, k.shape[1:3]
    if q.stride(3) != 1:
        q = q.contiguous()
    new_k, new_v, cos, sin = (q, q, q, q) if new is None else (x.contiguous() for x in new)
    constants = tile("decode", D, q.dtype, q.device)
    splits = split_count(B * K, S, constants["BLOCK_S"], multiprocessors(q.device))
    out = q.new_empty(B, H, 1, D)
    part, lse = out, out
    if splits > 1:
        part = q.new_empty(B, H, splits, D, dtype=torch.float32)
        lse = q.new_empty(B, H, splits, dtype=torch.float32)
    split_kernel[splits, B * K](
        q, k, v, q if start is None else start, q if past is None else past, new_k, new_v, cos, sin, part, lse,
        q.stride(0), q.stride(1), *k.stride(), *v.stride(), H, S - 1, splits, LOG2_E / math.sqrt(D),
        GROUP=H // K, HAS_START=start is not None, HAS_PAST=past is not None, HAS_NEW=new is not None,
        ONE_PART=splits == 1,
        BLOCK_G=max(16, next_power_of_2(H // K)), **constants,  # the tensor cores multiply no fewer than 16 rows
    )  # fmt: skip
    if splits > 1:
        combine_kernel[(B * H,)](
            part, lse, out, splits, D=D, BLOCK_D=constants["BLOCK_D"], BLOCK_SPLITS=next_power_of_2(splits)
        )
    return out


def split_count(rows: int, S: int, BLOCK_S: int, multiprocessors: int) -> int:
    """Enough programs to give each multiprocessor two, but at least two tiles of keys for each program, and at most 64
    parts to combine.
    """
    return max(1, min(-(-2 * multiprocessors // rows), S // (2 * BLOCK_S), 64))


@functools.lru_cache
def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
