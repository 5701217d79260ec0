"""The KV cache: keys and values of the positions that have run, so that decoding a token computes one position and not
all of them.

It is allocated once at its full length and passed in; the model never holds it. Two tensors (L, B, K, capacity, D), of
which `length` positions are filled."""

import torch
from torch import Tensor

from minillava.config import TextConfig


class KVCache:
    # the positions before the new ones, where the device alone knows how many: see StaticKVCache
    past: Tensor | None = None

    def __init__(self, config: TextConfig, batch_size: int, capacity: int, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, K, capacity, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, K, capacity, D)
        self.length = 0
        # (B,): the first real position of each row, when a batch is padded on the left
        self.start: Tensor | None = None

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's k and v of the new positions (B, K, T, D); return those of all S positions, as views.
        ValueError when it is full.

        `length` is not changed here, but once, by the model, after its last layer.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"the KV cache holds {self.capacity} positions, and {end} are needed")
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]  # (B, K, S, D)

    def places(self, layer: int, T: int) -> tuple[Tensor, Tensor]:
        """The views that `append` returns, whose last T positions a kernel will fill itself; ValueError as there."""
        end = self.length + T
        if end > self.capacity:
            raise ValueError(f"the KV cache holds {self.capacity} positions, and {end} are needed")
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]  # (B, K, S, D)

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self.length = min(self.length, length)


class StaticKVCache:
    """A KVCache seen by a step whose shapes never change, as a CUDA graph needs them: one new position a row, and
    `length` a tensor on the device.

    It shares the other's keys and values, so the prompt that filled them need not run again. rope: cos and sin of every
    position, (capacity, D) each."""

    def __init__(self, cache: KVCache, rope: tuple[Tensor, Tensor]):
        self.keys, self.values, self.start, self.rope = cache.keys, cache.values, cache.start, rope
        self.length = torch.full((1,), cache.length, device=cache.keys.device)  # (1,)
        for tensor in (self.keys, self.values):
            # new memory may hold NaN, which a masked score plus NaN and a weight of 0 times NaN would be, too
            tensor[:, :, :, cache.length :] = 0

    @property
    def past(self) -> Tensor:
        return self.length

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, K, 1, D) at `length`; return the whole cache, (B, K, capacity, D), filled or not: attention
        looks at `past`.
        """
        self.keys[layer].index_copy_(2, self.length, k)
        self.values[layer].index_copy_(2, self.length, v)
        return self.keys[layer], self.values[layer]

    def places(self, layer: int, T: int) -> tuple[Tensor, Tensor]:
        """What `append` returns, for a kernel that writes at `length` itself."""
        return self.keys[layer], self.values[layer]
