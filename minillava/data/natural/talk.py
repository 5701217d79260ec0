"""Conversations about a scene with questions of all kinds, the first ten and those that people ask beyond them: what a
training of stage 2 holds.
"""

from collections.abc import Collection
from dataclasses import replace

from minillava.data.facts import pick, shuffled
from minillava.data.natural import NATURAL, natural_questions
from minillava.data.natural.asking import sloppy
from minillava.data.questions import SHORT_SHARE, questions
from minillava.data.scenes import Scene
from minillava.inputs.conversation import Turn

# how often a kind is asked: those that have to look at everything, or to compare, come more slowly
WEIGHTS = dict.fromkeys(NATURAL, 5) | {
    "group_yes_no": 20,
    "group_list": 12,
    "group_count": 10,
    "at_place": 10,
    "where_yes_no": 10,
    "relation_yes_no": 14,
    "either_or": 8,
    "beside": 12,
    "background_yes_no": 7,
    "absent": 9,
    "cannot_tell": 8,
    "follow_up": 12,
}
PLAIN_SHARE, SLOPPY_SHARE = 0.4, 0.12  # of the questions are of the first ten kinds; are typed sloppily


def talk(scene: Scene, rng, count: int = 10, but: Collection[str] = ()) -> list[Turn]:
    """About `count` questions of all kinds `but` some, in random order, and their answers."""
    plain = round(PLAIN_SHARE * count)
    weights = {kind: weight for kind, weight in WEIGHTS.items() if kind not in but}
    asked = [
        replace(one, text=sloppy(one.text, rng)) if rng.random() < SLOPPY_SHARE else one
        for one in natural_questions(scene, rng, count - plain, kinds=weights)
    ]
    turns = []
    for one in shuffled(rng, asked + questions(scene, rng, plain, short=SHORT_SHARE)):
        turns += [*getattr(one, "before", ()), *one.turns()]
    return turns


def small_talk(rng, wordings: dict, count: int = 3) -> list[Turn]:
    """A few greetings and thanks, and what is said to them."""
    said = [
        (text, wordings["replies"][short])
        for short, texts in wordings["training"]["small talk"].items()
        for text in texts
    ]
    return [
        turn
        for pair in (pick(rng, said) for _ in range(count))
        for turn in zip(("user", "assistant"), pair, strict=True)
    ]
