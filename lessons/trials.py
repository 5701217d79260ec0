"""What each exercise is tried on: cases with odd shapes, and properties that hold for every input.

A case runs the parts (an object with their names) on inputs of its own and returns what they gave. What it should give is what lessons/specs.py gives
on the same inputs. A property is a sentence and a function that fails by an assertion; hypothesis draws its inputs, the same ones every time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessons import specs
from minillava import language_model, projector, vision
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.conversation import IGNORE_INDEX
from minillava.kv_cache import KVCache
from minillava.loop import LoopConfig
from minillava.model import Llava

EXAMPLES = 20  # inputs that hypothesis draws for each property


@dataclass(frozen=True)
class Case:
    name: str  # completes "on ..."
    run: Callable  # parts -> what they give
    expected: Callable | None = None  # () -> what they should give; None: what the definitions give, run in the same way
    tolerance: float = 1e-5  # of the largest number that is expected

    def truth(self):
        return self.expected() if self.expected else self.run(specs)


@dataclass(frozen=True)
class Raises:
    """What a case gives when the part raises an exception, and should give where it must."""

    kind: str
    text: str = ""


@dataclass(frozen=True)
class Property:
    sentence: str
    holds: Callable  # parts -> None, or AssertionError


def random(*shape, seed: int = 0, dtype=torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def draw(**strategies):
    """A decorator: run the function on inputs that hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, settings

    def run(function):
        quiet = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        )
        quiet(given(**strategies)(function))()

    return run


def integers(low: int, high: int):
    from hypothesis import strategies

    return strategies.integers(low, high)


SEEDS = 1 << 16


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


class WrongWeights(Exception):
    """A class whose parameters are not those of the files; the text says which."""


def filled(module: nn.Module, like: nn.Module, seed: int = 0) -> nn.Module:
    """The student's module with random weights of the product's names and shapes."""
    have, want = {n: p.shape for n, p in module.named_parameters()}, {n: p.shape for n, p in like.named_parameters()}
    for text, names in (("lacks the parameter", want.keys() - have.keys()), ("has a parameter that the files lack:", have.keys() - want.keys())):
        if names:
            raise WrongWeights(f"{type(module).__name__} {text} {min(names)}")
    for name in want:
        if have[name] != want[name]:
            raise WrongWeights(f"{type(module).__name__}: {name} is {tuple(have[name])}, but in the files it is {tuple(want[name])}")
    with torch.no_grad():
        for name, weight in weights_like(like, seed).items():
            module.get_parameter(name).copy_(weight)
    return module


def weights_like(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    shapes = sorted((name, p.shape) for name, p in module.named_parameters())
    return {name: random(*shape, seed=100 * seed + i, scale=0.6) + (shape[0] and len(shape) == 1) for i, (name, shape) in enumerate(shapes)}


# ---------------------------------------------------------------------------------------------------------------- 01 patchify
def patchify_cases():
    def case(B, side, p):
        E = side * p
        pixels = torch.arange(B * 3 * E * E, dtype=torch.float32).view(B, 3, E, E)
        return Case(f"{B} pictures of {E} x {E} pixels in patches of {p}", lambda parts: parts.patchify(pixels.clone(), p))

    return [case(1, 2, 2), case(2, 3, 2), case(3, 1, 4), case(1, 4, 3), case(2, 5, 1)]


def patchify_properties():
    def back(parts):
        @draw(B=integers(1, 3), side=integers(1, 4), p=integers(1, 4), seed=integers(0, SEEDS))
        def test(B, side, p, seed):
            pixels = random(B, 3, side * p, side * p, seed=seed)
            patches = parts.patchify(pixels.clone(), p)  # (B, P, 3 * p * p)
            assert close(F.fold(patches.transpose(1, 2), side * p, p, stride=p), pixels)

    return [Property("the patches, put back in their places, are the picture", back)]


# ---------------------------------------------------------------------------------------------------------------- 02 attention
def attention_cases():
    def case(name, B, H, K, T, S, D, causal, start=None, scale=1.0):
        def run(parts):
            q, k, v = random(B, H, T, D, seed=1, scale=scale), random(B, K, S, D, seed=2, scale=scale), random(B, K, S, D, seed=3)
            return parts.eager_attention(q, k, v, causal=causal, start=None if start is None else torch.tensor(start))

        return Case(name, run)

    return [
        case("one head, all keys visible", 1, 1, 1, 3, 3, 4, False),
        case("2 rows, 3 heads, T = 4, S = 5, all keys visible", 2, 3, 3, 4, 5, 6, False),
        case("a prompt that reads itself (causal, T = S = 5)", 2, 2, 2, 5, 5, 3, True),
        case("3 queries after 4 cached positions (causal, T = 3, S = 7)", 1, 2, 2, 3, 7, 8, True),
        case("one query against a cache (T = 1, S = 6)", 1, 2, 2, 1, 6, 5, True),
        case("4 query heads that share 2 key/value heads", 2, 4, 2, 3, 3, 4, True),
        case("rows padded on the left (start = 0, 2, 3)", 3, 2, 1, 5, 5, 4, True, (0, 2, 3)),
        case("one query, rows padded on the left (start = 0, 2)", 2, 2, 2, 1, 4, 4, True, (0, 2)),
        case("scores of several hundred", 1, 2, 2, 4, 4, 4, True, None, 30.0),
    ]


def attention_properties():
    def mean(parts):
        @draw(T=integers(1, 5), extra=integers(0, 3), seed=integers(0, SEEDS))
        def test(T, extra, seed):
            q, k, v = random(1, 2, T, 4, seed=seed), random(1, 2, T + extra, 4, seed=seed + 1), torch.full((1, 2, T + extra, 4), 7.0)
            assert close(parts.eager_attention(q, k, v, causal=True), torch.full((1, 2, T, 4), 7.0))

    def future(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            q, k, v = (random(1, 2, T, 4, seed=seed + i) for i in range(3))
            before = parts.eager_attention(q, k, v, causal=True)[:, :, :-1]
            k2, v2 = k.clone(), v.clone()
            k2[:, :, -1], v2[:, :, -1] = 5.0, -5.0
            assert close(parts.eager_attention(q, k2, v2, causal=True)[:, :, :-1], before)

    def order(parts):
        @draw(S=integers(1, 6), seed=integers(0, SEEDS))
        def test(S, seed):
            q, k, v = random(1, 1, 3, 4, seed=seed), random(1, 1, S, 4, seed=seed + 1), random(1, 1, S, 4, seed=seed + 2)
            order = torch.randperm(S, generator=torch.Generator().manual_seed(seed))
            moved = parts.eager_attention(q, k[:, :, order], v[:, :, order], causal=False)
            assert close(moved, parts.eager_attention(q, k, v, causal=False))

    return [
        Property("the weights of a query sum to 1", mean),
        Property("what comes later does not change what came before", future),
        Property("without a mask the order of the keys does not matter", order),
    ]


# ---------------------------------------------------------------------------------------------------------------- 03 the tower
def vision_config():
    return VisionConfig(hidden_size=12, intermediate_size=20, num_attention_heads=3, layer_norm_eps=0.05)


def vision_layer_cases():
    def case(B, T, seed):
        def run(parts):
            layer = filled(parts.VisionLayer(vision_config()), vision.VisionLayer(vision_config()), seed)
            return layer(random(B, T, 12, seed=seed + 7), "eager").detach()

        def expected():
            return specs.vision_layer(weights_like(vision.VisionLayer(vision_config()), seed), random(B, T, 12, seed=seed + 7), 3, 0.05)

        return Case(f"x of {B} x {T} x 12", run, expected)

    return [case(1, 3, 0), case(2, 5, 1), case(3, 1, 2)]


def vision_layer_properties():
    def nothing(parts):
        @draw(T=integers(1, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            layer = filled(parts.VisionLayer(vision_config()), vision.VisionLayer(vision_config()), seed % 50)
            with torch.no_grad():
                for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                    linear.weight.zero_()
                    linear.bias.zero_()
            x = random(1, T, 12, seed=seed)
            assert close(layer(x, "eager").detach(), x)

    def order(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            layer = filled(parts.VisionLayer(vision_config()), vision.VisionLayer(vision_config()), seed % 50)
            x, turned = random(1, T, 12, seed=seed), torch.randperm(T, generator=torch.Generator().manual_seed(seed))
            assert close(layer(x[:, turned], "eager").detach(), layer(x, "eager").detach()[:, turned])

    return [
        Property("a layer whose two parts write zeros changes nothing", nothing),
        Property("a layer does not know where a patch is: patches in another order give the same, in that order", order),
    ]


def contrastive_cases():
    def scores(B, P, N, C, scale, bias, size=1.0):
        def run(parts):
            patches, texts = random(B, P, C, seed=B, scale=size), random(N, C, seed=N + 50, scale=3.0)
            return parts.phrase_scores(patches, texts, torch.tensor(scale), torch.tensor(bias))

        return Case(f"scores of {B} pictures of {P} patches and {N} phrases", run)

    def loss(B, N, size):
        def run(parts):
            true = random(B, N, seed=4) > 0.5
            return parts.contrastive_loss(random(B, N, seed=9, scale=size), true)

        return Case(f"the loss of {B} pictures and {N} phrases, scores of about {size:g}", run)

    return [
        scores(1, 2, 1, 3, 1.0, 0.0),
        scores(2, 4, 5, 6, 10.0, -10.0),
        scores(3, 1, 2, 4, 2.0, 0.5, 20.0),
        scores(2, 3, 3, 4, 120.0, -3.0),
        loss(1, 3, 1.0),
        loss(3, 5, 1.0),
        loss(2, 7, 200.0),
    ]


def contrastive_properties():
    def length(parts):
        @draw(B=integers(1, 3), N=integers(1, 4), seed=integers(0, SEEDS))
        def test(B, N, seed):
            patches, texts, scale, bias = random(B, 3, 5, seed=seed), random(N, 5, seed=seed + 1), torch.tensor(4.0), torch.tensor(-1.0)
            assert close(parts.phrase_scores(7 * patches, texts / 3, scale, bias), parts.phrase_scores(patches, texts, scale, bias))

    def mirror(parts):
        @draw(B=integers(1, 4), N=integers(1, 5), seed=integers(0, SEEDS))
        def test(B, N, seed):
            scores, true = random(B, N, seed=seed, scale=3.0), random(B, N, seed=seed + 1) > 0
            loss = parts.contrastive_loss(scores, true)
            assert loss >= 0 and close(parts.contrastive_loss(-scores, ~true), loss)

    return [
        Property("the lengths of the vectors do not matter", length),
        Property("the loss is never negative, and yes at a score is no at its opposite", mirror),
    ]


# ---------------------------------------------------------------------------------------------------------------- 04 text
WORDS = ("lower", "abab", "aaaaa", "▁cat", "x", "", "abcabcab", "ababa", "banana")
RANKS = {
    "a few merges": {("l", "o"): 3, ("lo", "w"): 1, ("e", "r"): 0, ("low", "er"): 5, ("▁", "c"): 2, ("a", "t"): 4, ("▁c", "at"): 6},
    "merges that overlap": {("a", "a"): 2, ("aa", "a"): 1, ("aa", "aa"): 0, ("a", "b"): 4, ("b", "a"): 3, ("ba", "b"): 5, ("ab", "ab"): 6},
    "merges that make one another possible": {("a", "b"): 9, ("ab", "c"): 0, ("c", "ab"): 4, ("n", "a"): 2, ("a", "na"): 1, ("na", "na"): 3},
    "no merges": {},
}


def bpe_cases():
    def case(name, ranks):
        def run(parts):
            given = [list(word) for word in WORDS]
            return [parts.merge_pieces(pieces, dict(ranks)) for pieces in given], given

        return Case(name, run)

    return [case(name, ranks) for name, ranks in RANKS.items()]


def bpe_properties():
    def drawn(seed, length):
        word = [("a", "b", "c")[i] for i in torch.randint(3, (length,), generator=torch.Generator().manual_seed(seed)).tolist()]
        pairs = [(x, y) for x in ("a", "b", "c", "ab", "bc", "ca") for y in ("a", "b", "c", "ab")]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed + 1)).tolist()
        return word, {pairs[i]: rank for rank, i in enumerate(order[: seed % len(pairs)])}

    def whole(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            word, ranks = drawn(seed, length)
            assert "".join(parts.merge_pieces(list(word), ranks)) == "".join(word)

    def done(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            word, ranks = drawn(seed, length)
            tokens = parts.merge_pieces(list(word), ranks)
            assert not any(pair in ranks for pair in pairwise(tokens))
            assert tokens == specs.merge_pieces(list(word), ranks)

    return [Property("the tokens joined are the word", whole), Property("no two neighbours that could be joined are left", done)]


def label_mask_cases():
    def case(name, ids, offsets, supervised):
        return Case(name, lambda parts: parts.label_mask(list(ids), list(offsets), list(supervised)))

    no, yes = False, True
    return [
        case("three tokens of which two answer", [7, 8, 9], [(0, 3), (3, 5), (5, 6)], [no, no, no, no, yes, yes]),
        case("a token without characters", [3, 4, 5, 6], [(0, 0), (0, 2), (2, 2), (2, 4)], [no, yes, yes, yes]),
        case("a token that begins before the answer", [11, 12, 13], [(0, 2), (2, 5), (5, 7)], [no, no, no, yes, yes, no, no]),
        case("a token that ends behind the answer", [21, 22, 23], [(0, 1), (1, 4), (4, 6)], [yes, yes, yes, no, no, yes]),
        case("a conversation of no tokens", [], [], []),
        case("two answers", list(range(50, 58)), [(i, i + 1) for i in range(8)], [no, no, yes, yes, no, yes, no, no]),
    ]


def label_mask_properties():
    def drawn(seed, length):
        widths = torch.randint(0, 4, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        offsets, at = [], 0
        for width in widths:
            offsets.append((at, at + width))
            at += width
        return list(range(100, 100 + length)), offsets, at

    def all_or_nothing(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            ids, offsets, characters = drawn(seed, length)
            assert parts.label_mask(ids, offsets, [False] * characters) == [IGNORE_INDEX] * length
            expected = [i if end > start else IGNORE_INDEX for i, (start, end) in zip(ids, offsets)]
            assert parts.label_mask(ids, offsets, [True] * characters) == expected

    def own(parts):
        @draw(seed=integers(0, SEEDS), length=integers(0, 9))
        def test(seed, length):
            ids, offsets, characters = drawn(seed, length)
            labels = parts.label_mask(ids, offsets, [i % 3 == seed % 3 for i in range(characters)])
            assert len(labels) == length and all(label in (token_id, IGNORE_INDEX) for label, token_id in zip(labels, ids))

    return [
        Property("where all is an answer every token pays, where nothing is none does", all_or_nothing),
        Property("a label is the token's own id or -100", own),
    ]


# ---------------------------------------------------------------------------------------------------------------- 05 positions
def frequencies(D: int) -> Tensor:
    return 100.0 ** -(torch.arange(0, D, 2) / D)


def rope_cases():
    def tables(D, start, end, dtype=torch.float32):
        name = f"the tables of positions {start} to {end - 1}, D = {D}, {str(dtype).removeprefix('torch.')}"
        return Case(name, lambda parts: parts.rope_tables(frequencies(D), start, end, dtype, "cpu"))

    def turn(B, H, T, D, start=0):
        def run(parts):
            x = random(B, H, T, D, seed=D)
            cos, sin = specs.rope_tables(frequencies(D), start, start + T, torch.float32, "cpu")
            return parts.apply_rope(x, cos, sin), x

        return Case(f"{B} x {H} heads of width {D} at positions {start} to {start + T - 1}", run)

    return [
        tables(8, 0, 4),
        turn(1, 1, 3, 8),
        tables(6, 5, 12),
        turn(2, 3, 5, 6, 4),
        turn(1, 2, 1, 10, 30),
        turn(1, 1, 4, 2, 1),
        tables(4, 7, 8),
        tables(8, 290, 300, torch.bfloat16),
    ]


def rope_properties():
    def turned(parts, x, position):
        return parts.apply_rope(x, *parts.rope_tables(frequencies(x.shape[-1]), position, position + x.shape[2], torch.float32, "cpu"))

    def norm(parts):
        @draw(half=integers(1, 8), position=integers(0, 1000), seed=integers(0, SEEDS))
        def test(half, position, seed):
            x = random(1, 2, 3, 2 * half, seed=seed)
            assert close(turned(parts, x, position).norm(dim=-1), x.norm(dim=-1))

    def relative(parts):
        @draw(half=integers(1, 8), m=integers(0, 50), distance=integers(0, 50), shift=integers(0, 100), seed=integers(0, SEEDS))
        def test(half, m, distance, shift, seed):
            q, k = random(1, 1, 1, 2 * half, seed=seed), random(1, 1, 1, 2 * half, seed=seed + 1)
            here = (turned(parts, q, m + distance) * turned(parts, k, m)).sum()
            there = (turned(parts, q, m + distance + shift) * turned(parts, k, m + shift)).sum()
            assert close(there, here, 1e-3)

    def still(parts):
        @draw(half=integers(1, 8), seed=integers(0, SEEDS))
        def test(half, seed):
            x = random(1, 2, 1, 2 * half, seed=seed)
            assert close(turned(parts, x, 0), x)

    return [
        Property("turning keeps the length of every vector", norm),
        Property("q . k depends on how far apart the two are, not on where", relative),
        Property("nothing is turned at position 0", still),
    ]


# ---------------------------------------------------------------------------------------------------------------- 06 the decoder
def rms_norm_cases():
    def case(*shape, eps=1e-6, dtype=torch.float32, scale=1.0):
        def run(parts):
            x = random(*shape, seed=len(shape), dtype=dtype, scale=scale)
            return parts.rms_norm(x, (random(shape[-1], seed=5) + 2).to(dtype), eps), x

        size = " x ".join(map(str, shape))
        return Case(f"x of {size}, {str(dtype).removeprefix('torch.')}, eps {eps:g}, numbers of about {scale:g}", run)

    return [
        case(2, 4),
        case(2, 3, 7),
        case(5),
        case(2, 3, 6, eps=0.5),
        case(1, 2, 3, 5, eps=1e-6, scale=1e-3),
        case(3, 8, dtype=torch.float16, scale=300.0),
        case(40, 33, dtype=torch.bfloat16),
    ]


def rms_norm_properties():
    def size(parts):
        @draw(width=integers(1, 16), seed=integers(0, SEEDS))
        def test(width, seed):
            x = random(3, width, seed=seed) + 1.5
            y = parts.rms_norm(x, torch.ones(width), 0.0)
            assert close(y.pow(2).mean(-1), torch.ones(3), 1e-3)

    def scale(parts):
        @draw(width=integers(1, 16), factor=integers(2, 1000), seed=integers(0, SEEDS))
        def test(width, factor, seed):
            x, weight = random(2, width, seed=seed) + 1.5, random(width, seed=seed + 1)
            assert close(parts.rms_norm(factor * x, weight, 0.0), parts.rms_norm(x, weight, 0.0))

    return [
        Property("with a weight of ones the mean square becomes 1", size),
        Property("a vector and a thousand times the vector give the same", scale),
    ]


def text_config(**more):
    shape = dict(hidden_size=12, intermediate_size=20, num_attention_heads=3, num_key_value_heads=1, head_dim=4, num_hidden_layers=2)
    return TextConfig(**{**shape, "rms_norm_eps": 0.05, "vocab_size": 30, **more})


def mlp_cases():
    def case(B, T, seed, scale=1.0):
        def run(parts):
            mlp = filled(parts.MLP(text_config()), language_model.MLP(text_config()), seed)
            return mlp(random(B, T, 12, seed=seed + 3, scale=scale)).detach()

        def expected():
            return specs.mlp(weights_like(language_model.MLP(text_config()), seed), random(B, T, 12, seed=seed + 3, scale=scale))

        return Case(f"x of {B} x {T} x 12", run, expected)

    return [case(1, 2, 0), case(2, 3, 1), case(3, 1, 2, 5.0)]


def mlp_properties():
    def zero(parts):
        @draw(T=integers(1, 5), seed=integers(0, 50))
        def test(T, seed):
            mlp = filled(parts.MLP(text_config()), language_model.MLP(text_config()), seed)
            assert close(mlp(torch.zeros(1, T, 12)).detach(), torch.zeros(1, T, 12))

    def alone(parts):
        @draw(T=integers(2, 5), seed=integers(0, 50))
        def test(T, seed):
            mlp = filled(parts.MLP(text_config()), language_model.MLP(text_config()), seed)
            x = random(1, T, 12, seed=seed)
            assert close(mlp(x).detach()[:, :1], mlp(x[:, :1]).detach())

    return [Property("nothing in, nothing out", zero), Property("each position is computed by itself", alone)]


def decoder_layer_cases():
    config = text_config()

    def layer_of(parts, seed):
        return filled(parts.DecoderLayer(config), language_model.DecoderLayer(config), seed)

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
            out = specs.decoder_layer(weights_like(language_model.DecoderLayer(config), seed), x, cos, sin, 4, 0.05, start)
            return out if chunks is None else (out, torch.zeros(B, 1, T, 4))

        return Case(name, run, expected)

    return [
        case("x of 1 x 3 x 12", 1, 3, 0),
        case("x of 2 x 5 x 12", 2, 5, 1),
        case("rows padded on the left (start = 0, 2)", 2, 4, 2, (0, 2)),
        case("5 positions in two pieces through the cache of layer 1", 2, 5, 3, None, (3, 2)),
    ]


def decoder_layer_properties():
    config = text_config()

    def make(parts, seed):
        return filled(parts.DecoderLayer(config), language_model.DecoderLayer(config), seed)

    def run(layer, x):
        return layer(x, *specs.rope_tables(frequencies(4), 0, x.shape[1], torch.float32, "cpu"), 0, None, None, "eager").detach()

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


# ---------------------------------------------------------------------------------------------------------------- 07 the bridge
def llava_config(kind: str = "mlp2x_gelu") -> LlavaConfig:
    tower = VisionConfig(hidden_size=6, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2)
    return LlavaConfig(tower, text_config(hidden_size=8, num_attention_heads=2, num_key_value_heads=2), 29, projector_type=kind)


def projector_cases():
    def case(kind, B, P, seed):
        def run(parts):
            made = filled(parts.Projector(llava_config(kind)), projector.Projector(llava_config(kind)), seed)
            return made(random(B, P, 6, seed=seed + 3)).detach()

        def expected():
            return specs.projector(weights_like(projector.Projector(llava_config(kind)), seed), random(B, P, 6, seed=seed + 3))

        return Case(f"{kind}, features of {B} x {P} x 6", run, expected)

    return [case("mlp2x_gelu", 1, 4, 0), case("mlp2x_gelu", 3, 5, 1), case("linear", 2, 3, 2)]


def projector_properties():
    def alone(parts):
        @draw(P=integers(2, 6), seed=integers(0, 50))
        def test(P, seed):
            made = filled(parts.Projector(llava_config()), projector.Projector(llava_config()), seed)
            features = random(1, P, 6, seed=seed)
            assert close(made(features).detach()[:, :1], made(features[:, :1]).detach())

    def straight(parts):
        @draw(seed=integers(0, 50))
        def test(seed):
            made = filled(parts.Projector(llava_config("linear")), projector.Projector(llava_config("linear")), seed)
            a, b = random(1, 1, 6, seed=seed), random(1, 1, 6, seed=seed + 1)
            assert close(made((a + b) / 2).detach(), (made(a) + made(b)).detach() / 2)

    return [
        Property("each patch is projected by itself", alone),
        Property("the linear projector maps the middle of two vectors to the middle", straight),
    ]


class TextOnly(nn.Module):
    """What `merge` needs of a Llava: config.image_token_id, here larger than the embedding table, and embed_text."""

    def __init__(self, width: int = 8, dtype=torch.float32):
        super().__init__()
        self.config = SimpleNamespace(image_token_id=61)
        self.table = random(20, width, seed=1, dtype=dtype)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.table)


def merge_cases():
    def case(name, ids, rows, dtype=torch.float32, expected=None):
        def run(parts):
            input_ids = torch.tensor(ids)
            return parts.merge(TextOnly(dtype=dtype), input_ids, random(rows, 8, seed=rows)), input_ids

        return Case(name, run, expected)

    def in_bfloat16():
        merged, ids = case("", [[3, 61, 61]], 2).run(specs)
        merged[0, 0] = TextOnly(dtype=torch.bfloat16).table[3]
        return merged.to(torch.bfloat16), ids

    return [
        case("a picture of 2 rows between two words", [[1, 61, 61, 5]], 2),
        case("two rows of text, each with a picture", [[1, 61, 61, 61, 7, 8], [0, 9, 61, 61, 61, 2]], 6),
        case("a picture at the end, and a text without one", [[4, 5, 61, 61], [6, 7, 8, 9]], 2),
        case("text in bfloat16 and a picture in float32", [[3, 61, 61]], 2, torch.bfloat16, in_bfloat16),
        case("more placeholders than rows", [[1, 61, 61, 61, 5]], 2, expected=lambda: Raises("ValueError")),
        case("fewer placeholders than rows", [[1, 61, 61, 5]], 3, expected=lambda: Raises("ValueError")),
    ]


def merge_properties():
    def drawn(seed, B, T):
        ids = torch.randint(0, 20, (B, T), generator=torch.Generator().manual_seed(seed))
        ids[random(B, T, seed=seed) > 0.3] = 61
        return ids

    def words(parts):
        @draw(seed=integers(0, SEEDS), B=integers(1, 3), T=integers(1, 6))
        def test(seed, B, T):
            ids, model = drawn(seed, B, T), TextOnly()
            is_image = ids == 61
            features = random(int(is_image.sum()), 8, seed=seed + 1)
            merged = parts.merge(model, ids, features)
            assert torch.equal(merged[is_image], features)
            assert torch.equal(merged[~is_image], model.table[ids[~is_image]])

    return [Property("words keep their embeddings, and the rows come in order", words)]


# ---------------------------------------------------------------------------------------------------------------- 08 speaking
def kv_cache_cases():
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


def kv_cache_properties():
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


DRAWS = 3000


def frequencies_of(ids: Tensor, V: int) -> Tensor:
    """How often each id was drawn, of DRAWS: (B, V), with exact zeros for those that never were, and -1 added to those."""
    counts = torch.stack([torch.bincount(row, minlength=V) for row in ids]).double() / DRAWS
    return torch.where(counts == 0, -1.0, counts)


def sample_cases():
    logits = torch.tensor([[0.45, 0.25, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.3, 0.4]]).log()  # (2, V)
    tied = torch.tensor([[0.3, 0.2, 0.2, 0.2, 0.1]]).log()

    def case(name, rows, **options):
        def run(parts):
            many = rows.repeat_interleave(DRAWS, 0)
            ids = parts.sample(many, **options, generator=torch.Generator().manual_seed(5))
            if ids.shape != (len(many),):
                return ids
            return frequencies_of(ids.view(-1, DRAWS), rows.shape[1])

        def expected():
            p = specs.distribution(rows, **{"temperature": 0.0, "top_k": 0, "top_p": 1.0, **options})
            return torch.where(p == 0, -1.0, p)

        return Case(name, run, expected, tolerance=0.04)

    def plain(name, rows, **options):
        return Case(name, lambda parts: parts.sample(rows.clone(), **options))

    def kinds(parts):
        ids = parts.sample(torch.zeros(200, 2), temperature=1.0, top_p=0.5, generator=torch.Generator().manual_seed(5))
        return len(ids.unique())

    return [
        plain("two rows at temperature 0", logits),
        case("temperature 1", logits, temperature=1.0),
        case("temperature 0.5", logits, temperature=0.5),
        case("top_k 2", logits, temperature=1.0, top_k=2),
        case("top_k 1", logits, temperature=1.5, top_k=1),
        case("top_k 2, where three tie for the second place", tied, temperature=1.0, top_k=2),
        case("top_k 9 of 5", logits, temperature=1.0, top_k=9),
        case("top_p 0.6", logits, temperature=1.0, top_p=0.6),
        case("top_p 0.01", logits, temperature=1.0, top_p=0.01),
        Case("two equally likely ids and top_p 0.5, how many of them are drawn", kinds, lambda: 1),
        case("top_k 3 and top_p 0.8 together", logits, temperature=1.0, top_k=3, top_p=0.8),
        case("temperature 2 and top_p 0.7", logits, temperature=2.0, top_p=0.7),
        case("a temperature of 1e-300, whose quotients overflow", logits * 1e10, temperature=1e-300),
        plain("float16 at temperature 0", (logits * 3).half()),
    ]


def sample_properties():
    def allowed(parts):
        @draw(V=integers(2, 12), k=integers(1, 12), seed=integers(0, SEEDS))
        def test(V, k, seed):
            logits = random(3, V, seed=seed, scale=2.0)
            ids = parts.sample(logits.clone(), temperature=1.0, top_k=k, generator=torch.Generator().manual_seed(seed))
            rank = (logits > logits.gather(1, ids[:, None])).sum(1)
            assert ids.dtype == torch.int64 and bool((rank < k).all())

    def nucleus(parts):
        @draw(V=integers(2, 12), percent=integers(1, 99), seed=integers(0, SEEDS))
        def test(V, percent, seed):
            logits = random(3, V, seed=seed, scale=2.0)
            ids = parts.sample(logits.clone(), temperature=1.0, top_p=percent / 100, generator=torch.Generator().manual_seed(seed))
            p = specs.distribution(logits, 1.0, 0, percent / 100)
            assert bool((p.gather(1, ids[:, None]) > 0).all())

    def again(parts):
        @draw(seed=integers(0, SEEDS))
        def test(seed):
            logits = random(20, 9, seed=seed)
            first, second = (parts.sample(logits.clone(), temperature=1.0, generator=torch.Generator().manual_seed(seed)) for _ in range(2))
            assert torch.equal(first, second)

    return [
        Property("only the k likeliest are drawn", allowed),
        Property("nothing outside of the top_p is drawn", nucleus),
        Property("a generator with the same seed draws the same", again),
    ]


# ---------------------------------------------------------------------------------------------------------------- 11 training
def small_llava() -> Llava:
    torch.manual_seed(0)
    return Llava(llava_config())


def trainable_cases():
    def case(name, stages, before):
        def run(parts):
            model = small_llava()
            model.requires_grad_(before)
            given = [parts.set_trainable(model, stage) for stage in stages]
            return [name for name, p in model.named_parameters() if p.requires_grad], [value is None for value in given]

        return Case(name, run)

    return [
        case("stage 1", (1,), True),
        case("stage 2", (2,), True),
        case("stage 2, when all was frozen before", (2,), False),
        case("stage 1 after stage 2", (2, 1), True),
        case("stage 2 after stage 1", (1, 2), True),
    ]


def trainable_properties():
    def any_order(parts):
        @draw(stages=integers(0, 63))
        def test(stages):
            model, order = small_llava(), [1 + (stages >> i & 1) for i in range(6)]
            for stage in order:
                parts.set_trainable(model, stage)
            learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
            assert learning == {"projector"} | ({"language_model"} if order[-1] == 2 else set())

    return [Property("what learns depends on the stage alone, not on the stages before", any_order)]


def schedule_cases():
    def case(peak, steps, warmup):
        config = LoopConfig(learning_rate=peak, max_steps=steps, warmup_ratio=warmup)
        return Case(
            f"{steps} steps, {warmup:g} of them warm-up, peak {peak:g}",
            lambda parts: [parts.learning_rate(step, config) for step in range(steps + 1)],
            tolerance=1e-6,
        )

    settings = [(1.0, 10, 0.2), (4e-3, 33, 0.1), (2.0, 20, 0.0), (1.0, 1, 0.03), (0.5, 7, 1.0), (1.0, 25, 0.5), (3.0, 4, 0.75)]
    return [case(*three) for three in settings]


def schedule_properties():
    def shape(parts):
        @draw(steps=integers(2, 60), percent=integers(0, 100))
        def test(steps, percent):
            config = LoopConfig(learning_rate=3.0, max_steps=steps, warmup_ratio=percent / 100)
            rates, warmup = [parts.learning_rate(step, config) for step in range(steps)], max(1, round(steps * percent / 100))
            assert all(0 < rate <= 3.0 + 1e-9 for rate in rates) and abs(rates[warmup - 1] - 3.0) < 1e-9
            assert all(a < b for a, b in pairwise(rates[:warmup]))
            assert all(a > b for a, b in pairwise(rates[warmup:]))

    return [Property("the rate is above 0, rises to the peak and falls from there", shape)]


class SmallLanguageModel:
    """What the loss needs of a language model, small enough to be sure of: a hidden state that knows the mask, and a linear head."""

    def __init__(self, dtype=torch.float32, V: int = 11, C: int = 6):
        self.config, self.dtype, self.weight = SimpleNamespace(hidden_size=C, vocab_size=V), dtype, random(V, C, seed=1)

    def hidden_states(self, inputs_embeds, attention_mask=None, cache=None):
        seen = 0.0 if attention_mask is None else attention_mask.cumsum(1)[..., None] / 4
        return inputs_embeds + seen * inputs_embeds.sign()  # (B, T, C)

    def logits(self, hidden):
        return F.linear(hidden, self.weight).to(self.dtype)  # (..., V)


def loss_cases():
    def case(name, labels, dtype=torch.float32, mask=None, expected=None, tolerance=1e-5, scale=1.0):
        def run(parts):
            target = torch.tensor(labels)
            embeds = random(*target.shape, 6, seed=target.numel(), scale=scale)
            attention_mask = None if mask is None else torch.tensor(mask)
            return parts.next_token_loss(SmallLanguageModel(dtype), embeds, target, attention_mask), target

        return Case(name, run, expected, tolerance)

    no = IGNORE_INDEX
    return [
        case("one row, all labels targets", [[1, 2, 3, 4]]),
        case("two rows with different numbers of targets", [[no, no, 5, 6, 7], [no, no, no, no, 3]]),
        case("a first label that nothing predicts", [[9, no, 2, no], [8, 1, no, no]]),
        case("rows padded on the left", [[no, no, no, 4, 5], [no, no, 3, 0, 1]], mask=[[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        case("logits in bfloat16", [[no, 3, 4, 5, 6, 7, 8], [1, 2, no, 4, 5, no, 10]], torch.bfloat16, tolerance=1e-4),
        case("an id 0 among the targets", [[no, 0, 4, 0, no]]),
        case("no target at all", [[no, no, no]], expected=lambda: Raises("ValueError")),
        case("a target only at position 0, which nothing predicts", [[7, no, no]], expected=lambda: Raises("ValueError")),
    ]


def loss_properties():
    def uniform(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            labels = torch.randint(0, 11, (2, T), generator=torch.Generator().manual_seed(seed))
            loss = parts.next_token_loss(SmallLanguageModel(), torch.zeros(2, T, 6), labels)
            assert abs(float(loss) - math.log(11)) < 1e-5

    def last(parts):
        @draw(T=integers(2, 6), seed=integers(0, SEEDS))
        def test(T, seed):
            embeds, labels = random(1, T, 6, seed=seed), torch.randint(0, 11, (1, T), generator=torch.Generator().manual_seed(seed))
            changed = embeds.clone()
            changed[:, -1] += 3.0
            model = SmallLanguageModel()
            assert close(parts.next_token_loss(model, changed, labels), parts.next_token_loss(model, embeds, labels))

    return [
        Property("a model that finds all ids equally likely has the loss log(V)", uniform),
        Property("what the model says at the last position is compared with nothing", last),
    ]


# ---------------------------------------------------------------------------------------------------------------- the list
@dataclass(frozen=True)
class Trial:
    file: str
    cases: Callable
    properties: Callable


TRIALS = {
    "patchify": Trial("e01_patchify.py", patchify_cases, patchify_properties),
    "attention": Trial("e02_attention.py", attention_cases, attention_properties),
    "vision_layer": Trial("e03_vision_layer.py", vision_layer_cases, vision_layer_properties),
    "contrastive": Trial("e03_contrastive.py", contrastive_cases, contrastive_properties),
    "bpe": Trial("e04_bpe.py", bpe_cases, bpe_properties),
    "label_mask": Trial("e04_label_mask.py", label_mask_cases, label_mask_properties),
    "rope": Trial("e05_rope.py", rope_cases, rope_properties),
    "rms_norm": Trial("e06_rms_norm.py", rms_norm_cases, rms_norm_properties),
    "mlp": Trial("e06_mlp.py", mlp_cases, mlp_properties),
    "decoder_layer": Trial("e06_decoder_layer.py", decoder_layer_cases, decoder_layer_properties),
    "projector": Trial("e07_projector.py", projector_cases, projector_properties),
    "merge": Trial("e07_merge.py", merge_cases, merge_properties),
    "kv_cache": Trial("e08_kv_cache.py", kv_cache_cases, kv_cache_properties),
    "sample": Trial("e08_sample.py", sample_cases, sample_properties),
    "trainable": Trial("e11_trainable.py", trainable_cases, trainable_properties),
    "schedule": Trial("e11_schedule.py", schedule_cases, schedule_properties),
    "loss": Trial("e11_loss.py", loss_cases, loss_properties),
}
