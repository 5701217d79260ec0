"""The KV cache: keys and values of the positions that have run, so that decoding a token computes one position and not
all of them.

It is allocated once at its full length and passed in; the model never holds it. Two tensors (L, B, K, capacity, D), of
which `length` positions are filled.
"""

import torch
from torch import Tensor

from minillava.config import TextConfig


class KVCache:
    past: Tensor | None = None  # in decode_graph.py's cache `length` as a tensor, which never leaves the device

    def __init__(self, config: TextConfig, batch_size: int, capacity: int, dtype=torch.float32, device="cpu"):
        shape = (config.num_hidden_layers, batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, K, capacity, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, K, capacity, D)
        self.length = 0
        self.start: Tensor | None = None  # (B,): the first token of each row, in a batch padded on the left
        self.recorded: tuple | None = None  # the step that decode_graph.py has recorded with these keys and values

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
        if not self.length:
            self.start = None
