"""What lessons/exercises/e08_kv_cache.py is tried on."""

import torch

from lessons.trials.base import SEEDS, Case, Property, Raises, draw, integers, random, text_config
from minillava.kv_cache import KVCache


def cases():
    def case(name, chunks, layer, B=2, K=1, capacity=7, expected=None):
        def run(parts):
            cache = KVCache(text_config(num_attention_heads=2, num_key_value_heads=K), B, capacity)
            cache.keys.zero_(), cache.values.zero_()
            given = []
            for number, T in enumerate(chunks):
                k, v = random(B, K, T, 4, seed=10 + number), random(B, K, T, 4, seed=20 + number)
                keys, values = parts.append(cache, layer, k, v)
                given += [keys.clone(), values.clone(), cache.length]
                cache.length += T
            return given, cache.keys, cache.values

        return Case(name, run, expected)

    return [
        case("3 positions in an empty cache", (3,), 0, B=1),
        case("3 positions, then 1, then 2", (3, 1, 2), 1),
        case("the last place of the cache", (6, 1), 0, K=2),
        case("the whole cache at once", (7,), 1, K=2),
        case("8 positions for a cache of 7", (8,), 0, expected=lambda: Raises("ValueError")),
        case("2 positions more than are left", (6, 3), 1, expected=lambda: Raises("ValueError")),
        case("1 position more than is left", (7, 1), 1, expected=lambda: Raises("ValueError")),
    ]


def properties():
    def pieces(parts):
        @draw(first=integers(1, 5), second=integers(1, 5), seed=integers(0, SEEDS))
        def test(first, second, seed):
            T = first + second
            k, v = random(1, 2, T, 4, seed=seed), random(1, 2, T, 4, seed=seed + 1)
            cache = KVCache(text_config(num_attention_heads=2, num_key_value_heads=2), 1, T)
            parts.append(cache, 0, k[:, :, :first], v[:, :, :first])
            cache.length = first
            keys, values = parts.append(cache, 0, k[:, :, first:], v[:, :, first:])
            assert torch.equal(keys, k) and torch.equal(values, v) and cache.length == first

    return [Property("whatever pieces keys and values come in, they are there in order", pieces)]
