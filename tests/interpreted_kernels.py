"""The kernels in Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest tests/interpreted_kernels.py`, which
test_kernels.py runs.

The interpreter's bfloat16 products are wrong, so float32 and float16 stand for all; the tests marked cuda take
bfloat16.
"""

import os
from dataclasses import replace
from functools import partial

if os.environ.get("TRITON_INTERPRET") != "1":
    raise SystemExit("set TRITON_INTERPRET=1: the kernels are to run in the interpreter")

import pytest
import torch
import torch.nn.functional as F

from lessons.swap import original, replaced
from minillava import kernels, training
from minillava.attention import attention, eager_attention
from minillava.bench import tiles as sweeping
from minillava.bench.attention import Shape
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.decode_graph import DecodeStep
from minillava.generation import new_cache
from minillava.kernels import decoder_layer, flash_attention, flash_decoding, tiles
from minillava.kernels.rms_norm import add_rms_norm, rms_norm
from minillava.kernels.rope import rope, rope_into_cache
from minillava.kernels.swiglu import swiglu
from minillava.language_model import LanguageModel, apply_rope, rope_tables
from minillava.language_model import rms_norm as rms_norm_formula
from minillava.model import Llava

HALF, FLOAT = torch.float16, torch.float32
BOTH = pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["float32", "float16"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random_qkv(B, H, K, T, S, D, dtype, seed=0):
    """Laid out in memory as the model's: heads beside each other, (B, T, H, D)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((T, H), (S, K), (S, K))
    return [torch.randn(B, length, heads, D, generator=generator).to(dtype).transpose(1, 2) for length, heads in shapes]


def starts(kind, B, T, S):
    """The first visible keys: none, rows padded on the left by different lengths, or samples of 13 tokens packed into a
    row.
    """
    if kind == "padded":
        return torch.arange(B) * (S // 2)
    if kind == "packed":
        return (torch.arange(S)[-T:] // 13 * 13).expand(B, -1)
    return None


def outputs_and_gradients(function, qkv, grad, **options):
    qkv = [x.detach().requires_grad_() for x in qkv]
    out = function(*qkv, **options)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad.to(out.dtype))]


def test_under_autocast_it_computes_in_autocasts_type():
    """RoPE leaves queries and keys in float32, values are in half: ours takes them as PyTorch's attention does."""
    qkv = random_qkv(2, 4, 2, 23, 23, 16, FLOAT)
    qkv[2] = qkv[2].to(HALF)
    grad, found = torch.randn(2, 4, 23, 16, generator=torch.Generator().manual_seed(1)), []
    with torch.autocast("cpu", HALF):
        for implementation in ("triton", "sdpa"):
            found.append(
                outputs_and_gradients(partial(attention, implementation=implementation), qkv, grad, causal=True)
            )
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype and torch.allclose(ours, theirs, atol=4e-3)


@pytest.fixture
def poisoned(monkeypatch):
    """New memory holds NaN, so that an element that no kernel writes is seen."""

    def poison(function):
        def poisoned(*args, **named):
            tensor = function(*args, **named)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return poisoned

    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


@pytest.fixture
def large_tiles(monkeypatch):
    """The tiles of float16, four times as large as those of float32: the interpreter's time goes by their number."""
    monkeypatch.setattr(tiles, "FLOAT32", tiles.HALF)


CASES = [  # B, H, K, T, S, D, causal, starts
    (2, 2, 2, 1, 1, 16, True, None),
    (1, 8, 1, 1, 130, 64, True, None),
    (2, 4, 2, 5, 5, 80, True, "padded"),
    (1, 2, 1, 37, 101, 128, True, None),
    (2, 3, 1, 65, 65, 64, True, "padded"),
    (1, 2, 2, 65, 65, 80, True, "packed"),
    (2, 1, 1, 37, 101, 16, False, "padded"),
    (1, 1, 1, 577, 577, 64, False, None),
    (1, 2, 1, 128, 256, 64, True, None),
    (1, 1, 1, 129, 257, 128, True, "packed"),
]


@BOTH
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_as_exact_as_the_formula(case, dtype, poisoned, large_tiles):
    """Against float64: outputs within twice, gradients within three times the error of the formula in the same dtype.

    And repeated runs are equal.
    """
    B, H, K, T, S, D, causal, kind = case
    qkv = random_qkv(B, H, K, T, S, D, dtype)
    options = {"causal": causal, "start": starts(kind, B, T, S)}
    grad = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = outputs_and_gradients(eager_attention, [x.double() for x in qkv], grad, **options)
    formula = outputs_and_gradients(eager_attention, qkv, grad, **options)
    ours = outputs_and_gradients(flash_attention.flash_attention, qkv, grad, **options)
    for name, allowed, a, b, c in zip(("out", "dq", "dk", "dv"), (2, 3, 3, 3), ours, formula, exact, strict=True):
        assert a.dtype == dtype and a.isfinite().all(), name
        # where the formula happens to be exact
        rounding = torch.finfo(dtype).eps * max(c.abs().max(), grad.abs().max())
        assert (a - c).abs().max() <= allowed * torch.maximum((b - c).abs().max(), rounding), name
    if T <= 37:
        again = outputs_and_gradients(flash_attention.flash_attention, qkv, grad, **options)
        assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@BOTH
@pytest.mark.parametrize(
    "case", [(1, 2, 2, 1, 16, False), (2, 8, 1, 130, 80, True), (1, 4, 2, 600, 128, False), (3, 3, 3, 37, 64, True)]
)
def test_decoding_is_as_exact_as_the_formula(case, dtype, poisoned):
    B, H, K, S, D, padded = case
    q, k, v = random_qkv(B, H, K, 1, S, D, dtype)
    start = starts("padded" if padded else None, B, 1, S)
    exact, formula = (
        eager_attention(*qkv, causal=True, start=start) for qkv in ([x.double() for x in (q, k, v)], (q, k, v))
    )
    out = flash_decoding.flash_decoding(q, k, v, start=start)
    rounding = torch.finfo(dtype).eps * v.abs().max()  # where the formula happens to be exact
    assert out.dtype == dtype
    assert (out - exact).abs().max() <= 2 * torch.maximum((formula - exact).abs().max(), rounding)


@pytest.mark.parametrize("past", [0, 63, 128, 298])
def test_decoding_reads_the_filled_part_of_a_cache_alone(past, poisoned):
    """What lies behind it is NaN."""
    q, k, v = random_qkv(2, 4, 2, 1, 299, 24, FLOAT)
    k[:, :, past + 1 :], v[:, :, past + 1 :] = torch.nan, torch.nan
    out = flash_decoding.flash_decoding(q, k, v, start=torch.tensor([0, past // 2]), past=torch.tensor([past]))
    filled = [x[:, :, : past + 1] for x in (k, v)]
    assert (out - eager_attention(q, *filled, causal=True, start=torch.tensor([0, past // 2]))).abs().max() < 2e-6


def test_a_row_of_padding_alone_gives_zeros(poisoned):
    q, k, v = random_qkv(2, 2, 1, 1, 70, 16, FLOAT)
    assert (flash_decoding.flash_decoding(q, k, v, start=torch.tensor([0, 70]))[1] == 0).all()
    q, k, v = random_qkv(2, 2, 1, 5, 70, 16, FLOAT)
    out, *grads = outputs_and_gradients(
        flash_attention.flash_attention, (q, k, v), torch.ones_like(q), causal=True, start=torch.tensor([70, 0])
    )
    assert (out[0] == 0).all() and all(grad.isfinite().all() and (grad[0] == 0).all() for grad in grads)


def test_splitting():
    for rows, S, block, processors in [(1, 1, 64, 108), (1, 4096, 64, 108), (32, 700, 64, 108), (4096, 9000, 32, 132)]:
        splits = flash_decoding.split_count(rows, S, block, processors)
        assert 1 <= splits <= 64 and (
            splits == 1 or (S // splits >= 2 * block and rows * (splits - 1) < 2 * processors)
        )
    assert flash_decoding.split_count(32, 4096, 64, 108) == 7 and flash_decoding.split_count(32, 100, 64, 108) == 1


def test_any_strides():
    """Heads beside each other, heads apart, every second channel, one key for all (an expanded tensor)."""
    q, k, v = random_qkv(1, 2, 2, 7, 19, 32, FLOAT)
    apart = [x.contiguous() for x in (q, k, v)]
    second = [torch.repeat_interleave(x, 2, -1)[..., ::2] for x in (q, k, v)]
    results = [flash_attention.flash_attention(*x, causal=True) for x in ((q, k, v), apart, second)]
    assert all(torch.equal(results[0], result) for result in results[1:])
    same = k[:, :1].expand(-1, 2, -1, -1)
    out = flash_attention.flash_attention(q, same, same, causal=False)
    assert (out - eager_attention(q, same, same, causal=False)).abs().max() < 2e-6


@pytest.mark.parametrize("options", [{}, {"start": torch.tensor([3, 0])}, {"past": torch.tensor([30])}])
def test_by_name(options):
    """attention(implementation="triton") takes the decoding kernel for one query, the other for more."""
    for T in (1, 1 if "past" in options else 6):
        q, k, v = random_qkv(2, 4, 2, T, 43, 16, FLOAT)
        out, formula = (attention(q, k, v, causal=True, implementation=name, **options) for name in ("triton", "eager"))
        assert (out - formula).abs().max() < 2e-6


@pytest.mark.parametrize("D, dtype", [(257, HALF), (129, FLOAT)])
def test_heads_that_are_too_wide(D, dtype):
    q, k, v = random_qkv(1, 1, 1, 3, 3, D, dtype)
    for function in (partial(flash_attention.flash_attention, causal=True), flash_decoding.flash_decoding):
        with pytest.raises(ValueError, match=f"no kernel for heads of {D} in {dtype}: choose the attention sdpa"):
            function(q, k, v)


def test_a_keys_gradient_walks_over_its_own_sample(large_tiles, monkeypatch):
    """In packed rows: the tiles of queries that are visited are counted, and NaN in the gradient of a later sample,
    which a product with a weight of 0 would keep, does not reach an earlier one.
    """
    lengths, T = (150, 90, 260), 500
    start = torch.cat([torch.full((n,), sum(lengths[:i])) for i, n in enumerate(lengths)])[None]  # (1, T)
    q, k, v = random_qkv(1, 2, 1, T, T, 16, FLOAT)
    out, lse = flash_attention.forward(q, k, v, start, True)
    grad, visited, first_keys = torch.randn(1, 2, T, 16), [], flash_attention.first_keys
    grad[:, :, 256:] = torch.nan  # all of the last sample but for some that share a tile with the one before

    def counted(*args):
        visited.append(1)
        return first_keys(*args)

    monkeypatch.setattr(flash_attention, "first_keys", counted)
    _, dk, dv = flash_attention.backward(q, k, v, start, out, lse, grad, True)
    BLOCK_T, BLOCK_S, *_ = tiles.HALF["key_value_gradient"][64]
    ends = {key: next(sum(lengths[: i + 1]) for i in range(3) if key < sum(lengths[: i + 1])) for key in range(T)}
    expected = sum(
        -(-(ends[min(key + BLOCK_S, T) - 1] - key) // BLOCK_T) for key in range(0, T, BLOCK_S)
    )  # for each query head
    programs = -(-T // tiles.HALF["query_gradient"][64][0])  # of the other kernel, which asks once each
    assert len(visited) == 2 * (expected + programs) and expected < 0.6 * sum(
        -(-(T - key) // BLOCK_T) for key in range(0, T, BLOCK_S)
    )
    assert dk[:, :, :192].isfinite().all() and dv[:, :, :192].isfinite().all()


# ------------------------------------------------------------ the parts of a layer beside attention
def exact_enough(ours, formula, tensors, grads, allowed=2):
    """Values and gradients of `ours` against those of the formula in float64: within `allowed` times the error that the
    formula has in the same dtype, or a rounding of the largest number.
    """

    def run(function, kind):
        inputs = [x.to(kind).requires_grad_() for x in tensors]
        outs = function(*inputs)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return [*outs, *torch.autograd.grad(outs, inputs, [g.to(kind) for g in grads])]

    dtype = tensors[0].dtype
    for number, (a, b, c) in enumerate(
        zip(run(ours, dtype), run(formula, dtype), run(formula, torch.float64), strict=True)
    ):
        rounding = torch.finfo(dtype).eps * c.abs().max()
        assert a.dtype == dtype and a.shape == c.shape and a.isfinite().all(), number
        assert (a - c).abs().max() <= allowed * torch.maximum((b - c).abs().max(), rounding), number


def normed(x, weight):
    """The formula without the cast to float32, so that float64 stays what it is."""
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


@BOTH
@pytest.mark.parametrize("C", [1, 77, 256])
def test_rms_norm(dtype, C, poisoned):
    x, weight, grad = (torch.randn(3, 5, C).to(dtype), torch.randn(C).to(dtype), torch.randn(3, 5, C).to(dtype))
    formula = lambda x, weight: (normed if x.dtype == torch.float64 else partial(rms_norm_formula, eps=1e-5))(x, weight)
    exact_enough(partial(rms_norm, eps=1e-5), formula, [x, weight], [grad])


@BOTH
def test_rms_norm_after_a_sum(dtype, poisoned, monkeypatch):
    """More rows than programs of the backward kernel."""
    monkeypatch.setattr(kernels.rms_norm, "PROGRAMS", 4)
    rows, C = 11, 24
    x, delta = torch.randn(rows, C).to(dtype), torch.randn(rows, C).to(dtype)
    weight, grads = torch.randn(C).to(dtype), [torch.randn(rows, C).to(dtype) for _ in range(2)]

    def formula(x, delta, weight):
        h = x + delta
        return h, (normed(h, weight) if x.dtype == torch.float64 else rms_norm_formula(h, weight, 1e-5))

    exact_enough(lambda x, delta, weight: add_rms_norm(x, delta, weight, 1e-5), formula, [x, delta, weight], grads, 3)


def test_rms_norm_of_a_frozen_weight_and_of_two_types():
    """Under autocast the stream is float32 and what is added half: the result is in autocast's type, for products."""
    x, delta = torch.randn(2, 3, 40, requires_grad=True), torch.randn(2, 3, 40).half().requires_grad_()
    weight = torch.randn(40)
    with torch.autocast("cpu", HALF):
        h, out = add_rms_norm(x, delta, weight, 1e-5)
    assert (h.dtype, out.dtype) == (FLOAT, HALF)
    assert torch.equal(h, x + delta) and torch.equal(out, rms_norm_formula(h, weight, 1e-5).half())
    dx, ddelta = torch.autograd.grad((h, out), (x, delta), (torch.randn_like(h), torch.randn_like(out)))
    assert (dx.dtype, ddelta.dtype) == (FLOAT, HALF) and torch.equal(dx.half(), ddelta)


@BOTH
@pytest.mark.parametrize("H, K, D", [(3, 1, 20), (2, 2, 64)])
def test_rope(dtype, H, K, D, poisoned):
    q, k = torch.randn(2, 7, H, D).to(dtype), torch.randn(2, 7, K, D).to(dtype)
    cos, sin = torch.randn(7, D).to(dtype), torch.randn(7, D).to(dtype)  # even where the two halves differ

    def formula(q, k):
        return tuple(
            apply_rope(x.transpose(1, 2), cos.to(x.dtype), sin.to(x.dtype)).transpose(1, 2).contiguous() for x in (q, k)
        )

    exact_enough(lambda q, k: rope(q, k, cos, sin), formula, [q, k], [torch.randn_like(q), torch.randn_like(k)])


@BOTH
def test_rope_into_the_cache(dtype):
    """Only the places of these tokens are written; heads of the cache lie apart."""
    q, k, v = torch.randn(2, 5, 3, 12).to(dtype), torch.randn(2, 5, 1, 12).to(dtype), torch.randn(2, 5, 1, 12).to(dtype)
    cos, sin = rope_tables(torch.tensor([1.0, 0.3, 0.2, 0.1, 0.03, 0.01]), 3, 8, dtype, "cpu")
    keys, values = torch.full((2, 2, 1, 11, 12), 9.0, dtype=dtype)
    turned = rope_into_cache(q, k, v, cos, sin, keys[:, :, 3:8], values[:, :, 3:8])
    tolerance = 4 * torch.finfo(dtype).eps
    for ours, x in ((turned, q), (keys[:, :, 3:8].transpose(1, 2), k)):
        assert torch.allclose(ours, apply_rope(x.transpose(1, 2), cos, sin).transpose(1, 2), atol=4 * tolerance)
    assert torch.equal(values[:, :, 3:8], v.transpose(1, 2))
    rest = [0, 1, 2, 8, 9, 10]
    assert (keys[:, :, rest] == 9).all() and (values[:, :, rest] == 9).all()


@BOTH
def test_swiglu(dtype, poisoned):
    gate, up, grad = (torch.randn(3, 5, 77).to(dtype) * 3 for _ in range(3))
    exact_enough(swiglu, lambda gate, up: F.silu(gate) * up, [gate, up], [grad])


# ------------------------------------------------------------ a new token
@BOTH
@pytest.mark.parametrize(
    "past, start, on_the_card, processors",
    [(0, None, False, 1), (5, None, True, 1), (130, "padded", True, 64), (299, None, False, 64)],
)
def test_a_new_token(past, start, on_the_card, processors, dtype, poisoned, monkeypatch):
    """It is turned, written into its place and seen by itself; in one part and in several. What lies behind is NaN."""
    monkeypatch.setattr(flash_decoding, "multiprocessors", lambda device: processors)
    capacity = 310
    q, keys, values = random_qkv(2, 6, 2, 1, capacity, 24, dtype)
    _, k, v = random_qkv(2, 6, 2, 1, 1, 24, dtype, seed=1)
    keys[:, :, past:], values[:, :, past:] = torch.nan, torch.nan
    start = torch.tensor([0, past // 2]) if start else None
    cos, sin = rope_tables(torch.rand(12), past, past + 1, dtype, "cpu")
    kept = [x[:, :, :past].clone() for x in (keys, values)]
    filled = [torch.cat(pair, 2) for pair in zip(kept, (apply_rope(k, cos, sin), v), strict=True)]
    expected = eager_attention(apply_rope(q, cos, sin), *filled, causal=True, start=start)
    given = (keys, values) if on_the_card else (keys[:, :, : past + 1], values[:, :, : past + 1])
    options = {"past": torch.tensor([past])} if on_the_card else {}
    out = flash_decoding.flash_decoding(q, *given, start=start, new=(k, v, cos, sin), **options)
    tolerance = 8 * torch.finfo(dtype).eps
    assert (out - expected).abs().max() <= tolerance
    for cache, old, new in ((keys, kept[0], filled[0][:, :, -1:]), (values, kept[1], v)):
        assert torch.equal(cache[:, :, :past], old) and cache[:, :, past + 1 :].isnan().all()
        assert (cache[:, :, past : past + 1] - new).abs().max() <= 4 * tolerance


@pytest.mark.parametrize("processors, launches", [(1, 1), (64, 2)])
def test_one_part_is_one_launch(processors, launches, monkeypatch):
    monkeypatch.setattr(flash_decoding, "multiprocessors", lambda device: processors)
    counted = []

    class Counted:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            counted.append(grid)
            return self.kernel[grid]

    for name in ("split_kernel", "combine_kernel"):
        monkeypatch.setattr(flash_decoding, name, Counted(getattr(flash_decoding, name)))
    flash_decoding.flash_decoding(*random_qkv(1, 2, 2, 1, 300, 16, FLOAT))
    assert len(counted) == launches


# ------------------------------------------------------------ the sweep over tiles
def test_the_sweep_takes_the_fastest_tile(capsys):
    """`python -m minillava.bench tiles`, in small and with a made-up clock: the kernels do run, with the tile under test
    and the best ones before it; one that fails is no tile.
    """
    shapes = [Shape("a prompt", 1, 2, 1, 17, 17, 16, True), Shape("a picture", 1, 1, 1, 9, 9, 16, False)]
    token, own, seen = Shape("a token", 1, 2, 1, 1, 70, 16, True), flash_attention.tile, []
    candidates = {key: [(64, 64, 4, 7), (32, 32, 8, 2), (32, 32, 4, 9), (64, 64, 4, 8)] for key in sweeping.SHAPES}

    def milliseconds(call):
        call()
        tiles_now = [flash_attention.tile(kernel, 16, HALF, torch.device("cpu")) for kernel in candidates]
        seen.append(tiles_now)
        if any(found["num_warps"] == 8 for found in tiles_now):
            raise RuntimeError("out of registers")
        return 100.0 - sum(found["num_stages"] for found in tiles_now)

    kinds = {kernel: [token] if kernel == "decode" else shapes for kernel in candidates}
    best = sweeping.sweep(torch.device("cpu"), HALF, kinds, candidates, milliseconds)
    assert best == {key: {16: (32, 32, 4, 9)} for key in candidates}
    assert seen[-1][-2]["num_stages"] == 9  # the other kernel of the backward pass keeps its best tile
    assert flash_attention.tile is own is flash_decoding.tile
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and lines[0].startswith("| forward | a prompt, head 16 | 128-32-4-3 ")
    assert "| 32-32-4-9 " in lines[0] and lines[0].endswith(" inf |")


# ------------------------------------------------------------ a layer, and models of a few
TEXT = TextConfig(61, 36, 53, 2, num_attention_heads=6, num_key_value_heads=2)
SMALL = LlavaConfig(VisionConfig(24, 37, 3, 3, 14, 7), TEXT, image_token_id=60)


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2 / parameter.numel() ** 0.125)
    return model


def close(ours, theirs, dtype, times=40):
    return (ours - theirs).abs().max() <= times * torch.finfo(dtype).eps * theirs.abs().max()


@pytest.fixture
def fused_calls(monkeypatch):
    """How often a layer ran on the fused kernels."""
    calls, function = [], decoder_layer.decoder_layer
    monkeypatch.setattr(decoder_layer, "decoder_layer", lambda *args: (calls.append(args[4]), function(*args))[1])
    return calls


@pytest.mark.parametrize("kind, dtype", [(None, FLOAT), (None, HALF), ("padded", FLOAT), ("packed", FLOAT)])
def test_a_layer_is_what_the_plain_one_is(kind, dtype, fused_calls, large_tiles):
    """With gradients of all its parameters and of its input."""
    layer = shaken(LanguageModel(TEXT)).layers[0].to(dtype)
    T = 15
    x, (cos, sin) = torch.randn(2, T, 36).to(dtype), rope_tables(torch.rand(3), 0, T, dtype, "cpu")
    grad, found = torch.randn(2, T, 36).to(dtype), []
    for implementation in ("eager", "triton"):
        x = x.detach().requires_grad_()
        out = layer(x, cos, sin, 0, None, starts(kind, 2, T, T), implementation)
        found.append([out, *torch.autograd.grad(out, [x, *layer.parameters()], grad)])
    assert len(fused_calls) == 1
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == dtype and close(ours, theirs, dtype)


@pytest.mark.parametrize("autocast, cache_type", [(False, FLOAT), (True, FLOAT), (True, HALF)])
def test_a_prompt_and_its_answer_through_the_cache(autocast, cache_type, fused_calls, large_tiles):
    """A left-padded batch, in two pieces; then tokens by the ordinary step and by the one that a graph records. Under
    autocast, too, with a cache of either type.
    """
    model, found = shaken(LanguageModel(TEXT)), []
    ids, mask = torch.randint(0, 60, (2, 12)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, :4] = 0
    for model.attention in ("eager", "triton"):
        cache = new_cache(model, 2, 16)
        cache.keys, cache.values = (x.fill_(torch.nan).to(cache_type) for x in (cache.keys, cache.values))
        with torch.inference_mode(), torch.autocast("cpu", HALF, enabled=autocast):
            logits = [model(ids[:, :9], mask, cache=cache), model(ids[:, 9:11], cache=cache)]
            logits.append(model(ids[:, 11:], cache=cache))
            step = DecodeStep(model, cache)
            logits += [step(token).clone() for token in (ids[:, 3:4], ids[:, 5:6])]
        found.append(torch.cat(logits, 1)[:, 4:].float())
    assert len(fused_calls) == 2 * 5
    assert close(found[1], found[0], HALF if autocast else FLOAT)


def test_a_full_cache_is_an_error():
    model = LanguageModel(TEXT, "triton")
    cache = new_cache(model, 1, 4)
    with torch.inference_mode(), pytest.raises(ValueError, match="the KV cache holds 4 positions, and 5 are needed"):
        model(torch.zeros(1, 5, dtype=torch.int64), cache=cache)


REPLACEABLE = ("language_model.rms_norm", "language_model.apply_rope", "language_model.MLP")


@pytest.mark.parametrize("name", [*REPLACEABLE, "kv_cache.KVCache.append", "attention.eager_attention"])
def test_a_students_part_is_called(name, fused_calls):
    target = f"minillava.{name}"
    part = original(target)
    part = type("Mine", (part,), {"forward": part.forward}) if isinstance(part, type) else lambda *a, **k: old(*a, **k)
    old, ids = original(target), torch.randint(0, 60, (1, 5))
    with replaced({target: part}) as calls, torch.inference_mode():
        model = LanguageModel(TEXT, "triton")
        model(ids, cache=new_cache(model, 1, 5))
    assert calls[target] >= 2 and not fused_calls
    with torch.inference_mode():
        LanguageModel(TEXT, "triton")(ids)
    assert len(fused_calls) == 2


def test_a_gradient_through_a_cache_takes_the_plain_layer(fused_calls):
    model = LanguageModel(replace(TEXT, num_hidden_layers=1), "triton")
    model(torch.zeros(1, 5, dtype=torch.int64), cache=new_cache(model, 1, 5)).sum().backward()
    assert not fused_calls and model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_a_training_step_has_the_same_gradients(large_tiles, fused_calls):
    """With activation checkpointing, so that each layer runs twice."""
    model, gradients = shaken(Llava(SMALL)), []
    training.checkpoint_layers(model)
    ids = torch.randint(0, 60, (1, 9))
    ids[:, 1:5] = SMALL.image_token_id
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 60, -100), "pixel_values": torch.randn(1, 3, 14, 14)}
    for name in ("sdpa", "triton"):
        model.vision_tower.attention = model.language_model.attention = name
        model.zero_grad(set_to_none=True)
        training.loss(model, batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert len(fused_calls) == 4
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 40
    for name, grad in gradients[0].items():
        assert (gradients[1][name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name
