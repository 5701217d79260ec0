"""Decoding by a step of fixed shapes: the same numbers as the ordinary loop, and nothing in it that a CUDA graph could
not record.
"""

import weakref
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minillava import generation
from minillava.attention import attention
from minillava.config import TextConfig
from minillava.decode_graph import DecodeStep
from minillava.errors import UserError
from minillava.generation import collate_prompts, new_cache
from minillava.kv_cache import KVCache
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


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("autocast", [None, *HALVES], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, *HALVES, "frozen ones in half"], ids=str)
@pytest.mark.parametrize("held", [None, torch.float32, *HALVES], ids=str)
def test_every_type_decodes(attention, autocast, weights, held):
    """Whatever type weights, products and cache are of, the cache's own too, both kinds of step say what the whole
    prompt says."""
    torch.manual_seed(0)
    model = LanguageModel(CONFIG, attention)
    if weights == "frozen ones in half":  # as a training holds them, which always runs under autocast
        autocast = autocast or torch.bfloat16
        for part in (model.embed_tokens, model.layers[1]):
            part.to(autocast)
    else:
        model.to(weights)
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode(), torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        whole = model(ids)
        cache = new_cache(model, 1, 12) if held is None else KVCache(CONFIG, 1, 12, held)
        for kind in ("ordinary", "static"):
            cache.truncate(0)
            first = model(ids[:, :8], cache=cache)
            step = DecodeStep(model, cache) if kind == "static" else partial(model, cache=cache)
            logits = torch.cat([first, *(step(ids[:, t : t + 1]).clone() for t in range(8, 12))], 1)
            assert logits.dtype == whole.dtype
            exact = whole.dtype == torch.float32 and held in (None, torch.float32)
            assert relative_error(logits.float(), whole.float()) < (1e-5 if exact else 0.05)


def test_a_step_is_recorded_once_for_a_conversation(pair, monkeypatch):
    """The answers after the first go on with it, from wherever they begin; another cache has a step of its own."""
    _, model = pair
    recorded = []
    monkeypatch.setattr(generation, "can_be_recorded", lambda cache: True)
    monkeypatch.setattr(DecodeStep, "capture", lambda step: recorded.append(step) or step)
    cache, ids = new_cache(model, 1, 64), prompt(range(3, 12))
    for extra in [[], [2, 7, 9], [5]]:
        inputs = {**ids, "input_ids": torch.cat([ids["input_ids"], torch.tensor([extra], dtype=torch.int64)], 1)}
        with monkeypatch.context() as patch:
            patch.setattr(generation, "can_be_recorded", lambda cache: False)
            expected = list(generation.generate(model, **inputs, max_new_tokens=6, eos_token_id=[]))
        cache.truncate(ids["input_ids"].shape[1])
        assert list(generation.generate(model, **inputs, max_new_tokens=6, eos_token_id=[], cache=cache)) == expected
        assert len(recorded) == 1
    list(generation.generate(model, **inputs, max_new_tokens=6, eos_token_id=[], cache=new_cache(model, 1, 64)))
    assert len(recorded) == 2
    list(
        generation.generate(
            model.language_model, torch.tensor([[5, 6]]), max_new_tokens=6, eos_token_id=[], cache=cache
        )
    )
    assert len(recorded) == 3, "the step of another model"


def test_numbers_that_overflow_leave_a_cache_that_can_be_used(pair, monkeypatch):
    """Its memory then holds NaN where nothing is seen yet, which the next answer must not meet."""
    _, model = pair
    monkeypatch.setattr(generation, "can_be_recorded", lambda cache: True)
    monkeypatch.setattr(DecodeStep, "capture", lambda step: step)
    cache, options = new_cache(model, 1, 64), dict(max_new_tokens=6, eos_token_id=[])
    expected = list(generation.generate(model, **prompt(), **options, cache=cache))
    cache.keys[:, :, :, 20:] = cache.values[:, :, :, 20:] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        list(generation.generate(model, **prompt(), **options, cache=cache))
    assert list(generation.generate(model, **prompt(), **options, cache=cache)) == expected


def test_a_cache_and_its_step_are_freed_at_once(pair):
    """They are what takes memory, and the garbage collector may come late."""
    _, model = pair
    cache = new_cache(model, 1, 20)
    cache.recorded = (model, None, DecodeStep(model, cache))
    keys = weakref.ref(cache.keys)
    del cache
    assert keys() is None


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
