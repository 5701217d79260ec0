"""Questions that mean something only after the one before."""

from collections.abc import Iterator

from minillava.data.facts import NUMBERS, PLACE_PHRASE, Facts, a, plural, sentence
from minillava.data.natural.asking import Asker, NaturalQuestion, yes_no
from minillava.data.natural.of_places import elsewhere, sides


def follow_up(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    makers = (
        _where_is_it,
        _and_another,
        _and_the_other,
        _and_how_many,
        _how_many_of_it,
        _how_many_things,
        _is_it,
        _sure,
    )
    for maker in ask.shuffled(makers):
        yield from maker(facts, ask)


def _exists(facts: Facts, ask: Asker, name: str) -> list:
    is_there = (
        f"Yes, {facts.there_is({name: facts.count[name]})}." if name in facts.count else f"No, there is no {name}."
    )
    return [("user", ask("existence", a=a(name), many=plural(name))), ("assistant", is_there)]


def _where_is_it(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for thing in ask.shuffled(facts.single)[:1]:
        if place := facts.place(thing):
            answer = f"The {thing.name} is {PLACE_PHRASE[place]}."
            before = _exists(facts, ask, thing.name)
            yield NaturalQuestion("follow_up", ask("where_is_it"), answer, place, reads="where", before=before)
    if ask.random() < 0.3:
        name = facts.absent(ask, hard=True)
        before = _exists(facts, ask, name)
        yield NaturalQuestion(
            "follow_up", ask("where_is_it"), f"There is no {name}.", "no", reads="yes_no", before=before
        )


def _and_another(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    name, yes = ask.pick(list(facts.count)), ask.random() < 0.5
    first = facts.absent(ask, hard=False) if yes or len(facts.count) == 1 else ask.pick(list(facts.count))
    second = name if yes else facts.absent(ask, hard=ask.random() < 0.5, but=(first,))
    answer = facts.there_is({second: facts.count[second]}) if yes else f"there is no {second}"
    yield yes_no("follow_up", ask("and_a", a=a(second)), yes, answer, before=_exists(facts, ask, first))


def _and_the_other(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    placed = [
        (thing.name, PLACE_PHRASE[facts.place(thing)], facts.place(thing))
        for thing in facts.single
        if facts.place(thing)
    ]
    if len(placed) > 1:
        (one, where, _), (other, elsewhere, place) = ask.shuffled(placed)[:2]
        before = [("user", ask("where", name=one)), ("assistant", f"The {one} is {where}.")]
        answer = f"The {other} is {elsewhere}."
        yield NaturalQuestion("follow_up", ask("and_the", name=other), answer, place, reads="where", before=before)


def _and_how_many(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    names = ask.shuffled(facts.count)
    first = names[0] if len(names) > 1 else facts.absent(ask, hard=True)
    second = names[-1] if ask.random() < 0.75 else facts.absent(ask, hard=True, but=(first,))
    before = [("user", ask("count_of", many=plural(first))), ("assistant", facts.count_sentence(first))]
    number = NUMBERS[facts.count.get(second, 0)]
    text = ask("and_many", many=plural(second))
    yield NaturalQuestion("follow_up", text, facts.count_sentence(second), number, reads="count_of", before=before)


def _how_many_of_it(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    """After "are there any cats", whose answer does not count them."""
    name = ask.pick(list(facts.count))
    before = [("user", f"Are there any {plural(name)}?"), ("assistant", "Yes.")]
    number = NUMBERS[facts.count[name]]
    yield NaturalQuestion(
        "follow_up", ask("how_many_of_it"), facts.count_sentence(name), number, reads="count_of", before=before
    )


def _how_many_things(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    before = [("user", ask("list")), ("assistant", sentence(facts.there_is(facts.count)))]
    total = len(facts.things)
    answer = "There is one object." if total == 1 else f"There are {NUMBERS[total]} objects."
    yield NaturalQuestion("follow_up", ask("how_many_things"), answer, NUMBERS[total], reads="count", before=before)


def _is_it(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for thing in ask.shuffled(facts.single)[:1]:
        if place := facts.place(thing):
            yes = ask.random() < 0.5
            asked = ask.pick(sides(place) if yes else elsewhere(place))
            text = ask("is_it_place", where=PLACE_PHRASE[asked])
            before = _exists(facts, ask, thing.name)
            yield yes_no("follow_up", text, yes, f"the {thing.name} is {PLACE_PHRASE[place]}", before=before)


def _sure(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    if ask.random() < 0.3:
        before = _exists(facts, ask, ask.pick(list(facts.count)))
        yield NaturalQuestion(
            "follow_up", ask("sure"), "That is what I see.", "what i see", reads="said", before=before
        )
