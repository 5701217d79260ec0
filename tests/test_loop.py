"""The loop: its schedule, who optimizes what, and that Muon is the Muon of its paper."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from minillava.config import TextConfig
from minillava.errors import UserError
from minillava.language_model import LanguageModel
from minillava.training.checkpoint import newest_whole
from minillava.training.metrics import Metrics
from minillava.training.optimizers import Muon, learning_rate, make_optimizers, orthogonalize
from minillava.training.recipes import LoopConfig
from minillava.training.run import Run, own_folder


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


# ------------------------------------------------------------ the run
def trained(model: nn.Module, config: LoopConfig, loss, last=lambda step: False, save=lambda: None) -> None:
    """A training in the open, as every training of the project is written."""
    with own_folder(config), Run(model, config, save) as run:
        for step in run.steps():
            value = loss(step)
            value.backward()
            run.update([value.item()], last=last(step))
            if run.due:
                with run.notes() as notes:
                    notes["step_was"] = step


def squares(model: nn.Module):
    return lambda step: model(torch.full((1, 3), 1.0 + step)).square().sum()


def test_a_run_may_end_early_and_saves_where_it_ends(tmp_path):
    model, saved = nn.Linear(3, 2), []
    config = LoopConfig(out=str(tmp_path), max_steps=50, save_every=50, learning_rate=0.1)
    trained(model, config, squares(model), last=lambda step: step == 6, save=lambda: saved.append(True))
    rows = Metrics(tmp_path, first=99).rows
    assert [row["step"] for row in rows if "loss" in row] == list(range(7))
    assert rows[-1] == {"step": 6, "step_was": 6} and saved == [True]


def test_a_gradient_that_is_not_finite_stops_the_run_and_saves_nothing_over_good_weights(tmp_path):
    model, saved = nn.Linear(3, 2), []
    config = LoopConfig(out=str(tmp_path), max_steps=9, save_every=2)
    loss = lambda step: model(torch.full((1, 3), float("inf") if step == 3 else 1.0)).sum()
    with pytest.raises(UserError, match="the gradient is not finite at step 3: lower --learning-rate"):
        trained(model, config, loss, save=lambda: saved.append(True))
    assert saved == [True] and newest_whole(tmp_path)[1]["step"] == "2"


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model, saved = nn.Linear(3, 2), []

    def loss(step):
        if step == 3:
            model.bias.data[0] = float("inf")
        return model.weight.sum()

    with pytest.raises(UserError, match="the weights are not finite after step 4"):
        trained(model, LoopConfig(out=str(tmp_path), max_steps=9, save_every=2), loss, save=lambda: saved.append(True))
    assert saved == [True] and newest_whole(tmp_path)[1]["step"] == "2"


def test_what_is_shown_never_ends_a_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Metrics, "show", lambda self: 1 / 0)
    model = nn.Linear(3, 2)
    trained(model, LoopConfig(out=str(tmp_path), max_steps=3), squares(model))
    assert "note: what is shown at step 3 failed: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert len(Metrics(tmp_path, first=99).having("loss")) == 3


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(5, "I/O"), UserError("x")]
)
def test_what_was_learnt_before_an_error_is_kept(tmp_path, error):
    model, failing = nn.Linear(3, 2), [True]
    config, loss = (
        LoopConfig(out=str(tmp_path / "broken"), max_steps=7, save_every=5, learning_rate=0.1),
        squares(model),
    )

    def fails_once(step):
        if step == 3 and failing.pop():
            raise error
        return loss(step)

    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(model, replace(config, out=str(tmp_path / "whole")), loss)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(start)
    failing[:] = [True]
    with pytest.raises(type(error)):
        trained(model, config, fails_once)
    assert newest_whole(tmp_path / "broken")[1]["step"] == "3"
    trained(model, replace(config, resume=True), loss)
    assert all(torch.equal(whole[name], tensor) for name, tensor in model.state_dict().items())
    rows = [[{**row, "seconds": 0} for row in Metrics(tmp_path / name, 99).rows] for name in ("whole", "broken")]
    assert rows[0] == rows[1]


def test_a_run_is_not_overwritten(tmp_path):
    model = nn.Linear(3, 2)
    config = LoopConfig(out=str(tmp_path / "out"), max_steps=3, learning_rate=0.1)
    trained(model, config, squares(model))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    with pytest.raises(UserError, match="holds a run: --resume goes on with it; to begin anew remove it, or choose"):
        trained(model, config, squares(model))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def test_a_step_without_losses_changes_nothing(tmp_path):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with Run(model, LoopConfig(out=str(tmp_path), max_steps=2, learning_rate=0.1), lambda: None) as run:
        for _ in run.steps():
            run.update([])
    assert torch.equal(model.weight, before) and Metrics(tmp_path, 9).having("loss") == []
    assert [row["step"] for row in Metrics(tmp_path, 9).rows] == [0, 1]


def test_damaged_logs_do_not_stop_a_resume(tmp_path):
    model = nn.Linear(3, 2)
    config = LoopConfig(out=str(tmp_path), max_steps=4, save_every=2, learning_rate=0.1)
    trained(model, config, squares(model))
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0, "loss": 1.5}\n\xff\xfe{"step"\n[1]\n{"step": 1, "lo')
    trained(model, replace(config, max_steps=4, resume=True), squares(model))
    assert Metrics(tmp_path, 9).rows[0] == {"step": 0, "loss": 1.5}
