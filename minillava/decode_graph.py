"""Decoding one token as one CUDA graph.

A token of a 7B model is some 700 operations, and Python needs longer to start them than the GPU to run the smaller
ones. A CUDA graph records them once and starts them all with one call. In return nothing may change from token to token
but numbers in tensors: shapes are fixed (StaticKVCache), no number comes back to the CPU, and inputs and outputs lie
where they lay before."""

import torch
from torch import Tensor

from minillava.kv_cache import KVCache, StaticKVCache
from minillava.language_model import rope_tables


class DecodeStep:
    """The next token's logits, ids (B, 1) int64 -> (B, 1, V), from a cache that holds the prompt; `model` is a Llava or
    a LanguageModel.
    """

    def __init__(self, model, cache: KVCache):
        self.language_model = getattr(model, "language_model", model)
        self.cache = cache
        frequencies, weight = self.language_model.frequencies, self.language_model.embed_tokens.weight
        rope = rope_tables(frequencies, 0, cache.capacity, weight.dtype, weight.device)  # (capacity, D) each
        self.static_cache = StaticKVCache(cache, rope)
        self.input_ids = torch.zeros(cache.keys.shape[1], 1, dtype=torch.int64, device=weight.device)  # (B, 1)
        self.graph = None

    def run(self) -> Tensor:
        """The step itself: the same operations each time, on the same memory."""
        return self.language_model(self.input_ids, cache=self.static_cache)  # (B, 1, V)

    def capture(self) -> "DecodeStep":
        """Record the step; every operation must have run before, so that what is compiled or allocated at a first call
        is not part of it.
        """
        stream = torch.cuda.Stream(self.input_ids.device)
        stream.wait_stream(torch.cuda.current_stream(self.input_ids.device))
        with torch.cuda.stream(stream):
            self.run()
        torch.cuda.current_stream(self.input_ids.device).wait_stream(stream)
        self.static_cache.length.fill_(self.cache.length)  # forget what the first run wrote
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.run()
        return self

    def __call__(self, input_ids: Tensor) -> Tensor:
        self.input_ids.copy_(input_ids)
        if self.graph is None:
            self.logits = self.run()
        else:
            self.graph.replay()
        self.cache.length += 1
        return self.logits
