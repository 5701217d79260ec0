"""The loop: its schedule, who optimizes what, and that Muon is the Muon of its paper."""

import itertools

import pytest
import torch
from torch import nn

from minillava.config import TextConfig
from minillava.errors import UserError
from minillava.language_model import LanguageModel
from minillava.training.optimizers import Muon, orthogonalize
from minillava.training.run import LoopConfig, Metrics, fit, learning_rate, make_optimizers


def test_learning_rate_rises_and_falls():
    settings = LoopConfig(max_steps=200, learning_rate=2.0, warmup_ratio=0.05)
    rates = [learning_rate(step, settings) for step in range(200)]
    assert rates[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert max(rates) == rates[9] == rates[10] == 2.0 and rates[105] == pytest.approx(1.0) and 0 < rates[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_settings_are_checked():
    for wrong in (
        dict(max_steps=0),
        dict(learning_rate=float("nan")),
        dict(warmup_ratio=2),
        dict(weight_decay=-1),
        dict(dtype="int3"),
    ):
        with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
            LoopConfig(**wrong)


# ------------------------------------------------------------ optimizers
def small_model(tied: bool) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(TextConfig(50, 24, 36, 2, 3, 1, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [True, False])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(tied):
    model = small_model(tied)
    adamw, muon = make_optimizers(model, LoopConfig(optimizer="muon", weight_decay=0.1))
    names = {p: name for name, p in model.named_parameters()}
    in_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    in_adamw = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert in_muon == {name for name in names.values() if name.endswith("_proj.weight")}
    assert in_muon | in_adamw == set(names.values()) and not in_muon & in_adamw
    [only] = make_optimizers(model, LoopConfig(optimizer="adamw", weight_decay=0.1))
    assert {group["weight_decay"]: {p.ndim for p in group["params"]} for group in only.param_groups} == {
        0.1: {2},
        0.0: {1},
    }


def test_frozen_parameters_are_left_out():
    model = small_model(True)
    model.layers.requires_grad_(False)
    optimizers = make_optimizers(model, LoopConfig(optimizer="muon"))
    assert len(optimizers) == 1 and sum(len(group["params"]) for group in optimizers[0].param_groups) == 2


@pytest.mark.parametrize("shape", [(7, 19), (19, 7), (11, 11)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalize(matrix)
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.6 and values.max() < 1.25
    exact = u @ v
    assert (ours - exact).norm() < 0.35 * exact.norm()  # the quintic trades exactness for speed


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
def test_muon_steps_as_torchs():
    """torch orthogonalizes in bfloat16, so single entries differ by up to one part in thirty of a step."""
    torch.manual_seed(1)
    start, gradients = torch.randn(23, 14), torch.randn(6, 23, 14)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.02, weight_decay=0.3),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
    ]
    for gradient in gradients:
        for p, optimizer in zip((ours, theirs), optimizers):
            p.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_a_parameter_without_a_gradient_is_left_alone():
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = Muon([p], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(p, torch.ones(3, 4)) and not optimizer.state


# ------------------------------------------------------------ fit
def test_fit_may_end_early_and_saves_where_it_ends(tmp_path):
    model, saved = nn.Linear(3, 2), []
    count = itertools.count(1)
    fit(
        model,
        lambda step: model(torch.ones(1, 3)).square().sum(),
        LoopConfig(out=str(tmp_path), max_steps=50, save_every=50, learning_rate=0.1),
        lambda: saved.append(True),
        lambda step: {"step_was": step},
        finished=lambda: next(count) == 7,
    )
    rows = Metrics(tmp_path / "metrics.jsonl", first=99).rows
    assert (
        [row["step"] for row in rows if "loss" in row] == list(range(7))
        and rows[-1] == {"step": 6, "step_was": 6}
        and saved == [True]
    )


def test_a_gradient_that_is_not_finite_stops_the_run_in_one_sentence(tmp_path):
    model = nn.Linear(3, 2)
    with pytest.raises(UserError, match="the gradient is not finite at step 0"):
        fit(
            model,
            lambda step: model(torch.full((1, 3), float("inf"))).sum(),
            LoopConfig(out=str(tmp_path)),
            lambda: None,
            lambda step: {},
        )
