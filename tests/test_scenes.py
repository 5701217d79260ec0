"""The tiny world: scenes are determined by their seed, and everything said about them is true, judged from their boxes
alone.
"""

import hashlib
import json
import math
import re
import sys
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minillava.data import answers, facts, questions, scene_in_words
from minillava.data import phrases as phrasing
from minillava.data import scenes as world
from minillava.data.scene_records import main, preview, records
from minillava.data.training_scenes import LARGE_SIZES, training_scene
from minillava.errors import run

COUNT = 400
SCENES = [world.sample_scene(seed) for seed in range(COUNT)]
seeds = st.integers(0, 2**40)
quick = settings(max_examples=60, deadline=None)


def asked(scene, n=30):
    return questions.questions(scene, world.Draws(scene.seed), n)


# What the boxes say, found without the code under test


def seen(scene):
    return Counter(name for name, _ in scene.boxes())


def centre(scene, wanted):
    [(x1, y1, x2, y2)] = [box for name, box in scene.boxes() if name == wanted]
    return (x1 + x2) / 2, (y1 + y2) / 2


def place_of(scene, name):
    x, y = centre(scene, name)
    words = (("top", "", "bottom")[int(3 * y)] + " " + ("left", "", "right")[int(3 * x)]).strip()
    return words or "middle"


def holds(scene, name, relation, other):
    (x, y), (u, v) = centre(scene, name), centre(scene, other)
    across, down = abs(x - u), abs(y - v)
    truth = ("to the left of" if x < u else "to the right of") if across > down else "above" if y < v else "below"
    return truth == relation


# The pictures


def test_the_emoji_sheet_is_the_list_of_names():
    index = json.loads((world.HERE / "emoji.json").read_text())
    assert [(entry["name"], entry["group"]) for entry in index["emoji"]] == list(world.GROUP_OF.items())
    assert len(world.NAMES) == len(set(world.NAMES)) == 144 and len(world.GROUPS) == 12
    assert sum(" " in name for name in world.NAMES) <= 12 and {"cat", "dog"} <= set(world.NAMES)
    assert Image.open(world.HERE / "emoji.png").size == (16 * 64, 9 * 64)


def test_a_seed_gives_the_same_bytes_everywhere():
    digest = hashlib.sha256()
    for split in world.SPLITS:
        for seed in range(8):
            digest.update(world.sample_scene(seed, split).pixels())
    assert digest.hexdigest()[:16] == "0b90226be88b04e5"
    said = " ".join(text for scene in SCENES[:20] for text in facts.captions(scene, world.Draws(1)))
    said += " ".join(str(question) for scene in SCENES[:20] for question in asked(scene))
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "5e50be1887ac93fc"


@quick
@given(seed=seeds, size=st.sampled_from((56, 112, 150, 224)))
def test_things_lie_inside_and_apart(seed, size):
    scene = world.sample_scene(seed, size=size)
    assert scene == world.sample_scene(seed, size=size) and 1 <= len(scene.things) <= 5
    assert scene.pixels().shape == (size, size, 3) and scene.pixels().dtype == np.uint8
    assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for _, (x1, y1, x2, y2) in scene.boxes())
    for (_, a), (_, b) in combinations(scene.boxes(), 2):
        assert world.iou(a, b) < 0.2
    for a, b in combinations(scene.things, 2):
        assert math.hypot(a.x - b.x, a.y - b.y) >= 24 * size / 112


def test_a_box_holds_what_is_painted():
    for scene in SCENES[:40]:
        bare = world.Scene(scene.seed, scene.size, scene.color, scene.pattern, ()).pixels().astype(int)
        alone = world.Scene(scene.seed, scene.size, scene.color, scene.pattern, scene.things[:1]).pixels()
        rows, columns = np.nonzero(abs(alone - bare).max(-1) > 0)
        x1, y1, x2, y2 = scene.things[0].box
        assert x1 <= columns.min() and columns.max() < x2 and y1 <= rows.min() and rows.max() < y2
        assert len(rows) > 0.15 * (x2 - x1) * (y2 - y1)


@pytest.mark.parametrize("pattern", world.PATTERNS)
def test_every_shade_of_a_background_is_nearest_its_own_colour(pattern):
    for (name, rgb), seed in zip(world.COLORS.items(), range(100)):
        pixels = world.Scene(seed, 112, name, pattern, ()).pixels().reshape(-1, 3).mean(0)
        assert min(world.COLORS, key=lambda color: math.dist(world.COLORS[color], pixels)) == name, (name, rgb)


def test_scenes_are_varied():
    counts = Counter(len(scene.things) for scene in SCENES)
    assert all(0.14 * COUNT < counts[k] < 0.27 * COUNT for k in range(1, 6))
    several = [scene for scene in SCENES if len(scene.things) > 1]
    assert 0.28 < np.mean([max(seen(scene).values()) > 1 for scene in several]) < 0.42
    assert {scene.color for scene in SCENES} == set(world.COLORS) and {scene.pattern for scene in SCENES} == set(
        world.PATTERNS
    )
    places = [world.where(thing) for scene in SCENES for thing in scene.things]
    assert set(world.PLACES) < set(places) and places.count(None) < 0.06 * len(places)


def test_held_out_pairs_are_held_out():
    held_out = set(world.HELD_OUT_PAIRS)
    assert len(held_out) == 216 and all(a < b for a, b in held_out)
    assert set(Counter(name for pair in held_out for name in pair).values()) == {3}

    def pairs(scene):
        return [pair for pair in combinations(sorted(seen(scene)), 2) if pair in held_out]

    for seed in range(150):
        assert not pairs(SCENES[seed]) and not pairs(world.sample_scene(seed, "val"))
        scene = world.sample_scene(seed, "pairs")
        assert len(pairs(scene)) == 1 and 2 <= len(scene.things) <= 4


def test_a_training_sees_large_things_alone():
    large = [training_scene(index) for index in range(0, 16 * 30, 16)]
    assert {scene.things[0].size for scene in large} == set(LARGE_SIZES)
    assert all(len(scene.things) == 1 and 0 <= edge <= 1 for scene in large for _, box in scene.boxes() for edge in box)
    assert all(training_scene(index) == world.sample_scene(index) for index in range(1, 16))


def test_splits_are_disjoint_and_arguments_are_checked():
    pictures = [{world.sample_scene(seed, split).things for seed in range(150)} for split in world.SPLITS]
    assert not any(a & b for a, b in combinations(pictures, 2))
    assert all(len(world.sample_scene(seed, max_objects=2).things) <= 2 for seed in range(50))
    for wrong in (dict(split="test"), dict(max_objects=0), dict(max_objects=6), dict(split="pairs", max_objects=1)):
        with pytest.raises(ValueError, match=r"\.$"):
            world.sample_scene(0, **wrong)


# The language


def true(scene, question):
    """Whether a question's short answer is right, by its text and the boxes."""
    text, short, count = question.text.lower(), question.short, seen(scene)
    names = answers.names_in(text)
    if question.kind == "existence":
        return (names[0] in count) == (short == "yes")
    if question.kind in ("count", "count_of"):
        return facts.NUMBERS[count[names[0]] if names else sum(count.values())] == short
    if question.kind == "color":
        return short == scene.color
    if question.kind == "where":
        return place_of(scene, names[0]) == short
    if question.kind == "relation" and short in ("yes", "no"):
        [claimed] = [relation for relation in world.RELATIONS if relation in text]
        return holds(scene, names[0], claimed, names[1]) == (short == "yes")
    if question.kind == "relation":
        return holds(scene, names[0], short, names[1])
    if question.kind == "group":
        group = next((group for group in world.GROUPS if group in text), "food")
        return [name for name in count if world.GROUP_OF[name] == group] == [short]
    if question.kind in ("list", "describe"):
        return short == ", ".join(sorted(count)) and described(scene, question.answer)
    return count[short] == 1


def described(scene, text):
    """Whether the counts, the colour, the places and the relations of a free text are right; a place may be any of its
    name's.
    """
    count, text = seen(scene), text.lower()
    things = {name: "|".join({name, facts.plural(name)}) for name in count}
    for name, forms in things.items():
        for number in re.findall(rf"\b({'|'.join(facts.NUMBERS)}) (?:{forms})\b", text):
            if facts.NUMBERS.index(number) != count[name]:
                return False
    if set(re.findall(rf"\b({'|'.join(world.COLORS)})\b", text)) - {scene.color}:
        return False
    single = "|".join(name for name in count if count[name] == 1) or "nothing"
    places = re.findall(
        rf"\b({single}) (?:is )?(?:at|on|in) the ({'|'.join(sorted(world.PLACES, key=len)[::-1])})\b", text
    )
    relations = re.findall(rf"\b({single}) (?:is )?({'|'.join(world.RELATIONS)}) (?:the|an?) ({single})\b", text)
    return all(place_of(scene, name) == place for name, place in places) and all(
        holds(scene, *fact) for fact in relations
    )


@quick
@given(seed=seeds, split=st.sampled_from(sorted(world.SPLITS)))
def test_every_text_is_true_and_grammatical(seed, split):
    scene = world.sample_scene(seed, split)
    rng = np.random.default_rng(seed)
    made, captions = questions.questions(scene, rng, 30), facts.captions(scene, rng, 6)
    prose, phrases = scene_in_words.describe_in_words(scene, rng), phrasing.contrastive_phrases(scene, rng)
    for question in made:
        assert true(scene, question), question
        assert answers.parse_answer(question.kind, question.answer) == question.short, question
        assert answers.parse_answer(question.kind, question.short) == question.short, question
    for text in [*captions, prose]:
        assert described(scene, text), text
    assert (
        set(answers.names_in(captions[0]))
        == set(answers.names_in(captions[1]))
        == set(answers.names_in(prose))
        == set(seen(scene))
    )
    assert len({question.text.lower() for question in made}) == len(made)
    sentences = [*captions, prose, *(question.answer for question in made)]
    for text in sentences + [phrase for pair in phrases for phrase in pair] + [question.text for question in made]:
        assert not re.search(
            r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|[{}]|  | [.,?]|\b(is|one) (two|three|four|five|\w+ \w+s are)\b|\bare an?\b",
            text,
        ), text
    assert all(re.fullmatch(r"[A-Z].*\.", text) for text in sentences)


@quick
@given(seed=seeds)
def test_phrases_contradict(seed):
    scene = world.sample_scene(seed)
    count, phrases = seen(scene), phrasing.contrastive_phrases(scene, world.Draws(seed), others=30)
    assert {facts.a(name) for name in count} <= {true for true, _ in phrases}
    for right, wrong in phrases:
        assert right != wrong and described(scene, right), (right, wrong)
        if "background" in wrong:
            assert wrong.split()[-2] != scene.color or facts.PATTERN_WORD[scene.pattern] not in wrong
        elif right in map(facts.a, count):
            assert answers.names_in(wrong)[0] not in count
        elif all(count[name] == 1 for name in answers.names_in(wrong)) and answers.names_in(wrong):
            assert not described(scene, wrong), (right, wrong)


def test_questions_are_balanced():
    made = [(scene, question) for scene in SCENES for question in asked(scene, 8)]
    existence = [(scene, question) for scene, question in made if question.kind == "existence"]
    noes = [(scene, question) for scene, question in existence if question.short == "no"]
    assert 0.18 < len(existence) / len(made) < 0.3
    assert abs(len(noes) / len(existence) - 0.5) < 0.04
    hard = [
        world.GROUP_OF[question.names[0]] in {world.GROUP_OF[name] for name in seen(scene)} for scene, question in noes
    ]
    assert abs(np.mean(hard) - 0.5) < 0.08
    relations = Counter(question.short for _, question in made if question.kind == "relation")
    assert abs(relations["yes"] / (relations["yes"] + relations["no"]) - 0.5) < 0.12
    zeros = [question.short == "zero" for _, question in made if question.kind == "count_of"]
    assert 0.08 < np.mean(zeros) < 0.25
    assert {question.kind for _, question in made} == set(questions.KIND_WEIGHTS)


def test_words():
    forms = {
        "sheep": "sheep",
        "mouse": "mice",
        "wolf": "wolves",
        "bus": "buses",
        "cherry": "cherries",
        "toothbrush": "toothbrushes",
    }
    assert {name: facts.plural(name) for name in forms} == forms
    assert facts.a("owl") == "an owl" and facts.a("cat") == "a cat"
    assert facts.counted("fox", 3) == "three foxes" and facts.joined(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize(
    "kind, text, short",
    [
        ("existence", "no, I see none", "no"),
        ("count_of", "I count 3 cats.", "three"),
        ("count", "There are no objects.", "zero"),
        ("color", "It is Grey", "gray"),
        ("where", "In the upper-left corner.", "top left"),
        ("where", "In the centre.", "middle"),
        ("relation", "It is under the dog, to be exact.", "below"),
        ("relation", "No, the cat is above it.", "no"),
        ("group", "The fire engine is a vehicle.", "fire engine"),
        ("list", "Two mice, an ice cream and a catalogue", "ice cream, mouse"),
        ("where", "I do not know.", ""),
    ],
)
def test_parse_answer(kind, text, short):
    assert answers.parse_answer(kind, text) == short


@quick
@given(seed=seeds)
def test_grid_words_place_every_thing(seed):
    scene = world.sample_scene(seed)
    words = scene_in_words.grid_words(scene)
    assert len(words) == 49 and set(words) == set(seen(scene)) | {scene.color}
    assert all(words[int(thing.y / 16) * 7 + int(thing.x / 16)] == thing.name for thing in scene.things)


def test_short_answers_ask_for_them():
    made = [question for scene in SCENES[:20] for question in questions.questions(scene, world.Draws(0), 8, short=1.0)]
    short = [question for question in made if question.kind != "describe"]
    assert all(
        question.text.endswith(questions.SHORT_PROMPT) and question.answer == question.short for question in short
    )


@quick
@given(seed=seeds)
def test_true_phrases_are_true_and_all_that_a_picture_brings(seed):
    """Whatever the contrastive batch says of a scene must be among its truths, its contradictions never, and each truth
    must hold by the boxes.
    """
    scene = world.sample_scene(seed)
    truths, count = phrasing.true_phrases(scene), seen(scene)
    for right, wrong in phrasing.contrastive_phrases(scene, world.Draws(seed), others=30):
        assert right in truths and wrong not in truths, (right, wrong)
    for phrase in truths:
        assert described(scene, phrase), phrase
        assert set(answers.names_in(phrase)) <= set(count), phrase


def test_a_conversation_asks_and_answers_in_turn():
    turns = questions.conversation(SCENES[3], np.random.default_rng(0), 6)
    assert [speaker for speaker, _ in turns] == ["user", "assistant"] * (len(turns) // 2) and 4 <= len(turns) <= 12
    share = np.mean(
        [
            questions.SHORT_PROMPT in text
            for scene in SCENES
            for _, text in questions.conversation(scene, world.Draws(1), 8)[::2]
        ]
    )
    assert 0.1 < share < 0.2


def test_stage_1_asks_for_a_list_or_a_description():
    asked = [questions.caption_request(scene, np.random.default_rng(seed)) for seed, scene in enumerate(SCENES[:60])]
    kinds = Counter(
        "describe" if question in questions.QUESTIONS["describe"] else "list" for [(_, question), _] in asked
    )
    assert min(kinds.values()) > 15 and {question for [(_, question), _] in asked} <= {
        *questions.QUESTIONS["describe"],
        *questions.QUESTIONS["list"],
    }
    assert all(set(answers.names_in(answer)) == set(seen(scene)) for [_, (_, answer)], scene in zip(asked, SCENES))


# Files


def test_records_are_llava_json(tmp_path):
    records(3, tmp_path, "val", start=5)
    conversations = json.loads((tmp_path / "conversations.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert (
        [record["id"] for record in conversations] == [line["id"] for line in lines] == ["000005", "000006", "000007"]
    )
    for record, line, seed in zip(conversations, lines, range(5, 8)):
        scene = world.sample_scene(seed, "val")
        assert np.array_equal(np.asarray(Image.open(tmp_path / record["image"])), scene.pixels())
        assert [turn["from"] for turn in record["conversations"][:2]] == ["human", "gpt"]
        assert [turn["value"].startswith("<image>\n") for turn in record["conversations"]] == [True] + [False] * (
            len(record["conversations"]) - 1
        )
        assert (
            Counter(instance["category"] for instance in line["instances"]) == seen(scene)
            and len(line["captions"]) == 5
        )
    assert not list(tmp_path.rglob("*.tmp"))


def test_preview_is_a_picture():
    assert preview(columns=2, rows=1).getcolors(10**6)


def test_a_mistake_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["data", "--count", "0", "--out", "x"])
    assert run(main, "data") == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"data: error: .+\n", err)
