"""Places and relations: what is on the right, is the cat above the dog, above or below, what is nearest."""

from collections.abc import Iterator

from minillava.data.facts import NUMBERS, PLACE_PHRASE, Facts, a, joined, plural, sentence, swap, the
from minillava.data.natural.asking import RELATIONS, Asker, NaturalQuestion, which, yes_no
from minillava.data.scenes import COLOR_NAMES, OPPOSITE, PLACES, Thing, relation


def at_place(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    """What is on the right: what is in that ninth of the picture, or else on that side, or nothing."""
    for place in ask.shuffled(PLACES):
        names = facts.names_at(place)
        if names is None or (not names and ask.random() < 0.7):
            continue
        where = PLACE_PHRASE[place]
        answer = f"{_subject(names)} {PLACE_PHRASE[facts.place_of(*names) or place]}"
        if ask.random() < 0.3:
            yield yes_no("at_place", ask("at_place_yes_no", where=where), bool(names), answer)
        else:
            yield which("at_place", ask("at_place", where=where), sentence(answer), names)


def _subject(names) -> str:
    """'the cat is', 'the cat and the dog are', 'there is nothing'."""
    names = list(names)
    if not names:
        return "there is nothing"
    return f"{joined([the(name) for name in names])} {'is' if len(names) == 1 else 'are'}"


def where_yes_no(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for thing in ask.shuffled(facts.single):
        if place := facts.place(thing):
            for yes in ask.shuffled((True, False)):
                asked = ask.pick(sides(place) if yes else elsewhere(place))
                text = ask("where_yes_no", name=thing.name, thing=a(thing.name), where=PLACE_PHRASE[asked])
                yield yes_no("where_yes_no", text, yes, f"the {thing.name} is {PLACE_PHRASE[place]}")


def sides(place: str) -> list[str]:
    """The place itself, and the sides that a corner belongs to."""
    return list(dict.fromkeys([place, place, *place.split()]))


def elsewhere(place: str) -> list[str]:
    """Places of which one cannot say that they are the same, more or less exactly told."""
    words = set(place.split())
    return [other for other in PLACES if not (words <= set(other.split()) or set(other.split()) <= words)]


def relation_yes_no(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for pair in ask.shuffled(facts.relations()):
        for yes in ask.shuffled((True, False)):
            one, rel, other = swap(pair, ask)
            asked = ask.pick(RELATIONS[rel if yes else OPPOSITE[rel]])
            text = ask("relation_yes_no", name=one.name, thing=a(one.name), rel=asked, other=other.name)
            yield yes_no("relation_yes_no", text, yes, f"the {one.name} is {rel} the {other.name}")


def either_or(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    makers = [
        maker(facts, ask) for maker in (_either_relation, _either_place, _either_color, _either_count, _either_name)
    ]
    while makers:
        maker = ask.pick(makers)
        if (question := next(maker, None)) is None:
            makers.remove(maker)
        else:
            yield question


def _either_relation(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for pair in ask.shuffled(facts.relations()):
        one, rel, other = swap(pair, ask)
        first, second = ask.shuffled((rel, OPPOSITE[rel]))
        first = first.removesuffix(" of") if ask.random() < 0.5 else first
        text = ask("either_relation", name=one.name, rel=first, opposite=second, other=other.name)
        yield NaturalQuestion("either_or", text, f"The {one.name} is {rel} the {other.name}.", rel, reads="relation")


def _either_place(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for thing in ask.shuffled(facts.single):
        if place := facts.place(thing):
            first, second = ask.shuffled((place, ask.pick(elsewhere(place))))
            text = ask("either_place", name=thing.name, where=PLACE_PHRASE[first], elsewhere=PLACE_PHRASE[second])
            yield NaturalQuestion(
                "either_or", text, f"The {thing.name} is {PLACE_PHRASE[place]}.", place, reads="where"
            )


def _either_color(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    color = facts.scene.color
    first, second = ask.shuffled((color, ask.other(color, COLOR_NAMES)))
    text = ask("either_color", color=first, wrong=second, a_color=a(first), a_wrong=a(second))
    yield NaturalQuestion("either_or", text, f"The background is {color}.", color, reads="color")


def _either_count(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for name, count in ask.shuffled(facts.count.items()):
        first, second = ask.shuffled((count, ask.pick([n for n in range(1, 6) if n != count])))
        text = ask("either_count", number=NUMBERS[first], wrong=NUMBERS[second], many=plural(name))
        yield NaturalQuestion(
            "either_or", text, sentence(facts.there_is({name: count})), NUMBERS[count], reads="count_of"
        )


def _either_name(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for name in ask.shuffled(facts.count):
        first, second = ask.shuffled((name, facts.absent(ask, hard=ask.random() < 0.5)))
        answer = sentence(facts.there_is({name: facts.count[name]}))
        yield which("either_or", ask("either_name", a=a(first), b=a(second)), answer, (name,))


def beside(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    """What is to the left of the cat: all that is, or nothing; not asked where something is neither clearly."""
    for thing in ask.shuffled(facts.single):
        found: dict[str, list[str]] = {rel: [] for rel in OPPOSITE}
        for other in facts.things:
            if other is not thing:
                found.setdefault(relation(other, thing, facts.scene.size), []).append(other.name)
        if None in found:
            continue
        for rel, names in ask.shuffled(found.items()):
            if len(set(names)) == len(names) and (names or ask.random() < 0.07):
                text = ask("beside", rel=ask.pick(RELATIONS[rel]), name=thing.name)
                yield which("beside", text, sentence(f"{_subject(names)} {rel} the {thing.name}"), names)


def nearest(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for thing in ask.shuffled(facts.single):
        others = sorted(
            (other for other in facts.things if other is not thing), key=lambda other: _distance(thing, other)
        )
        if len(others) > 1 and _distance(thing, others[1]) > 1.35 * _distance(thing, others[0]):
            name = others[0].name
            yield which(
                "nearest", ask("nearest", name=thing.name), f"The {name} is nearest to the {thing.name}.", (name,)
            )


def _distance(one: Thing, other: Thing) -> float:
    return ((one.x - other.x) ** 2 + (one.y - other.y) ** 2) ** 0.5
