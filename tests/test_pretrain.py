"""The tiny world's own CLIP and Vicuna: what they are told is true, the loss is the formula, and both learn."""

import json
import math

import numpy as np
import pytest
import torch

from minillava import weights
from minillava.conversation import IGNORE_INDEX, encode
from minillava.data.scene_language import grid_words, names_in
from minillava.data.scenes import sample_scene
from minillava.errors import UserError
from minillava.pretrain import ContrastivePair, PretrainConfig, main, phrase_batch, told_scene, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(scenes=300)


def test_names_and_the_roles_are_few_tokens(tokenizer):
    assert len(tokenizer.encode("USER: a cat ASSISTANT:")[0]) <= 7
    assert tokenizer.decode(tokenizer.encode("Is there a fire engine at the top left?")[0]) == "Is there a fire engine at the top left?"


def test_what_the_language_model_is_told_is_the_scene():
    kinds = set()
    for index in range(120):
        turns, kind = told_scene(index)
        kinds.add(kind)
        assert [speaker for speaker, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
        truth = {thing.name for thing in sample_scene(index).things}
        if kind == "plain":
            assert set(names_in(turns[1][1])) <= truth
        elif "\n" in turns[0][1]:
            assert truth <= set(names_in(turns[0][1]))
    assert kinds == {"plain", "llava_hf"}


def test_a_map_is_not_supervised(tokenizer):
    turns, template = next(told for told in map(told_scene, range(50)) if told[0][0][1].startswith(" ".join(grid_words(sample_scene(0))[:1])) or "\n" in told[0][0][1])
    encoded = encode(tokenizer, template, turns)
    paid = tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX])
    assert paid.split() == " ".join(text for speaker, text in turns if speaker == "assistant").split() or turns[1][1] in paid
    assert turns[0][1].split("\n")[0] not in paid


def test_phrases_are_judged_for_every_picture_of_the_batch(tokenizer):
    _, ids, true = phrase_batch(tokenizer, 11, 9)
    phrases = [tokenizer.decode(row.tolist()) for row in ids]
    assert len(set(phrases)) == len(phrases) == true.shape[1]
    for row, index in enumerate(range(11, 20)):
        present = {thing.name for thing in sample_scene(index).things}
        for column, phrase in enumerate(phrases):
            words = phrase.split(" ", 1)
            if words[0] in ("a", "an") and names_in(phrase) == [words[1]]:  # a phrase that only names
                assert bool(true[row, column]) == (words[1] in present), phrase


def test_the_loss_is_the_formula(tokenizer):
    """Against float64, pair by pair: log(1 + exp(-+score)), score = log sum over patches of exp(scale cos) + bias."""
    torch.manual_seed(0)
    pair = ContrastivePair(tokenizer)
    pixel_values, ids, true = phrase_batch(tokenizer, 3, 2)
    with torch.no_grad():
        patches = pair.visual_projection(pair.vision_tower(pixel_values)).double()
        texts = pair.phrases(ids).double()
        patches, texts = (x / x.norm(dim=-1, keepdim=True) for x in (patches, texts))
        total = 0.0
        for row, column in np.ndindex(*true.shape):
            score = math.log(sum(math.exp(10 * (patch @ texts[column]).item()) for patch in patches[row])) - 10
            total += math.log1p(math.exp(-score if true[row, column] else score))
        assert pair.loss(pixel_values, ids, true).item() == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("part", ["language", "vision"])
def test_both_learn_and_leave_a_folder_that_loads(part, tmp_path, monkeypatch):
    from minillava import pretrain

    monkeypatch.setattr(pretrain, "train_tokenizer", lambda: train_tokenizer(scenes=100))
    settings = ["--out", str(tmp_path), "--max-steps", "9", "--batch-size", "4", "--save-every", "9", "--learning-rate", "0.003", "--dtype", "float32"]
    main([part, *settings])
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    {"language": weights.load_language_model, "vision": weights.load_vision_tower}[part](tmp_path)
    again = tmp_path / "again"
    main([part, "--start", str(tmp_path), "--out", str(again), *settings[2:]])  # goes on from what was learnt
    first = json.loads((again / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first < 0.95 * losses[0]


def test_nothing_to_start_from_is_said(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        main(["vision", "--start", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="max-steps must be"):
        PretrainConfig(max_steps=0)
