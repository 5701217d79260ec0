"""The papers' recipes as flags, what learns with --train and --freeze, and a batch in micro-batches."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import train as command
from minillava import training
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.distributed import shard_parameters
from minillava.errors import UserError, run
from minillava.model import Llava
from minillava.training import TrainConfig, loss, set_trainable
from minillava.training.precision import held_types
from minillava.training.recipes import change_trainable, steps_of
from minillava.training.tensors import micro_batches, num_supervised, pictures_of


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
        (
            "v1",
            1,
            dict(
                learning_rate=2e-3,
                batch_size=128,
                epochs=1,
                template="plain",
                image_aspect_ratio="square",
                projector="linear",
            ),
        ),
        ("v1", 2, dict(learning_rate=2e-5, batch_size=32, epochs=3, template="v1", image_aspect_ratio="square")),
        (
            "v1.5",
            1,
            dict(
                learning_rate=1e-3,
                batch_size=256,
                epochs=1,
                template="plain",
                image_aspect_ratio="square",
                projector="mlp2x_gelu",
            ),
        ),
        (
            "v1.5-lora",
            2,
            dict(
                learning_rate=2e-4,
                projector_learning_rate=2e-5,
                lora_r=128,
                lora_alpha=256,
                lora_dropout=0.05,
                batch_size=128,
                epochs=1,
            ),
        ),
        ("v1.5", 2, dict(learning_rate=2e-5, batch_size=128, epochs=1, template="v1", image_aspect_ratio="pad")),
    ],
)
def test_the_papers_recipes(recipe, stage, expected, monkeypatch):
    config = config_of(monkeypatch, "--stage", str(stage), "--recipe", recipe, *(NEW if stage == 1 else OLD))
    common = dict(
        optimizer="adamw", adam_beta2=0.999, weight_decay=0.0, warmup_ratio=0.03, dtype="bfloat16", max_length=2048
    )
    common["checkpoint_activations"] = True
    assert {name: getattr(config, name) for name in (*expected, *common)} == {**expected, **common}


def test_flags_override_the_recipe(monkeypatch):
    config = config_of(
        monkeypatch, "--stage", "2", "--recipe", "v1.5", *OLD, "--max-steps", "7", "--learning-rate", "0.5"
    )
    assert (config.max_steps, config.epochs, config.learning_rate, config.batch_size) == (7, 0, 0.5, 128)


def test_epochs_become_steps():
    assert (
        steps_of(1, 665_298, 128) == 5198
        and steps_of(3, 64, 32) == 6
        and steps_of(0.5, 10, 4) == 2
        and steps_of(1, 1, 8) == 1
    )


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
    """Five rows of unequal answers: text alone, one without a supervised token, two micro-batches of two rows and one
    of one.
    """
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
        weighted = gradients(
            model, (loss(model, part) * num_supervised(part["labels"]) / num_supervised(labels) for part in parts)
        )
        means = gradients(model, (loss(model, part) / len(parts) for part in parts))
        assert (weighted - whole).norm() < 1e-6 * whole.norm() + 1e-6 and (means - whole).norm() > 0.05 * whole.norm()
        assert max(part["input_ids"].shape[1] for part in parts) == 15


def unequal_batch(config: LlavaConfig, kind: str) -> dict[str, torch.Tensor]:
    """Five rows with 0 to 2 pictures and answers of unequal lengths: the features from a cache, packed rows, or
    LLaVA-NeXT's views.
    """
    generator = torch.Generator().manual_seed(3)
    pictures = [[(14, 28)], [], [(28, 14), (20, 20)], [(28, 28)], []]
    rows, labels, masks = [], [], []
    for row, (sizes, answer) in enumerate(zip(pictures, (4, 9, 2, 7, 3), strict=True)):
        tokens = [
            sum(pictures_of({"image_sizes": torch.tensor([size])}, config)[0]) if kind == "next" else 4
            for size in sizes
        ]
        ids = torch.cat([torch.randint(0, 49, (2,), generator=generator), torch.full((sum(tokens),), 49)])
        ids = torch.cat([ids, torch.randint(0, 49, (answer,), generator=generator)])
        label = torch.where(torch.arange(len(ids)) < len(ids) - answer, -100, ids)
        mask = torch.ones_like(ids)
        if kind == "packed":  # a second sample after it, whose first token pays no loss
            second = torch.randint(0, 49, (3 + row,), generator=generator)
            ids, label = torch.cat([ids, second]), torch.cat([label, torch.tensor([-100]), second[1:]])
            mask = torch.cat([mask, torch.full_like(second, 2)])
        rows, labels, masks = [*rows, ids], [*labels, label], [*masks, mask]
    padded = [pad_sequence(rows, True), pad_sequence(labels, True, -100), pad_sequence(masks, True)]
    batch = dict(zip(("input_ids", "labels", "attention_mask"), padded, strict=True))
    sizes = [size for row in pictures for size in row]
    if kind == "cached":
        return {**batch, "vision_features": torch.randn(len(sizes), 4, 12, generator=generator)}
    if kind == "packed":
        return {**batch, "pixel_values": torch.randn(len(sizes), 3, 14, 14, generator=generator)}
    views = sum(pictures_of({"image_sizes": torch.tensor(sizes)}, config)[1])
    return {
        **batch,
        "pixel_values": torch.randn(views, 3, 14, 14, generator=generator),
        "image_sizes": torch.tensor(sizes),
    }


@pytest.mark.parametrize("kind", ["cached", "packed", "next"])
def test_micro_batches_take_their_own_pictures(model, kind):
    if kind == "next":
        torch.manual_seed(0)
        model = Llava(replace(model.config, image_grid_pinpoints=((14, 28), (28, 14), (28, 28))))
    batch = unequal_batch(model.config, kind)
    whole, total = gradients(model, [loss(model, batch)]), num_supervised(batch["labels"])
    for size in (1, 2, 3):
        parts = list(micro_batches(batch, size, model.config))
        assert sum("pixel_values" in part or "vision_features" in part for part in parts) < len(parts) or size > 1
        weighted = gradients(model, (loss(model, part) * num_supervised(part["labels"]) / total for part in parts))
        assert (weighted - whole).norm() < 1e-6 * whole.norm() + 1e-6


@pytest.mark.parametrize("trained", [("projector.",), ("projector.", "language_model."), ("vision_tower.",)])
def test_a_frozen_matrix_in_bfloat16_changes_no_bit(model, trained):
    """Loss and gradients under autocast, against the model that holds everything in float32."""
    batch, figures = unequal_batch(model.config, "packed"), []
    for held in (torch.float32, torch.bfloat16):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(trained)
        types = held_types(model, held)
        shard_parameters(model, (), torch.device("cpu"), types, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, batch)
        figures.append([value.detach(), gradients(model, [value])])
    assert all(torch.equal(one, other) for one, other in zip(*figures, strict=True))
    narrow = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert "vision_tower.layers.0.mlp.fc1.bias" in narrow or trained == ("vision_tower.",)
    assert not {
        name
        for name in narrow
        if name.startswith(trained) or "norm" in name or "position" in name or "embed_tokens" in name
    }
