"""The offline teacher: rules that know a scene's truth and write about it, in the form in which a language model would.

It needs no model and no network, and what it writes is true by construction: data for laptops, lessons and tests.
"""

from collections import Counter

import numpy as np

from minillava.data.facts import (
    NUMBERS,
    PLACE_PHRASE,
    Facts,
    a,
    counted,
    joined,
    pick,
    plural,
    sentence,
    shuffled,
    swap,
)
from minillava.data.instruct.replies import Pair, write_pairs
from minillava.data.instruct.teacher import Reply, Request
from minillava.data.questions import questions
from minillava.data.scenes import GROUP_OF, GROUPS
from minillava.errors import UserError

# the kinds of question of a conversation
TALKED_OF = {"existence", "count_of", "count", "where", "relation", "color", "group", "list"}


class RuleTeacher:
    """Writes of scenes alone; the same request gives the same text."""

    name, concurrency = "rules", 1

    def write(self, request: Request) -> Reply:
        scene = request.picture.scene
        if scene is None:
            raise UserError(
                "The rule teacher knows the tiny world alone: --source scenes; for other pictures choose --teacher openai or a folder."
            )
        return Reply(_WRITERS[request.kind](Facts(scene), np.random.default_rng(request.seed)))

    def stop(self) -> None:
        """There is nothing to wait for."""


def _conversation(facts: Facts, rng) -> str:
    """Three to five questions on what is there, how many, where and in what colour."""
    asked = [question for question in questions(facts.scene, rng, 12) if question.kind in TALKED_OF]
    return write_pairs([(one.text, one.answer) for one in asked[: 3 + int(rng.random() * 3)]])


def _detail(facts: Facts, rng) -> str:
    """Everything: what there is, on what background, where each thing is, and what lies where relative to what."""
    total, look = len(facts.things), facts.background(rng)
    openings = (
        f"the picture shows {facts.listing()} on {a(look)} background",
        f"on {a(look)} background {facts.there_listing()}",
    )
    told = [sentence(pick(rng, openings))]
    if total > 1 and rng.random() < 0.6:
        told.append(f"There are {NUMBERS[total]} objects.")
    placed = [(thing, PLACE_PHRASE[facts.place(thing)]) for thing in shuffled(rng, facts.single) if facts.place(thing)]
    for thing, place in placed[:3]:
        told.append(pick(rng, (f"The {thing.name} is {place}.", sentence(f"{place} is the {thing.name}"))))
    for one, rel, other in (swap(pair, rng) for pair in shuffled(rng, facts.relations())[:2]):
        seen_from = f"Seen from the {other.name}, the {one.name} is {rel.removesuffix(' of')}."
        told.append(pick(rng, (f"The {one.name} is {rel} the {other.name}.", seen_from)))
    groups = Counter(GROUP_OF[thing.name] for thing in facts.things)
    kinds = joined(["food" if group == "food" else counted(group, count) for group, count in groups.items()])
    told.append(pick(rng, (f"So one can see {kinds} here.", f"Taken together, that is {kinds}.")))
    return " ".join(told)


def _reasoning(facts: Facts, rng) -> str:
    """One question that needs a step from what is seen to what follows, and the answer with its reason."""
    known = [
        (one.text, one.answer + _why(facts, one.short))
        for one in questions(facts.scene, rng, 40)
        if one.kind == "reasoning"
    ]
    if known and rng.random() < 0.7:
        return write_pairs([pick(rng, known)])
    made = [maker(facts, rng) for maker in (_most, _difference, _any_of, _walk)]
    return write_pairs([pick(rng, [pair for pair in made if pair])])


def _why(facts: Facts, name: str) -> str:
    others = [other for other in facts.count if other != name]
    if not others:
        return f" The {name} is the only thing in the picture, so there is nothing else to choose from."
    verb = "is" if len(others) == 1 and facts.count[others[0]] == 1 else "are"
    return (
        f" The other things in the picture {verb} {joined([counted(other, facts.count[other]) for other in others])}."
    )


def _most(facts: Facts, rng) -> Pair | None:
    groups = Counter(GROUP_OF[thing.name] for thing in facts.things)
    ranked = groups.most_common()
    if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
        return None
    group = ranked[0][0]
    members = joined([counted(name, count) for name, count in facts.count.items() if GROUP_OF[name] == group])
    other = joined([counted(name, count) for name, count in facts.count.items() if GROUP_OF[name] != group])
    more = "is more food" if group == "food" else f"are more {plural(group)}"
    question = pick(
        rng,
        (
            "What kind of thing is there most of, and how can you tell?",
            "Which kind of thing is the most frequent here, and why?",
        ),
    )
    return question, f"There {more} than anything else, because the picture shows {members}, and besides only {other}."


def _difference(facts: Facts, rng) -> Pair | None:
    many = [name for name, count in facts.count.items() if count > 1]
    if not many or len(facts.count) < 2:
        return None
    name = pick(rng, many)
    other = pick(rng, [other for other in facts.count if other != name])
    more, fewer = facts.count[name], facts.count[other]
    if more <= fewer:
        return None
    question = f"Are there more {plural(name)} than {plural(other)}, and how many more?"
    few = f"only {NUMBERS[fewer]} {other if fewer == 1 else plural(other)}"
    return (
        question,
        f"Yes, there are {NUMBERS[more]} {plural(name)} and {few}, so there are {NUMBERS[more - fewer]} more {plural(name)}.",
    )


def _any_of(facts: Facts, rng) -> Pair:
    """Whether there is a thing of a group, with the reason; half of the questions are answered no."""
    clear = ("animal", "food", "vehicle", "plant", "musical instrument", "building")
    shown = [group for group in clear if group in facts.groups]
    hidden = [group for group in clear if group not in facts.groups]
    if shown and (rng.random() < 0.5 or not hidden):
        group = pick(rng, shown)
        names = joined([counted(name, count) for name, count in facts.count.items() if name in GROUPS[group]])
        many = sum(count for name, count in facts.count.items() if name in GROUPS[group]) > 1
        what = group if group == "food" else plural(group) if many else a(group)
        return _group_question(
            group, rng
        ), f"Yes, the picture shows {names}, and {'they are' if many else 'that is'} {what}."
    group = pick(rng, hidden)
    return _group_question(group, rng), f"No, the picture shows {facts.listing()}, and none of this is {a(group)}."


def _group_question(group: str, rng) -> str:
    forms = (
        "Is there {group} in the picture, and why do you think so?",
        "Would you say that {group} is shown, and for what reason?",
    )
    return pick(rng, forms).format(group=a(group))


def _walk(facts: Facts, rng) -> Pair | None:
    relations = facts.relations()
    if not relations:
        return None
    one, rel, other = swap(pick(rng, relations), rng)
    way = {"to the left of": "right", "to the right of": "left", "above": "down", "below": "up"}[rel]
    question = f"In which direction would the {one.name} have to go to reach the {other.name}?"
    return question, f"It would have to go {way}, because the {one.name} is {rel} the {other.name} in the picture."


_WRITERS = {"conversation": _conversation, "detail": _detail, "reasoning": _reasoning}
