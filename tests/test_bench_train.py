"""The training benchmark: both sides compute the same, and the products that it counts are those that are made."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillava.bench.train import Ours, Theirs, make_samples, model_flops, step
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX

CPU = torch.device("cpu")
CONFIG = LlavaConfig(
    VisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
    ),
    TextConfig(
        67,
        32,
        48,
        2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
    image_token_id=66,
)


@pytest.mark.parametrize(("stage", "packed", "cached"), [(1, False, True), (2, False, False), (2, True, False)])
def test_a_step_of_both_sides_is_the_same(stage, packed, cached):
    """On one batch of all samples: its loss, and its loss after a step, which every gradient has a part in."""
    pytest.importorskip("transformers")
    samples = make_samples(CONFIG, stage, 5, seed=2)
    samples = [sample for sample in samples if sample.picture is not None]  # text alone is a batch of its own here
    ours, theirs = Ours(CONFIG, stage, samples, 9, packed, cached), Theirs(CONFIG, stage, samples, 9)
    losses = []
    for side in (ours, theirs):
        side.to(CPU, "float32")
        assert len(side.batches) == 1
        losses.append([step(side, side.batches[0]) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][2] < losses[0][0]


def test_every_sample_is_in_a_batch_of_each_side():
    pytest.importorskip("transformers")
    samples = make_samples(CONFIG, 2, 40, seed=0)
    assert any(sample.picture is None for sample in samples)
    tokens = sum(len(sample.encoded.input_ids) for sample in samples)
    for side in (
        Ours(CONFIG, 2, samples, 4, False, False),
        Ours(CONFIG, 2, samples, 4, True, False),
        Theirs(CONFIG, 2, samples, 4),
    ):
        side.to(CPU, "float32")
        assert sum(int((batch["attention_mask"] > 0).sum()) for batch in side.batches) == tokens
        assert sum(len(batch.get("pixel_values", ())) for batch in side.batches) == sum(
            sample.picture is not None for sample in samples
        )


def test_samples_are_within_the_context_and_supervised():
    for sample in make_samples(CONFIG, 2, 60, seed=1) + make_samples(CONFIG, 1, 10, seed=1):
        ids, labels = np.array(sample.encoded.input_ids), np.array(sample.encoded.labels)
        assert len(ids) == len(labels) <= 2048 and (labels != IGNORE_INDEX).any()
        assert (ids == CONFIG.image_token_id).sum() == (16 if sample.picture is not None else 0)
        assert ((labels == ids) | (labels == IGNORE_INDEX)).all() and labels[ids == CONFIG.image_token_id].max(
            initial=-100
        ) == IGNORE_INDEX


@pytest.mark.parametrize(("stage", "cached"), [(1, True), (1, False), (2, False)])
def test_the_products_counted_are_those_made(stage, cached):
    """Against PyTorch's counter on one sample; the attention that it can count makes all scores, the formula counts the
    causal half.
    """
    samples = [sample for sample in make_samples(CONFIG, stage, 9, seed=3) if sample.picture is not None][:1]
    side = Ours(CONFIG, stage, samples, 1, False, cached)
    side.to(CPU, "float32")
    side.model.language_model.attention = side.model.vision_tower.attention = "eager"
    with FlopCounterMode(display=False) as counter:
        side.loss(side.batches[0]).backward()
    T = len(samples[0].encoded.input_ids)
    causal = 2 * 3 * 4 * T * T / 2 * 32
    assert counter.get_total_flops() == pytest.approx(model_flops(CONFIG, stage, samples, cached) + causal, rel=0.1)


def test_mistakes_are_one_sentence(monkeypatch):
    from minillava.bench import train

    with pytest.raises(UserError, match="must be at least 1"):
        train.main(["--samples", "0"])
    monkeypatch.setattr(train.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UserError, match="the peer is not installed: pip install transformers"):
        train.main([])
