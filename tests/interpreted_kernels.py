"""The kernels in Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest tests/interpreted_kernels.py`, which
test_kernels.py runs.

The interpreter's bfloat16 products are wrong, so float32 and float16 stand for all; the tests marked cuda take
bfloat16."""

import os
from functools import partial

if os.environ.get("TRITON_INTERPRET") != "1":
    raise SystemExit("set TRITON_INTERPRET=1: the kernels are to run in the interpreter")

import pytest
import torch

from minillava import answer, load, training
from minillava.attention import attention, eager_attention
from minillava.kernels import flash_attention, flash_decoding, tiles
from minillava.kernels.rms_norm import rms_norm
from minillava.language_model import rms_norm as rms_norm_formula

HALF, FLOAT = torch.float16, torch.float32


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


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["float32", "float16"])
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


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["float32", "float16"])
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


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["float32", "float16"])
def test_rms_norm(dtype):
    x, weight = torch.randn(3, 5, 77).to(dtype) * 3, torch.randn(77).to(dtype)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm_formula(x, weight, 1e-5)) or dtype == FLOAT
    assert (rms_norm(x, weight, 1e-5) - rms_norm_formula(x, weight, 1e-5)).abs().max() <= 4 * torch.finfo(
        dtype
    ).eps * x.abs().max()


# ------------------------------------------------------------ the whole model
PICTURE = "lessons/images/cat.png"


def test_the_tiny_model_answers_the_same(large_tiles):
    answers = [
        answer(*load("weights/tiny", "cpu", "float32", name), PICTURE, "Where is the cat?", max_new_tokens=12)
        for name in ("sdpa", "triton")
    ]
    assert answers[0] == answers[1] == "The cat is at the bottom."


def test_a_training_step_has_the_same_gradients(large_tiles):
    gradients = []
    for name in ("sdpa", "triton"):
        model, processor = load("weights/tiny", "cpu", "float32", name)
        inputs = processor("Where is the cat?", PICTURE)
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
        training.loss(model, {**inputs, "labels": labels}).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 50
    for name, grad in gradients[0].items():
        assert (gradients[1][name] - grad).norm() <= 1e-4 * grad.norm() + 1e-6, name
