"""Attention: every implementation against the formula, in odd shapes."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillava import attention as module
from minillava.attention import attention

HEADS = [(1, 1), (4, 4), (4, 2), (6, 1)]


def random_qkv(B=2, H=4, K=2, T=5, S=5, D=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, heads, length, D, generator=generator) for heads, length in ((H, T), (K, S), (K, S))]


def by_hand(q, k, v, causal, start=None):
    """The definition, one query at a time."""
    out = torch.zeros_like(q)
    B, H, T, D = q.shape
    S = k.shape[2]
    for b in range(B):
        for h in range(H):
            key, value = (x[b, h // (H // k.shape[1])] for x in (k, v))
            for t in range(T):
                first = 0 if start is None else int(start[b] if start.ndim == 1 else start[b, t])
                last = S - T + t + 1 if causal else S
                if first < last:
                    weights = (key[first:last] @ q[b, h, t] / D**0.5).softmax(0)
                    out[b, h, t] = weights @ value[first:last]
    return out


@settings(max_examples=25, deadline=None)
@given(
    implementation=st.sampled_from(["eager", "sdpa"]),
    shape=st.tuples(
        st.integers(1, 3), st.sampled_from(HEADS), st.integers(1, 7), st.integers(0, 4), st.sampled_from([2, 5, 8])
    ),
    causal=st.booleans(),
    starts=st.sampled_from(["none", "one a row", "one a query"]),
)
def test_equals_the_definition(implementation, shape, causal, starts):
    B, (H, K), T, past, D = shape
    q, k, v = random_qkv(B, H, K, T, T + past, D)
    start = {
        "none": None,
        "one a row": torch.arange(B) % (T + past),
        "one a query": torch.arange(B * T).view(B, T) // 2 % (T + past),
    }[starts]
    out = attention(q, k, v, causal=causal, implementation=implementation, start=start)
    assert torch.allclose(out, by_hand(q, k, v, causal, start), atol=2e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_equal_the_definition(implementation):
    start, grads = torch.tensor([0, 3]), []
    for function in (by_hand, partial(attention, implementation=implementation)):
        qkv = [x.requires_grad_() for x in random_qkv(T=4, S=6)]
        function(*qkv, causal=True, start=start).square().sum().backward()
        grads.append([x.grad for x in qkv])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_samples_equal_the_definition_and_make_no_scores_between_them(implementation, monkeypatch):
    """The rows' samples begin at 0, 3, 4 and at 0, 5; "sdpa" then never asks for a mask."""
    start, grads = torch.tensor([[0, 0, 0, 3, 4, 4, 4], [0, 0, 0, 0, 0, 5, 5]]), []
    if implementation == "sdpa":
        monkeypatch.setattr(module, "visible", None)
    for function in (by_hand, partial(attention, implementation=implementation)):
        qkv = [x.requires_grad_() for x in random_qkv(T=7, S=7)]
        out = function(*qkv, causal=True, start=start)
        out.square().sum().backward()
        grads.append([out.detach(), *(x.grad for x in qkv)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_first_keys_that_are_no_samples_beginnings_are_none():
    assert module.sample_edges(torch.tensor([[0, 0, 2, 2, 2], [0, 1, 2, 3, 4]])) == [[0, 2, 5], [0, 1, 2, 3, 4, 5]]
    for row in ([1, 1, 1], [0, 0, 1], [0, 1, 0], [0, 2, 2]):
        assert module.sample_edges(torch.tensor([[0, 0, 0], row])) is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_sees_nothing_gives_zeros(implementation, dtype):
    q, k, v = (x.to(dtype) for x in random_qkv())
    out = attention(q, k, v, causal=True, implementation=implementation, start=torch.tensor([0, 3]))
    assert out.dtype == dtype and out.isfinite().all() and (out[1, :, :3] == 0).all()


def test_mistakes_are_sentences():
    q, k, v = random_qkv(H=4, K=3)
    with pytest.raises(ValueError, match="4 query heads cannot share 3"):
        attention(q, k, v, causal=True)
    with pytest.raises(ValueError, match="'flash' is not one of eager, sdpa"):
        attention(q, q, q, causal=True, implementation="flash")


def test_looked_up_when_called(monkeypatch):
    """A student's version that takes the place of ours is the one that runs."""
    monkeypatch.setattr(module, "eager_attention", lambda q, k, v, **_: "mine")
    assert attention(*random_qkv(), causal=True, implementation="eager") == "mine"
