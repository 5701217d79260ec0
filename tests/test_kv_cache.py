"""The KV cache: what is written is what is read, and only what is filled."""

import pytest
import torch

from minillava.config import TextConfig
from minillava.kv_cache import KVCache

CONFIG = TextConfig(hidden_size=12, num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=2)


def append(cache, T, value):
    """What the model does with T new positions: every layer writes, then `length` moves."""
    new = torch.full((1, 1, T, 4), float(value))
    filled = [cache.append(layer, new + layer, -new) for layer in range(2)]
    cache.length += T
    return filled


def test_append_returns_all_that_is_filled():
    cache = KVCache(CONFIG, 1, 8)
    append(cache, 3, 1)
    (k0, v0), (k1, _) = append(cache, 2, 5)
    assert k0.shape == (1, 1, 5, 4) and cache.length == 5 and cache.capacity == 8
    assert k0[0, 0, :, 0].tolist() == [1, 1, 1, 5, 5] and k1[0, 0, :, 0].tolist() == [2, 2, 2, 6, 6]
    assert v0[0, 0, :, 0].tolist() == [-1, -1, -1, -5, -5]
    assert k0.data_ptr() == cache.keys.data_ptr()  # a view: nothing is copied


def test_truncate_forgets():
    cache = KVCache(CONFIG, 1, 8)
    append(cache, 5, 1)
    cache.truncate(2)
    cache.truncate(7)  # never grows
    assert cache.length == 2
    (k, _), _ = append(cache, 1, 9)
    assert k[0, 0, :, 0].tolist() == [1, 1, 9]


def test_where_rows_begin_is_forgotten_with_them():
    """A prompt after a padded one is not masked by the old padding."""
    cache = KVCache(CONFIG, 1, 8)
    append(cache, 5, 1)
    cache.start = torch.tensor([2])
    cache.truncate(3)
    assert cache.start is not None
    cache.truncate(0)
    assert cache.start is None


def test_a_position_too_many_is_an_error_and_writes_nothing():
    cache = KVCache(CONFIG, 1, 4)
    append(cache, 3, 1)
    with pytest.raises(ValueError, match="holds 4 positions, and 5 are needed"):
        append(cache, 2, 1)
    assert cache.length == 3
