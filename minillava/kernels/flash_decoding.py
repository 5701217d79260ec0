"""Flash decoding in Triton: attention of one new token against the cache.

Flash-Decoding for long-context inference (Dao, Haziza, Massa, Sizov, 2023). q (B, H, 1, D); k, v (B, K, S, D) -> out
(B, H, 1, D).

One token brings little to compute and much to read: all keys and values. A program for each (row, head) would leave
most of the card idle, so the keys are split over several programs. Each attends to its own part and writes its output
and its LSE; a second kernel weighs the parts. With parts i,

    out = sum_i 2^(LSE_i - M) out_i / sum_i 2^(LSE_i - M)        M = max_i LSE_i

The query heads that share a key head are the rows of one tile, so that keys and values are read once for all of them.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from minillava.kernels.flash_attention import LOG2_E, attend, load_tile
from minillava.kernels.tiles import tile


@triton.jit
def split_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, past_ptr, part_ptr, lse_ptr,
    stride_qb, stride_qh, stride_qd, stride_kb, stride_kh, stride_ks, stride_kd, stride_vb, stride_vh, stride_vs, stride_vd,
    H, S, splits, scale,
    GROUP: tl.constexpr, HAS_START: tl.constexpr, HAS_PAST: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One part of the keys of one key head, for the GROUP query heads that read it.

    part (B, H, splits, D), lse (B, H, splits).
    """
    split, row = tl.program_id(0), tl.program_id(1)
    K = H // GROUP
    b, key_head = (row // K).to(tl.int64), (row % K).to(tl.int64)
    # how much of the cache is filled is known to the card alone, so that a captured CUDA graph stays right
    if HAS_PAST:
        S = tl.load(past_ptr).to(tl.int32) + 1
    members = tl.arange(0, BLOCK_G)
    heads = key_head * GROUP + members
    q = load_tile(
        q_ptr + b * stride_qb + key_head * GROUP * stride_qh, members, GROUP, stride_qh, stride_qd, D, BLOCK_D, True
    )  # (BLOCK_G, D)

    keys_each = tl.cdiv(tl.cdiv(S, splits), BLOCK_S) * BLOCK_S
    low = split * keys_each
    high = tl.minimum(S, low + keys_each)
    first = tl.zeros([BLOCK_G], tl.int32)
    if HAS_START:
        begin = tl.load(start_ptr + b).to(tl.int32)
        first += begin
        low = tl.maximum(low, begin // BLOCK_S * BLOCK_S)
    m = tl.full([BLOCK_G], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    k_ptr += b * stride_kb + key_head * stride_kh
    v_ptr += b * stride_vb + key_head * stride_vh
    m, l, acc = attend(q, k_ptr, v_ptr, m, l, acc, first, first, low, high, S, stride_ks, stride_kd, stride_vs, stride_vd, scale,
                       True, False, D, BLOCK_D, BLOCK_S)  # fmt: skip

    d = tl.arange(0, BLOCK_D)
    parts = (b * H + heads) * splits + split
    real = members < GROUP
    tl.store(
        part_ptr + parts[:, None] * D + d[None, :],
        acc / tl.where(l == 0.0, 1.0, l)[:, None],
        mask=real[:, None] & (d < D)[None, :],
    )
    tl.store(lse_ptr + parts, tl.where(l == 0.0, float("-inf"), m + tl.log2(tl.where(l == 0.0, 1.0, l))), mask=real)


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
def flash_decoding(q, k, v, *, start=None, past=None):
    """Attend with one query a head: q (B, H, 1, D), k and v (B, K, S, D), any strides -> (B, H, 1, D).

    start (B,) int64: the first real position of each row. past (1,) int64: how many of the S positions come before the
    query; without it, S - 1. Both are read on the card, and nothing is asked of it, so the call may be captured in a
    CUDA graph. Raises ValueError for a head that is too wide."""
    (B, H, _, D), (K, S) = q.shape, k.shape[1:3]
    GROUP, constants = H // K, tile("decode", D, q.dtype, q.device)
    splits = split_count(B * K, S, constants["BLOCK_S"], multiprocessors(q.device))
    part, lse = q.new_empty(B, H, splits, D, dtype=torch.float32), q.new_empty(B, H, splits, dtype=torch.float32)
    split_kernel[splits, B * K](
        q, k, v, q if start is None else start, q if past is None else past, part, lse,
        q.stride(0), q.stride(1), q.stride(3), *k.stride(), *v.stride(), H, S, splits, LOG2_E / math.sqrt(D),
        GROUP=GROUP, HAS_START=start is not None, HAS_PAST=past is not None,
        BLOCK_G=max(16, triton.next_power_of_2(GROUP)), **constants,  # the tensor cores multiply no fewer than 16 rows
    )  # fmt: skip
    out = q.new_empty(B, H, 1, D)
    combine_kernel[(B * H,)](
        part, lse, out, splits, D=D, BLOCK_D=constants["BLOCK_D"], BLOCK_SPLITS=triton.next_power_of_2(splits)
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
