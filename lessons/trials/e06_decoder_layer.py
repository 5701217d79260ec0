"""What lessons/exercises/e06_decoder_layer.py is tried on."""

import torch

from lessons import specs
from lessons.trials.base import (
    Case,
    Property,
    close,
    draw,
    filled,
    frequencies,
    integers,
    random,
    text_config,
    weights_like,
)
from minillava.kv_cache import KVCache
from minillava.language_model import DecoderLayer


def cases():
    config = text_config()

    def layer_of(parts, seed):
        return filled(parts.DecoderLayer(config), DecoderLayer(config), seed)

    def case(name, B, T, seed, start=None, chunks=None):
        x, (cos, sin) = random(B, T, 12, seed=seed + 3), specs.rope_tables(frequencies(4), 0, T, torch.float32, "cpu")
        start = None if start is None else torch.tensor(start)

        def run(parts):
            layer = layer_of(parts, seed)
            if chunks is None:
                return layer(x.clone(), cos, sin, 0, None, start, "eager").detach()
            cache, out, at = KVCache(config, B, T), [], 0
            cache.keys.zero_(), cache.values.zero_()
            for length in chunks:
                there = slice(at, at + length)
                out.append(layer(x[:, there], cos[there], sin[there], 1, cache, start, "eager").detach())
                cache.length = at = at + length
            return torch.cat(out, 1), cache.keys[0].clone()

        def expected():
            out = specs.decoder_layer(weights_like(DecoderLayer(config), seed), x, cos, sin, 4, 0.05, start)
            return out if chunks is None else (out, torch.zeros(B, 1, T, 4))

        return Case(name, run, expected)

    return [
        case("x of 1 x 3 x 12", 1, 3, 0),
        case("x of 2 x 5 x 12", 2, 5, 1),
        case("rows padded on the left (start = 0, 2)", 2, 4, 2, (0, 2)),
        case("5 positions in two pieces through the cache of layer 1", 2, 5, 3, None, (3, 2)),
    ]


def properties():
    config = text_config()

    def make(parts, seed):
        return filled(parts.DecoderLayer(config), DecoderLayer(config), seed)

    def run(layer, x):
        return layer(
            x, *specs.rope_tables(frequencies(4), 0, x.shape[1], torch.float32, "cpu"), 0, None, None, "eager"
        ).detach()

    def nothing(parts):
        @draw(T=integers(1, 5), seed=integers(0, 50))
        def test(T, seed):
            layer, x = make(parts, seed), random(1, T, 12, seed=seed)
            with torch.no_grad():
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            assert close(run(layer, x), x)

    def future(parts):
        @draw(T=integers(2, 5), seed=integers(0, 50))
        def test(T, seed):
            layer, x = make(parts, seed), random(1, T, 12, seed=seed)
            assert close(run(layer, x)[:, :1], run(layer, x[:, :1]))

    return [
        Property("a layer whose two parts write zeros changes nothing", nothing),
        Property("what comes later does not change what came before", future),
    ]
