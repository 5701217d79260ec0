"""Groups and other words for several names: is there an animal, which ones, how many, where."""

from collections.abc import Iterator

from minillava.data.facts import NUMBERS, PLACE_PHRASE, Facts, a, plural, sentence
from minillava.data.groups import COLLECTIVE, MASS, MEMBERS
from minillava.data.natural.asking import Asker, NaturalQuestion, forms, none_of, which, yes_no
from minillava.data.scenes import GROUP_OF


def group_yes_no(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for word in ask.shuffled(facts.words()):
        for yes in ask.shuffled((True, False)):
            asked = word if yes else facts.absent_word(ask)
            answer = facts.there_is(facts.members(asked)) if yes else f"there is no {asked}"
            yield yes_no("group_yes_no", ask("group_yes_no", **forms(asked)), yes, answer)


def _group_or_none(facts: Facts, ask: Asker) -> Iterator[str]:
    """The words for several names that fit what is there, and now and then one that does not."""
    for word in ask.shuffled([word for word in facts.words() if word in COLLECTIVE]):
        yield facts.absent_word(ask, COLLECTIVE) if ask.random() < 0.2 else word


def group_list(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for word in _group_or_none(facts, ask):
        members = facts.members(word)
        answer = facts.there_is(members) if members else none_of(word)
        key = "group_list_mass" if word in MASS else "group_list"
        yield which("group_list", ask(key, **forms(word)), sentence(answer), members)


def group_count(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for word in _group_or_none(facts, ask):
        if word in MASS:
            continue
        members, total = facts.members(word), sum(facts.members(word).values())
        many = f"There {'is' if total == 1 else 'are'} {NUMBERS[total]} {word if total == 1 else plural(word)}"
        answer = f"{many}: {facts.listing(members)}." if members else sentence(none_of(word))
        yield NaturalQuestion(
            "group_count", ask("group_count", **forms(word)), answer, NUMBERS[total], reads="count_of"
        )


def group_where(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for word in ask.shuffled(facts.words()):
        if place := facts.place_of(*facts.members(word)):
            name = next(iter(facts.members(word)))
            answer = f"The {name} is {PLACE_PHRASE[place]}."
            yield NaturalQuestion("group_where", ask("group_where", name=word), answer, place, reads="where")


def group_of(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    """Facts that need no look: a cat is an animal."""
    for name in ask.shuffled(facts.count):
        group = GROUP_OF[name]
        words = dict(name=name, thing=a(name))
        if ask.random() < 0.3:
            text = ask("group_of_open", **words)
            yield NaturalQuestion("group_of", text, f"The {name} is {a(group)}.", group, reads="group_word")
            continue
        yes = ask.random() < 0.5
        asked = ask.pick(
            [word for word in COLLECTIVE if (name in MEMBERS[word]) == yes and facts.is_clear(word)] or [group]
        )
        yes = name in MEMBERS[asked]
        yield yes_no(
            "group_of", ask("group_of", **(words | {"a": a(asked)})), yes, f"the {name} is {a(asked if yes else group)}"
        )
