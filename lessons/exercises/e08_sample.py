"""Sampling: which word comes next.

    temperature 0:  the likeliest id, nothing is drawn
    otherwise:      p = softmax(logits / temperature); top_k > 0 keeps the k likeliest ids only; top_p < 1 then keeps the fewest likeliest ids whose
                    probabilities (of what top_k left) sum to at least top_p; one id is drawn from what is left, with `generator`

The likeliest id always stays. Ids that tie for place k all stay. Compute in float64, and subtract the largest logit
before you divide, or a tiny temperature overflows. Draw with torch.multinomial(p, 1, generator=generator).

Shapes: logits (B, V) -> ids (B,) int64; each row is a choice of its own.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2]]).log()
    >>> sample(logits), sample(logits, temperature=1.0, top_p=0.7)
    (tensor([1]), tensor([1]))

About 12 lines; -inf is the logit of what cannot be drawn. Check it: python -m lessons.check sample
"""

import torch
from torch import Tensor

REPLACES = "minillava.generation.sample"


def sample(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    raise NotImplementedError("sample has to choose the next id from the logits")
