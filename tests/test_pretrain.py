"""The tiny world's own CLIP and Vicuna: what they read is true, the loss is the formula, and both learn."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from minillava import weights
from minillava.data.answers import names_in
from minillava.data.facts import plural
from minillava.data.natural.asking import WORDINGS
from minillava.data.scene_in_words import grid_words
from minillava.data.scenes import COLOR_NAMES, GROUP_OF, GROUPS, NAMES
from minillava.data.training_scenes import training_scene
from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX
from minillava.pretrain import language, vision
from minillava.pretrain.__main__ import main
from minillava.pretrain.language import (
    LookUp,
    learn_to_look_up,
    name_list,
    new_language_model,
    scene_talk,
    train_tokenizer,
)
from minillava.pretrain.probe import probe_tower
from minillava.pretrain.vision import TINY_VISION, ContrastivePair, phrase_batch, position_waves
from minillava.training.recipes import LoopConfig
from minillava.training.scoring import cases


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(scenes=300)


def test_names_and_the_roles_are_few_tokens(tokenizer):
    assert len(tokenizer.encode("USER: a cat ASSISTANT:")[0]) <= 7
    assert (
        tokenizer.decode(tokenizer.encode("Is there a fire engine at the top left?")[0])
        == "Is there a fire engine at the top left?"
    )


def test_a_scene_in_words_comes_before_its_conversation():
    forms, small_talk = Counter(), 0
    for index in range(150):
        turns = scene_talk(index)
        assert [speaker for speaker, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
        text, newline, _ = turns[0][1].partition("\n")
        if not newline:
            small_talk += turns[0] in {
                ("user", question) for texts in WORDINGS["training"]["small talk"].values() for question in texts
            }
            continue
        scene = training_scene(index)
        assert {thing.name for thing in scene.things} <= set(names_in(text))
        forms["map" if text == " ".join(grid_words(scene)) else "prose"] += 1
    assert 50 < forms["map"] < 100 and sum(forms.values()) + small_talk == 150 and small_talk >= 1


@pytest.mark.parametrize("as_questions", [False, True])
@pytest.mark.parametrize("groups", [False, True])
def test_verdicts_say_which_words_are_true_of_the_list(as_questions, groups):
    words = {form: word for word in (*GROUPS, *NAMES, *COLOR_NAMES) for form in (word, plural(word))}
    any_word = re.compile(r"\b(" + "|".join(sorted(words, key=len, reverse=True)) + r")\b")
    verdicts, asked_of = Counter(), Counter()
    for index in range(120):
        turns = name_list(index, as_questions, groups)
        listed = turns[0][1].split("\n")[0].split(", ")
        if as_questions:
            pairs = [
                (words[any_word.findall(question.split("\n")[-1])[0]], answer)
                for (_, question), (_, answer) in zip(turns[::2], turns[1::2])
            ]
        else:
            pairs = [each.rsplit(" ", 1) for each in turns[1][1].removesuffix(".").split(", ")]
        true = {*listed, *(GROUP_OF[name] for name in listed if name in GROUP_OF)}
        for word, verdict in pairs:
            assert (verdict.lower() == "yes") == (word in true)
            verdicts[verdict.lower()] += 1
            asked_of["group" if word in GROUPS else "color" if word in COLOR_NAMES else "name"] += 1
        assert len({word for word, _ in pairs}) == len(pairs)
    assert abs(verdicts["yes"] / verdicts.total() - 0.5) < 0.1
    assert set(asked_of) == ({"group"} if groups else {"name", "color"})


def test_only_verdicts_are_learnt_and_accuracy_is_theirs(tokenizer):
    torch.manual_seed(0)
    lesson = LookUp(new_language_model(tokenizer), tokenizer, batch_size=6)
    samples = lesson.samples(0, 12)
    for sample in samples:
        words = [tokenizer.decode([label]).strip().lower() for label in sample.labels if label != IGNORE_INDEX]
        assert words and set(words) <= {"yes", "no"}
    assert not lesson.passed()
    for _ in range(lesson.WINDOW):
        lesson.loss(0)
    assert all(0 <= lesson.accuracy(form) <= 1 for form in lesson.accuracies) and not lesson.passed()
    for rights in lesson.accuracies.values():
        rights.extend([1.0] * lesson.WINDOW)
    assert lesson.passed()


def test_a_look_up_lesson_that_fails_says_so_and_leaves_no_model(tokenizer, tmp_path):
    settings = LoopConfig(out=str(tmp_path), max_steps=2, batch_size=4, optimizer="muon")
    with pytest.raises(UserError, match="after 2 steps the model cannot look a name up"):
        learn_to_look_up(new_language_model(tokenizer), tokenizer, settings)
    assert not (tmp_path / "model.safetensors").exists()


def test_positions_start_as_waves_that_tell_rows_from_columns(tokenizer):
    waves = position_waves(TINY_VISION)
    assert torch.equal(ContrastivePair(tokenizer).vision_tower.embeddings.position_embedding.weight[1:], waves)
    grid = waves.view(7, 7, -1)
    half = grid.shape[-1] // 2
    assert torch.equal(grid[3, 0, :half], grid[3, 6, :half]) and torch.equal(grid[0, 3, half:], grid[6, 3, half:])
    distance = torch.cdist(waves, waves)
    assert (distance + 9 * torch.eye(49)).min() > 0.5  # no two patches alike


def test_phrases_are_judged_for_every_picture_of_the_batch(tokenizer):
    _, ids, true = phrase_batch(tokenizer, 11, 9)
    phrases = [tokenizer.decode(row.tolist()) for row in ids]
    assert len(set(phrases)) == len(phrases) == true.shape[1]
    for row, index in enumerate(range(11, 20)):
        present = {thing.name for thing in training_scene(index).things}
        for column, phrase in enumerate(phrases):
            words = phrase.split(" ", 1)
            if words[0] in ("a", "an") and names_in(phrase) == [words[1]]:  # a phrase that only names
                assert bool(true[row, column]) == (words[1] in present), phrase
    places = [column for column, phrase in enumerate(phrases) if " at the " in phrase or " in the middle" in phrase]
    assert places and true[:, places].any(1).sum() > 5


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
def test_both_learn_leave_a_folder_that_loads_and_resume(part, tmp_path, monkeypatch):
    monkeypatch.setattr(
        {"language": language, "vision": vision}[part], "train_tokenizer", lambda: train_tokenizer(scenes=100)
    )
    monkeypatch.setattr(language, "cases", lambda split, scenes: cases(split, 2))
    monkeypatch.setattr(vision, "probe_tower", lambda tower: probe_tower(tower, count=20))
    monkeypatch.setattr(LookUp, "GATES", dict.fromkeys(LookUp.GATES, -1.0))  # one step of the look-up lesson passes
    monkeypatch.setattr(LookUp, "WINDOW", 1)
    settings = [
        "--batch-size",
        "4",
        "--save-every",
        "10",
        "--dtype",
        "float32",
        "--max-steps",
        "20",
        "--out",
        str(tmp_path),
    ]
    main([part, *settings])
    {"language": weights.load_language_model, "vision": weights.load_vision_tower}[part](tmp_path)
    losses = [
        row["loss"] for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss" in row
    ]
    assert len(losses) == 20 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    before = (tmp_path / "model.safetensors").read_bytes()
    main([part, *settings, "--resume"])
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_all_takes_no_settings_of_a_single_part(tmp_path):
    with pytest.raises(UserError, match="--max-steps is for a single part"):
        main(["all", "--out", str(tmp_path), "--max-steps", "3"])
