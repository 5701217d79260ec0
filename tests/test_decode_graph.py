"""Decoding by a step of fixed shapes: the same numbers as the ordinary loop, and nothing in it that a CUDA graph could
not record.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillava.attention import attention
from minillava.config import TextConfig
from minillava.decode_graph import DecodeStep
from minillava.generation import collate_prompts, new_cache
from minillava.language_model import LanguageModel
from tests.conftest import prompt, relative_error

CONFIG = TextConfig(
    vocab_size=61,
    hidden_size=36,
    intermediate_size=53,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)


class Operations(TorchDispatchMode):
    """The names of the operations that run inside, and the devices of all their tensors."""

    def __init__(self):
        super().__init__()
        self.names, self.devices = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(str(function))
        self.devices |= {
            leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)
        }
        return result


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_steps_of_fixed_shape_equal_the_ordinary_ones(pair, attention, monkeypatch):
    """A left-padded batch with pictures, five tokens."""
    _, model = pair
    monkeypatch.setattr(model.language_model, "attention", attention)
    batch = collate_prompts([prompt(range(3, 3 + length), seed=length) for length in (9, 5)])
    ids = torch.arange(10, 20).view(5, 2, 1)
    with torch.inference_mode():
        caches = [new_cache(model, 2, 20) for _ in range(2)]
        for cache in caches:
            cache.keys.fill_(torch.nan)  # as new memory may be
            cache.values.fill_(torch.nan)
            model(**batch, cache=cache)
        step = DecodeStep(model, caches[1])
        for column in ids:
            assert relative_error(step(column), model(column, cache=caches[0])) < 2e-6
    assert caches[0].length == caches[1].length == 14 + 5
    assert relative_error(caches[1].keys[..., :19, :], caches[0].keys[..., :19, :]) < 2e-6


def test_many_queries_after_a_past_that_is_a_tensor():
    q, cache = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 11, 8)
    past = torch.tensor([5])
    for implementation in ("eager", "sdpa"):
        out = attention(q, cache, cache, causal=True, implementation=implementation, past=past)
        expected = attention(q, cache[:, :, :8], cache[:, :, :8], causal=True, implementation="eager")
        assert relative_error(out, expected) < 1e-6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_graph_could_record_the_step(attention):
    """On the meta device, where no tensor has numbers: asking for one would raise, and a tensor left on the CPU would
    be seen.
    """
    with torch.device("meta"):
        model = LanguageModel(CONFIG, attention)
    cache = new_cache(model, 1, 32)
    cache.length = 7
    with torch.inference_mode():
        step = DecodeStep(model, cache)
        with Operations() as first:
            step.run()
        with Operations() as second:
            step.run()
    assert first.devices == {"meta"}
    assert first.names == second.names


def test_the_check_would_find_what_a_graph_cannot_record():
    with torch.device("meta"):
        model = LanguageModel(CONFIG)
    cache = new_cache(model, 1, 32)
    with torch.inference_mode(), Operations() as operations:
        model(torch.zeros(1, 1, dtype=torch.int64, device="meta"), cache=cache)
    assert operations.devices == {"meta", "cpu"}  # the ordinary step brings its angles from the CPU


def test_operations_of_a_token():
    """At most 60 a layer, views and all. It is the same number whatever was said before, which a graph needs."""
    with torch.device("meta"):
        model = LanguageModel(
            TextConfig(hidden_size=64, intermediate_size=64, num_attention_heads=4, num_hidden_layers=32)
        )
    counts = []
    for length in (1, 300):
        cache = new_cache(model, 1, 512)
        cache.length = length
        with torch.inference_mode():
            step = DecodeStep(model, cache)
            with Operations() as operations:
                step.run()
        counts.append(len(operations.names))
    assert counts[0] == counts[1] <= 60 * 32, counts
