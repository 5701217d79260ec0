"""The papers' recipes as flags, what learns with --train and --freeze, and a batch in micro-batches."""

import sys

import pytest
import torch

import train as command
from minillava import training
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError, run
from minillava.model import Llava
from minillava.training import TrainConfig, loss, set_trainable
from minillava.training.accumulation import micro_batches, num_supervised
from minillava.training.recipes import change_trainable, steps_of


@pytest.fixture
def model():
    torch.manual_seed(0)
    tower = VisionConfig(12, 20, 2, 3, image_size=14, patch_size=7)
    return Llava(LlavaConfig(tower, TextConfig(50, 24, 36, 2, 3, 1), image_token_id=49))


def config_of(monkeypatch, *arguments: str) -> TrainConfig:
    """What train.py would train with these flags."""
    found = []
    monkeypatch.setattr(training, "train", found.append)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    command.main()
    return found[0]


NEW = ("--vision", "CLIP", "--language", "VICUNA", "--data", "data.json")
OLD = ("--weights", "LLAVA", "--data", "data.json")


@pytest.mark.parametrize(
    ("recipe", "stage", "expected"),
    [
        ("v1", 1, dict(learning_rate=2e-3, batch_size=128, epochs=1, template="plain", image_aspect_ratio="square", projector="linear")),
        ("v1", 2, dict(learning_rate=2e-5, batch_size=32, epochs=3, template="v1", image_aspect_ratio="square")),
        ("v1.5", 1, dict(learning_rate=1e-3, batch_size=256, epochs=1, template="plain", image_aspect_ratio="square", projector="mlp2x_gelu")),
        (
            "v1.5-lora",
            2,
            dict(learning_rate=2e-4, projector_learning_rate=2e-5, lora_r=128, lora_alpha=256, lora_dropout=0.05, batch_size=128, epochs=1),
        ),
        ("v1.5", 2, dict(learning_rate=2e-5, batch_size=128, epochs=1, template="v1", image_aspect_ratio="pad")),
    ],
)
def test_the_papers_recipes(recipe, stage, expected, monkeypatch):
    config = config_of(monkeypatch, "--stage", str(stage), "--recipe", recipe, *(NEW if stage == 1 else OLD))
    common = dict(optimizer="adamw", adam_beta2=0.999, weight_decay=0.0, warmup_ratio=0.03, dtype="bfloat16", max_length=2048)
    common["checkpoint_activations"] = True
    assert {name: getattr(config, name) for name in (*expected, *common)} == {**expected, **common}


def test_flags_override_the_recipe(monkeypatch):
    config = config_of(monkeypatch, "--stage", "2", "--recipe", "v1.5", *OLD, "--max-steps", "7", "--learning-rate", "0.5")
    assert (config.max_steps, config.epochs, config.learning_rate, config.batch_size) == (7, 0, 0.5, 128)


def test_epochs_become_steps():
    assert steps_of(1, 665_298, 128) == 5198 and steps_of(3, 64, 32) == 6 and steps_of(0.5, 10, 4) == 2 and steps_of(1, 1, 8) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "v1.5"], "--recipe v1.5 needs --data"),
        (["--epochs", "2"], "--epochs needs --data"),
        (["--epochs", "2", "--max-steps", "3"], "give one of them"),
        (["--recipe", "v9"], "invalid choice: 'v9'"),
    ],
)
def test_mistakes_are_sentences(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--stage", "1", *arguments])
    assert run(command.main, "train.py") == 2 and words in capsys.readouterr().err


def test_train_and_freeze_change_the_stages_set(model):
    set_trainable(model, 1)
    change_trainable(model, "language_model.layers.1, tower", "projector.linear_2")
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    prefixes = ("language_model.layers.1.", "vision_tower.", "projector.linear_1.")
    assert learns == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    with pytest.raises(UserError, match="--freeze layers: no part of this model"):
        change_trainable(model, "", "layers")
    with pytest.raises(UserError, match="nothing is left to learn"):
        change_trainable(model, "", "tower,projector,language_model")


def gradients(model, losses) -> torch.Tensor:
    model.zero_grad()
    for part in losses:
        part.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_micro_batches_have_the_gradient_of_the_whole(model):
    """Five rows of unequal answers: text alone, one without a supervised token, two micro-batches of two rows and one of one."""
    rows, T = [(3, True), (9, False), (0, True), (1, True), (6, False)], 20
    ids = torch.randint(0, 49, (5, T), generator=torch.Generator().manual_seed(1))
    labels, mask, num = torch.full((5, T), -100), torch.zeros(5, T, dtype=torch.int64), 0
    for row, (answer, picture) in enumerate(rows):
        end = 6 + answer
        mask[row, :end], labels[row, 6:end] = 1, ids[row, 6:end]
        if picture:
            ids[row, 1:5], num = 49, num + 1
    pixels = torch.randn(num, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}
    whole = gradients(model, [loss(model, batch)])
    for size in (1, 2, 3):
        parts = [part for part in micro_batches(batch, size, model.config) if num_supervised(part["labels"])]
        weighted = gradients(model, (loss(model, part) * num_supervised(part["labels"]) / num_supervised(labels) for part in parts))
        means = gradients(model, (loss(model, part) / len(parts) for part in parts))
        assert (weighted - whole).norm() < 1e-6 * whole.norm() + 1e-6 and (means - whole).norm() > 0.05 * whole.norm()
        assert max(part["input_ids"].shape[1] for part in parts) == 15
