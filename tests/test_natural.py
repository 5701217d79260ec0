"""The questions that people ask beyond the first ten kinds: what is said is true, judged from the boxes alone; what the
test asks, no training asks so; yes and no are balanced.
"""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from minillava.data import facts
from minillava.data.answers import names_in, parse_answer
from minillava.data.groups import ARGUABLE, COLOR_OF, MASS, MEMBERS
from minillava.data.natural import NATURAL, natural_questions
from minillava.data.natural.asking import RELATIONS as WORDS_OF_RELATION
from minillava.data.natural.asking import WORDINGS, sloppy
from minillava.data.natural.talk import WEIGHTS, talk
from minillava.data.questions import QUESTIONS, SHORT_PROMPT
from minillava.data.scenes import COLORS, GROUP_OF, NAMES, PLACES, sample_scene
from minillava.errors import run
from minillava.eval import natural
from minillava.eval.natural import TITLES, natural_cases, score, table, typed
from tests.test_scenes import centre, described, holds, place_of, seen

WORDS = {form: word for word in MEMBERS for form in (word, facts.plural(word))}
RELATIONS = {said: relation for relation, forms in WORDS_OF_RELATION.items() for said in forms}


def made(of: str, count: int = 150):
    for seed in range(count):
        scene = sample_scene(seed, "val" if of == "held out" else "train")
        for question in natural_questions(scene, np.random.default_rng(seed), 12, of):
            yield scene, question


def found(words, text: str) -> list[str]:
    """The words in a text, the longest first where one holds another, each once and in order."""
    any_word = re.compile(r"\b(" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + r")\b")
    return list(dict.fromkeys(any_word.findall(text)))


def of_group(scene, text: str) -> dict[str, int]:
    """The things of the group that a text names."""
    word = WORDS[found(WORDS, text)[-1]]
    return {name: count for name, count in seen(scene).items() if name in MEMBERS[word]}


def centres(scene, wanted: str) -> list[tuple[float, float]]:
    return [((x1 + x2) / 2, (y1 + y2) / 2) for name, (x1, y1, x2, y2) in scene.boxes() if name == wanted]


def at(scene, place: str) -> list[str]:
    alone = [scene.__class__(0, scene.size, scene.color, scene.pattern, (thing,)) for thing in scene.things]
    places = [(name, place_of(one, name)) for one in alone for name in seen(one)]
    exactly = [name for name, own in places if own == place]
    return exactly or [name for name, own in places if place in own.split()]


def side_of(scene, relation: str, name: str) -> set[str]:
    """Everything that stands in that relation to the one thing of the name."""
    [(x, y)] = centres(scene, name)
    near = {(a - x, b - y, other) for other in seen(scene) if other != name for a, b in centres(scene, other)}
    across = {"to the left of": -1, "to the right of": 1}
    if relation in across:
        return {other for dx, dy, other in near if abs(dx) > abs(dy) and dx * across[relation] > 0}
    return {other for dx, dy, other in near if abs(dy) > abs(dx) and (dy < 0) == (relation == "above")}


def is_true(scene, question) -> bool:
    """Whether the short answer is right, by the question's text and the boxes."""
    text, short, count, kind = question.text, question.short, seen(scene), question.kind
    named, yes = names_in(text), question.short == "yes"
    if kind == "group_yes_no":
        return bool(of_group(scene, text)) == yes
    if kind == "group_list":
        return (facts.names_text(of_group(scene, text)) or "nothing") == short
    if kind == "group_count":
        return facts.NUMBERS[sum(of_group(scene, text).values())] == short
    if kind == "group_where":
        [(name, times)] = of_group(scene, text).items()
        return times == 1 and place_of(scene, name) == short
    if kind == "at_place":
        there = at(scene, found(PLACES, text.replace("Which", ""))[0])
        return bool(there) == yes if short in ("yes", "no") else (facts.names_text(there) or "nothing") == short
    if kind == "where_yes_no":
        asked, own = found(PLACES, text.replace("top hat", ""))[0], place_of(scene, named[0])
        return (asked == own or asked in own.split()) == yes
    if kind == "relation_yes_no":
        return holds(scene, named[0], RELATIONS[found(RELATIONS, text)[0]], named[1]) == yes
    if kind == "beside":
        relation = RELATIONS[found(RELATIONS, text)[0]]
        return set(short.split(", ")) - {"nothing"} == side_of(scene, relation, named[0])
    if kind == "background_yes_no":
        return (found(COLORS, text)[0] == scene.color) == yes
    if kind == "count_yes_no":
        return (facts.NUMBERS.index(found(facts.NUMBERS, text)[0]) == count[named[0]]) == yes
    if kind == "more" and short in ("yes", "no"):
        return (count[named[0]] > count[named[1]]) == yes
    if kind == "more":
        return short == max(named, key=lambda name: count[name])
    if kind == "only":
        return (sum(count.values()) == 1) == yes
    if kind == "besides" and short in ("yes", "no"):
        return (len(count) > 1) == yes
    if kind == "besides":
        return (facts.names_text(set(count) - {named[0]}) or "nothing") == short
    if kind == "both":
        return (set(named) <= set(count)) == yes
    if kind == "nearest":
        (x, y), others = centre(scene, named[0]), [name for name in count if name != named[0]]
        distance = {name: min(np.hypot(a - x, b - y) for a, b in centres(scene, name)) for name in others}
        return min(distance, key=distance.get) == short
    return True


@pytest.mark.parametrize("of", ["training", "held out"])
def test_answers_are_true_read_back_and_grammatical(of):
    kinds = Counter()
    for scene, question in made(of):
        kinds[question.kind] += 1
        assert is_true(scene, question), question
        assert parse_answer(question.reads, question.answer) == question.short, question
        assert parse_answer(question.reads, question.short) == question.short, question
        # "nothing" is a name to `described`
        assert question.kind == "color_of" or described(scene, question.answer.replace("nothing", "none")), question
        assert re.fullmatch(r"[A-Z].*[.!]", question.answer), question
        for text in (question.text, question.answer, *(text for _, text in question.before)):
            assert not re.search(
                r"\b[Aa] [aeio]|\b[Aa]n [^aeiou]|[{}]|  | [.,?]|\bare an?\b", text.replace("are a ", "")
            ), text
    assert set(kinds) == set(NATURAL) and min(kinds.values()) >= 8, kinds


def test_what_is_not_there_is_said_not_to_be_there():
    for scene, question in made("held out"):
        if question.kind in ("absent", "unknown"):
            [word] = re.findall(r"[Tt]here (?:is|are) no (.+)\.$", question.answer)
            assert not {word, *(name for name in NAMES if facts.plural(name) == word)} & set(seen(scene))
            assert word in question.text


def test_the_test_asks_as_no_training_does():
    training, held_out = WORDINGS["training"], WORDINGS["held out"]
    asked = QUESTIONS | training["questions"]
    for key, wordings in held_out["questions"].items():
        assert not set(wordings) & {*asked[key], *QUESTIONS.get(key, ())}, key
    for pool in ("nouns", "countries", "no picture tells"):
        assert not set(training[pool]) & set(held_out[pool]), pool
    for reply, texts in held_out["small talk"].items():
        assert not set(texts) & set(training["small talk"][reply])
    nouns = {*training["nouns"], *held_out["nouns"]}
    assert len(training["nouns"]) >= 100 and not nouns & {*NAMES, *MEMBERS, *COLORS}


def test_groups_hold_names_and_nothing_is_asked_where_people_would_disagree():
    assert all(set(names) <= set(NAMES) for names in MEMBERS.values()) and set(COLOR_OF) == set(NAMES)
    assert set(ARGUABLE) <= set(MEMBERS) and all(facts.plural(word) == word for word in MASS)
    for word, names in ARGUABLE.items():
        assert not names & set(MEMBERS[word]), word
    with_avocado = next(scene for scene in map(sample_scene, range(9999)) if set(seen(scene)) == {"avocado"})
    assert not {"fruit", "vegetable"} & set(facts.Facts(with_avocado).words())


def test_yes_and_no_are_balanced_by_kind_and_by_word():
    short, of_word = defaultdict(Counter), defaultdict(Counter)
    for seed in range(900):
        scene = sample_scene(seed)
        for question in natural_questions(scene, np.random.default_rng(seed), 8):
            short[question.kind][question.short] += 1
        for question in natural_questions(scene, np.random.default_rng(seed), 4, kinds=("group_yes_no",)):
            for word in found(WORDS, question.text)[:1]:
                of_word[WORDS[word]][question.short] += 1
    for kind in ("group_yes_no", "where_yes_no", "relation_yes_no", "background_yes_no", "only", "both"):
        yes, no = short[kind]["yes"], short[kind]["no"]
        assert abs(yes / (yes + no) - 0.5) < 0.12, (kind, yes, no)
    for word in ("animal", "food", "vehicle", "fruit", "plant"):
        yes, no = of_word[word]["yes"], of_word[word]["no"]
        assert abs(yes / (yes + no) - 0.5) < 0.15, (word, yes, no)


def test_typing():
    rng = np.random.default_rng(0)
    forms = {sloppy("What is to the left of the cat in the picture?", rng) for _ in range(60)}
    assert all(text == text.lower() and not text.endswith("?") for text in forms) and len(forms) > 20
    assert all(any(form in text for text in forms) for form in ("whats ", " pic", " photo", " left of the"))
    asked = natural_cases(5)
    for case, other in zip(asked, typed(asked), strict=True):
        assert other.question.text == other.question.text.lower() and other.scene is case.scene
        assert (other.question.short, other.question.before) == (case.question.short, case.question.before)


def test_follow_ups_alone_come_after_something():
    for _, question in made("training", 60):
        assert (question.kind == "follow_up") == bool(question.before)
        speakers = [speaker for speaker, _ in question.asked()]
        assert speakers == (["user", "assistant"] * len(speakers))[: len(speakers)] and len(speakers) % 2


def test_the_truth_scores_one_and_nonsense_nothing():
    asked = natural_cases(20)
    assert set(TITLES) == set(NATURAL)
    assert set(score(asked, [case.question.answer for case in asked]).values()) == {1.0}
    assert max(score(asked, ["xyzzy"] * len(asked)).values()) == 0.0
    assert asked == natural_cases(20)


def test_each_kind_counts_alike_in_the_mean():
    asked = natural_cases(3)
    rows = table({"a": {"more": 0.5, "only": 1.0}}, asked).splitlines()
    assert rows[-1] == f"| mean of kinds | {len(asked)} | 75.0 |" and len(rows) == 2 + len(TITLES) + 1
    assert "| more Xs than Ys? |" in rows[16] and rows[16].endswith("| 50.0 |")


def test_the_command_prints_a_table_of_three_ways_of_asking(capsys):
    natural.main(["--scenes", "2"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "| question | n | training wordings | held-out wordings | typed |"
    assert rows[-1].startswith("| mean of kinds | 16 | ")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--scenes", "0"], "must be a whole number from 1 to 1000000, not 0"),
        (["--scenes", "many"], "must be a whole number from 1 to 1000000, not many"),
        (["--weights", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_one_sentence(flags, said, capsys):
    assert run(lambda: natural.main(flags), "eval.natural") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_names_have_one_group_word_that_is_theirs():
    assert all(name in MEMBERS[GROUP_OF[name]] for name in NAMES)


def test_a_talk_holds_questions_of_all_kinds_but_those_left_out():
    assert set(WEIGHTS) == set(NATURAL)
    texts = []
    for seed in range(60):
        turns = talk(sample_scene(seed), np.random.default_rng(seed), but={"cannot_tell", "pattern"})
        assert [speaker for speaker, _ in turns] == ["user", "assistant"] * (len(turns) // 2) and len(turns) >= 12
        texts += [text for _, text in turns]
    assert not any("I cannot tell" in text or "pattern" in text for text in texts)
    assert any("There is no" in text for text in texts) and any(SHORT_PROMPT in text for text in texts)
    assert 10 < sum(text == text.lower() and len(text) > 20 for text in texts) < len(texts) / 5  # sloppily typed
