"""The tiny world's own CLIP and Vicuna: what they are told is true, the loss is the formula, and both learn."""

import json
import math

import numpy as np
import pytest
import torch

from minillava import weights
from minillava.conversation import IGNORE_INDEX
from minillava.data.scene_language import grid_words, names_in
from minillava.data.scenes import sample_scene
from minillava.errors import UserError
from minillava.pretrain import ContrastivePair, PretrainConfig, encode_told, main, phrase_batch, said_again, told_scene, train_tokenizer


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


def test_words_said_again_are_the_words():
    lengths = set()
    for index in range(40):
        (_, first), (_, again) = said_again(index)[0]
        lengths.add(round(len(again) / len(first)))
        assert len(again.split()) % len(first.split()) == 0
        while again:  # each time round is the first time, begun elsewhere
            part, again = again[: len(first)], again[len(first) + 1 :]
            assert part in f"{first} {first}" and sorted(part.split()) == sorted(first.split())
    assert lengths == {1, 2, 3}


def test_a_map_is_not_supervised(tokenizer):
    maps = 0
    for index in range(30):
        (turns, template), scene_map = told_scene(index), " ".join(grid_words(sample_scene(index)))
        if turns[0][1].startswith(scene_map):
            maps += 1
            encoded = encode_told(tokenizer, turns, template)
            labels = encoded.labels
            assert scene_map in tokenizer.decode(encoded.input_ids)
            paid = "".join(tokenizer.decode([label]) for label in labels if label != IGNORE_INDEX)
            answers = "".join(text for speaker, text in turns if speaker == "assistant").replace(" ", "")
            assert paid == answers + "\n" * (template == "plain")
    assert maps > 10


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
    first, again = tmp_path / "first", tmp_path / "again"
    settings = ["--batch-size", "4", "--save-every", "25", "--learning-rate", "0.002", "--dtype", "float32"]
    main([part, "--out", str(first), "--max-steps", "25", *settings])
    {"language": weights.load_language_model, "vision": weights.load_vision_tower}[part](first)
    main([part, "--start", str(first), "--out", str(again), "--max-steps", "1", *settings])  # the same first batch, with what was learnt
    before, after = (json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["loss"] for out in (first, again))
    assert after < 0.9 * before


def test_nothing_to_start_from_is_said(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        main(["vision", "--start", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="max-steps must be"):
        PretrainConfig(max_steps=0)
