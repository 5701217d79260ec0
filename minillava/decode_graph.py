"""Decoding one token as one CUDA graph.

A token of a 7B model is some 430 kernels, 1,300 without our own, and Python needs longer to start them than the GPU to
run the smaller ones. A CUDA graph records them once and starts them all with one call. In return nothing may change from token to token
but numbers in tensors: shapes are fixed (StaticKVCache), no number comes back to the CPU, and inputs and outputs lie
where they lay before.
"""

import weakref

import torch
from torch import Tensor

from minillava.distributed import world_size
from minillava.kv_cache import KVCache
from minillava.language_model import rope_tables


class StaticKVCache:
    """A KVCache for a step whose shapes never change: one new position a row, and the number of filled ones, `past`
    (1,), a tensor on the device. It shares the other's keys and values, which hold the prompt already.
    """

    def __init__(self, cache: KVCache):
        self.keys, self.values = cache.keys, cache.values
        self.past = torch.full((1,), cache.length, device=cache.keys.device)  # (1,)
        for tensor in (self.keys, self.values):
            # new memory may hold NaN, which a masked score plus NaN and a weight of 0 times NaN would be, too
            tensor[:, :, :, cache.length :] = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, K, 1, D) at `past`; return the whole cache, (B, K, capacity, D), filled or not: attention
        looks at `past`.
        """
        keys, values = self.keys[layer], self.values[layer]  # (B, K, capacity, D)
        keys.index_copy_(2, self.past, k.to(keys.dtype))
        values.index_copy_(2, self.past, v.to(values.dtype))
        return keys, values

    def places(self, layer: int, T: int) -> tuple[Tensor, Tensor]:
        """What `append` returns, for a kernel that writes at `past` itself."""
        return self.keys[layer], self.values[layer]


class DecodeStep:
    """The next token's logits, ids (B, 1) int64 -> (B, 1, V), from a cache that holds the prompt; `model` is a Llava or
    a LanguageModel.
    """

    def __init__(self, model, cache: KVCache):
        self.language_model = getattr(model, "language_model", model)
        self.cache = weakref.proxy(cache)  # it keeps this step, and what holds each other is freed late
        self.start, self.static_cache = cache.start, StaticKVCache(cache)
        weight = self.language_model.embed_tokens.weight
        self.rope = rope_tables(self.language_model.frequencies, 0, cache.capacity, weight.dtype, weight.device)
        self.input_ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=weight.device)  # (B, 1)
        self.graph = None

    def run(self) -> Tensor:
        """The step itself: the same operations each time, on the same memory."""
        model, cache = self.language_model, self.static_cache
        cos, sin = (table[cache.past] for table in self.rope)  # (1, D) each
        hidden = model.run_layers(model.embed_tokens(self.input_ids), cos, sin, self.start, cache)
        return model.logits(hidden)  # (B, 1, V)

    def capture(self) -> "DecodeStep":
        """Record the step, under inference_mode, where autocast keeps no copies of weights, which may end before the
        graph. Every operation must have run before, so that what is compiled or allocated at a first call is not part
        of it.
        """
        device = self.input_ids.device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self.run()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.run()
        return self

    def __call__(self, input_ids: Tensor) -> Tensor:
        self.input_ids.copy_(input_ids)
        self.static_cache.past.fill_(self.cache.length)
        if self.graph is None:
            self.logits = self.run()
        else:
            self.graph.replay()
        self.cache.length += 1
        return self.logits


def recorded_step(model, cache: KVCache) -> DecodeStep:
    """The step of this model on this cache, recorded at its first use: the answers of a conversation share it."""
    recorded_model, start, step = cache.recorded or (None, None, None)
    if recorded_model is not model or start is not cache.start:
        step = DecodeStep(model, cache).capture()
        cache.recorded = (model, cache.start, step)
    return step


def can_be_recorded(cache: KVCache) -> bool:
    """On CUDA, and in one process: a graph cannot gather what several processes hold."""
    return cache.keys.is_cuda and world_size() == 1
