"""What both attention kernels do with a tile: load it, store it, know what it sees, and add it to the online softmax."""

import math

import triton
import triton.language as tl

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def load_tile(base, rows, num_rows, stride_row, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr):
    """A tile (rows, BLOCK_D), 0 beyond the head's width D. With EDGE also 0 beyond the last row; without, all rows must
    be there.
    """
    d = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None] * stride_row + d[None, :] * stride_d
    if EDGE:
        tile = tl.load(pointers, mask=(rows < num_rows)[:, None] & (d < D)[None, :], other=0.0)
    elif D < BLOCK_D:
        tile = tl.load(pointers, mask=(d < D)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(base, tile, rows, num_rows, stride_row, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None] * stride_row + d[None, :] * stride_d
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=(rows < num_rows)[:, None] & (d < D)[None, :])


@triton.jit
def load_row(base, rows, num_rows, other):
    """One number for each row, `other` beyond the last."""
    return tl.load(base + rows, mask=rows < num_rows, other=other)


@triton.jit
def dot(a, b, accumulator):
    """a b + accumulator on the tensor cores.

    In float32 each product is three of TF32, which together are as exact as float32.
    """
    return tl.dot(a, b, accumulator, input_precision="tf32x3" if a.dtype == tl.float32 else "tf32")


@triton.jit
def sees(position, first, keys, S, CAUSAL: tl.constexpr):
    """May the query at `position`, whose first visible key is `first`, see these keys? Shapes broadcast."""
    visible = (keys < S) & (keys >= first)
    if CAUSAL:
        visible = visible & (keys <= position)
    return visible


@triton.jit
def key_ranges(
    block, first, T, S, CAUSAL: tl.constexpr, HAS_START: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr
):
    """(low, full, high): keys before `low` and from `high` on are seen by no query of the tile, those from `low` to
    `full` by all of them. Only the tiles between `full` and `high` need a mask, and on long sequences those are few.
    """
    low, full, high = 0, S // BLOCK_S * BLOCK_S, S
    if CAUSAL:
        full = (block * BLOCK_T + S - T + 1) // BLOCK_S * BLOCK_S
        high = tl.minimum(S, (block + 1) * BLOCK_T + S - T)
    if HAS_START:  # any query may begin anywhere, so each tile needs its mask
        low = tl.min(first) // BLOCK_S * BLOCK_S
        full = low
    return low, full, high


@triton.jit
def first_keys(start_ptr, queries, T, stride_start_t, HAS_START: tl.constexpr, BLOCK_T: tl.constexpr):
    """The first visible key of each query.

    Queries beyond the last repeat it, so that they widen no range of their tile.
    """
    if HAS_START:
        first = tl.load(start_ptr + tl.minimum(queries, T - 1) * stride_start_t).to(tl.int32)
    else:
        first = tl.zeros([BLOCK_T], tl.int32)
    return first


@triton.jit
def end_of_queries(start_ptr, end, T, stride_start_t, BLOCK: tl.constexpr):
    """One more than the last query whose first visible key lies before `end`. In rows of packed samples the queries
    behind it belong to later samples.
    """
    high = 0
    for begin in range(0, T, BLOCK):
        queries = begin + tl.arange(0, BLOCK)
        first = tl.load(start_ptr + queries * stride_start_t, mask=queries < T, other=end).to(tl.int32)
        high = tl.maximum(high, tl.max(tl.where(first < end, queries + 1, 0), 0))
    return high


@triton.jit
def attend(
    q, k_ptr, v_ptr, m, l, acc, position, first, low, high, S, stride_ks, stride_kd, stride_vs, stride_vd, scale,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Take the keys from `low` to `high` into the running m, l, acc.

    Where all of them are visible, MASKED is False and no mask is computed.
    """
    for begin in range(low, high, BLOCK_S):
        keys = begin + tl.arange(0, BLOCK_S)
        # the type is another one where a cache is wider than autocast's products
        k = load_tile(k_ptr, keys, S, stride_ks, stride_kd, D, BLOCK_D, MASKED).to(q.dtype)  # (BLOCK_S, D)
        s = dot(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_S], tl.float32)) * scale  # (BLOCK_T, BLOCK_S)
        if MASKED:
            s = tl.where(sees(position[:, None], first[:, None], keys[None, :], S, CAUSAL), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))  # (BLOCK_T,)
        if MASKED:  # a query that has seen no key yet has m_new = -inf, and -inf - -inf would be NaN
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        else:
            m_safe = m_new
        p = tl.exp2(s - m_safe[:, None])  # (BLOCK_T, BLOCK_S)
        rescale = tl.exp2(m - m_safe)  # (BLOCK_T,)
        l = l * rescale + tl.sum(p, 1)
        v = load_tile(v_ptr, keys, S, stride_vs, stride_vd, D, BLOCK_D, MASKED).to(q.dtype)  # (BLOCK_S, D)
        acc = dot(p.to(v.dtype), v, acc * rescale[:, None])  # (BLOCK_T, D)
        m = m_new
    return m, l, acc
