"""Attention: softmax(q k^T / sqrt(D)) v. One function, several implementations, one place that chooses.

Attention Is All You Need (arXiv 1706.03762), section 3.2.1, with grouped queries (arXiv 2305.13245): H query heads
share K key/value heads. Shapes: q (B, H, T, D); k, v (B, K, S, D) -> (B, H, T, D). The queries are the LAST T of the S
positions, so a prompt (T = S), one token decoded against a cache (T = 1) and a question after a cached prefix (1 < T <
S) are all the same call.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    implementation: str = "sdpa",
    start: Tensor | None = None,
    past: Tensor | None = None,
) -> Tensor:
    """Attend. `start` int64: the first position that may be seen, (B,) by each row of a batch padded on the left, or
    (B, T) by each query, where several samples are packed into a row. A query without a visible key gives zeros. `past`
    (1,) int64: k and v are a whole cache, of which so many positions were filled before the queries' own; it is a
    tensor, so that its number may stay on the GPU.

    Raises ValueError for an unknown implementation and for head counts of which one does not divide the other.
    """
    if q.shape[1] % k.shape[1]:
        heads = f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads"
        raise ValueError(f"{heads}: one must divide the other")
    known = implementations()
    if implementation not in known:
        raise ValueError(f"attention {implementation!r} is not one of {', '.join(known)}")
    options = {} if past is None else {"past": past}  # an exercise's function does not know it, and never meets it
    return known[implementation](q, k, v, causal=causal, start=start, **options)


def implementations() -> dict:
    """The functions by their names.

    The table is made at each call, so that a function that took the place of one of ours is in it.
    """
    return {"eager": eager_attention, "sdpa": sdpa_attention, "triton": triton_attention}


def visible(T: int, S: int, causal: bool, start: Tensor | None, device, past: Tensor | None = None) -> Tensor | None:
    """Which keys each query may see: True = visible, (T, S) or (B, 1, T, S); None when it may see all."""
    mask = None
    if past is not None:
        mask = torch.arange(S, device=device) <= past + torch.arange(T, device=device)[:, None]  # (T, S)
    elif causal and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
    if start is not None:
        real = torch.arange(S, device=device) >= start.view(len(start), 1, -1, 1)  # (B, 1, 1 or T, S)
        real = real.expand(-1, -1, T, -1)  # (B, 1, T, S)
        mask = real if mask is None else real & mask
    return mask


def eager_attention(q, k, v, *, causal, start=None, past=None):
    """The formula, line by line: the other implementations must equal it."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)  # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    mask = visible(q.shape[2], k.shape[2], causal, start, q.device, past)
    if mask is None:
        return scores.softmax(-1) @ v
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    if start is not None:  # only left padding can leave a query without a visible key
        weights = weights.masked_fill(~mask, 0)
    return weights @ v


def sdpa_attention(q, k, v, *, causal, start=None, past=None):
    """PyTorch's fused kernels.

    Their `is_causal` aligns queries and keys at the first position, so it serves T = S alone; else the mask is given.
    """
    T, S = q.shape[2], k.shape[2]
    if causal and T == S and start is not None and start.ndim == 2 and (edges := sample_edges(start)):
        return sdpa_by_samples(q, k, v, edges)
    whole_prompt = causal and T == S and start is None
    mask = None if whole_prompt else visible(T, S, causal, start, q.device, past)
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=whole_prompt and T > 1, enable_gqa=q.shape[1] != k.shape[1]
    )


def sample_edges(start: Tensor) -> list[list[int]] | None:
    """Where the samples packed into each row begin, and where the last one ends; None if `start` (B, T) means something
    else than such samples. The device is asked once: all layers get the same tensor, which keeps the answer.
    """
    if not hasattr(start, "edges"):
        rows = [row.unique_consecutive(return_counts=True) for row in start]
        edges = [[0, *lengths.cumsum(0).tolist()] for _, lengths in rows]
        samples = all(begins.tolist() == ends[:-1] for (begins, _), ends in zip(rows, edges, strict=True))
        start.edges = edges if samples else None
    return start.edges


def sdpa_by_samples(q, k, v, edges):
    """Rows of packed samples, each sample by itself, so that no score between two samples is computed: about three
    times as fast as with a mask.
    """
    rows = []
    for row, row_edges in enumerate(edges):
        samples = [[x[row : row + 1, :, begin:end] for x in (q, k, v)] for begin, end in pairwise(row_edges)]
        rows.append(torch.cat([sdpa_attention(*sample, causal=True) for sample in samples], 2))  # (1, H, T, D)
    return torch.cat(rows)  # (B, H, T, D)


def triton_attention(q, k, v, *, causal, start=None, past=None):
    """Our own kernels: flash decoding for one query a head, flash attention for more, and where gradients are asked
    for.
    """
    from minillava.kernels.flash_attention import flash_attention  # Triton comes with PyTorch for CUDA alone
    from minillava.kernels.flash_decoding import flash_decoding

    if torch.is_autocast_enabled(q.device.type):  # which knows PyTorch's attention, but not ours
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.shape[2] == 1 and not learns and (start is None or start.ndim == 1):
        return flash_decoding(q, k, v, start=start, past=past)
    return flash_attention(q, k, v, causal=causal, start=start)
