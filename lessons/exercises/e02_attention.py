"""Attention: every position asks a question of the others and gets a weighted mean of their values.

    scores = q k^T / sqrt(D)          (B, H, T, S), one score for each query and key
    weights = softmax(scores)         over the keys S, those that a query may not see left out
    output = weights v                (B, H, T, D)

Shapes: q (B, H, T, D); k, v (B, K, S, D) -> (B, H, T, D). H is a multiple of K: with H = 4 and K = 2 the query heads 0
and 1 share key/value head 0, and 2 and 3 share head 1. `visible(T, S, causal, start, device)` gives a mask, True where
a query may see a key, or None where all may: the queries are the last T of the S positions. A query that may see no key
gives zeros.

    >>> q, k, v = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]), torch.tensor([[[[10.0, 0.0], [0.0, 10.0]]]])
    >>> eager_attention(q, k, v, causal=False)      # scores 0.7071 and 0, weights 0.6698 and 0.3302
    tensor([[[[6.6976, 3.3024]]]])

About 7 lines. Check it: python -m lessons.check attention
"""

import torch  # noqa: F401
from torch import Tensor

from minillava.attention import visible  # noqa: F401  (you will need it)

REPLACES = "minillava.attention.eager_attention"


def eager_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, start: Tensor | None = None) -> Tensor:
    raise NotImplementedError("eager_attention has to compute softmax(q k^T / sqrt(D)) v")
