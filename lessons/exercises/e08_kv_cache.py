"""The KV cache: what was computed for a word once is never computed again.

self.keys and self.values are two tensors (L, B, K, capacity, D), of which self.length positions are filled. append
writes one layer's k and v of the T new positions after them, and returns the keys and values of all S = length + T
positions. Raise ValueError when S is more than self.capacity. Leave self.length alone: the model sets it once, after
its last layer.

Shapes: layer an int; k, v (B, K, T, D) -> keys, values (B, K, S, D). This is a method of KVCache, so it takes `self`.

    >>> cache = KVCache(TextConfig(hidden_size=2, num_hidden_layers=1, num_attention_heads=1), 1, 8)
    >>> append(cache, 0, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))[0].shape, cache.length
    (torch.Size([1, 1, 3, 2]), 0)

About 5 lines. Check it: python -m lessons.check kv_cache
"""

import torch  # noqa: F401
from torch import Tensor

from minillava.config import TextConfig  # noqa: F401
from minillava.kv_cache import KVCache  # noqa: F401

REPLACES = "minillava.kv_cache.KVCache.append"


def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("append has to write k and v after what is there, and return all of it")
