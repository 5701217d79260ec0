"""The questions that people ask beyond the first ten kinds: groups, places, comparisons, follow-ups, what is not there
and what no picture tells. A kind is a function of the scene's facts; how it is asked stands in wordings.py.
"""

from collections.abc import Iterator

from minillava.data import wordings
from minillava.data.asking import Asker, Question
from minillava.data.facts import (
    NUMBERS,
    PATTERN_WORD,
    PLACE_PHRASE,
    Facts,
    a,
    joined,
    names_text,
    plural,
    swap,
    the,
    there,
)
from minillava.data.groups import COLLECTIVE, COLOR_OF, MASS, MEMBERS, SEVERAL
from minillava.data.scenes import COLOR_NAMES, GROUP_OF, NAMES, OPPOSITE, PATTERNS, PLACES, Thing, relation


def yes_no(kind: str, text: str, yes: bool, answer: str, **more) -> Question:
    """A question whose answer begins with yes or no, and is judged by it."""
    return Question(kind, text, f"{'Yes' if yes else 'No'}, {answer}.", "yes" if yes else "no", reads="yes_no", **more)


def which(kind: str, text: str, answer: str, found, **more) -> Question:
    """A question whose answer names things, or says that there is nothing."""
    return Question(kind, text, answer, names_text(found) or "nothing", reads="names", **more)


def _forms(word: str) -> dict[str, str]:
    return {"a": a(word), "many": plural(word), "name": word}


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def none_of(word: str) -> str:
    return f"there is no {word}" if word in MASS else f"there are no {plural(word)}"


# ---- Groups: words for several names


def group_yes_no(facts: Facts, ask: Asker) -> Iterator[Question]:
    for word in ask.shuffled(facts.words()):
        for yes in ask.shuffled((True, False)):
            asked = word if yes else facts.absent_word(ask)
            answer = facts.there_is(facts.members(asked)) if yes else f"there is no {asked}"
            yield yes_no("group_yes_no", ask("group_yes_no", **_forms(asked)), yes, answer)


def _group_or_none(facts: Facts, ask: Asker) -> Iterator[str]:
    """The words for several names that fit what is there, and now and then one that does not."""
    for word in ask.shuffled([word for word in facts.words() if word in COLLECTIVE]):
        yield facts.absent_word(ask, COLLECTIVE) if ask.random() < 0.2 else word


def group_list(facts: Facts, ask: Asker) -> Iterator[Question]:
    for word in _group_or_none(facts, ask):
        members = facts.members(word)
        answer = facts.there_is(members) if members else none_of(word)
        key = "group_list_mass" if word in MASS else "group_list"
        yield which("group_list", ask(key, **_forms(word)), _capital(answer), members)


def group_count(facts: Facts, ask: Asker) -> Iterator[Question]:
    for word in _group_or_none(facts, ask):
        if word in MASS:
            continue
        members, total = facts.members(word), sum(facts.members(word).values())
        many = f"There {'is' if total == 1 else 'are'} {NUMBERS[total]} {word if total == 1 else plural(word)}"
        answer = f"{many}: {facts.listing(members)}." if members else _capital(none_of(word))
        yield Question("group_count", ask("group_count", **_forms(word)), answer, NUMBERS[total], reads="count_of")


def group_where(facts: Facts, ask: Asker) -> Iterator[Question]:
    for word in ask.shuffled(facts.words()):
        if place := facts.place_of(*facts.members(word)):
            name = next(iter(facts.members(word)))
            answer = f"The {name} is {PLACE_PHRASE[place]}."
            yield Question("group_where", ask("group_where", name=word), answer, place, reads="where")


def group_of(facts: Facts, ask: Asker) -> Iterator[Question]:
    """Facts that need no look: a cat is an animal."""
    for name in ask.shuffled(facts.count):
        group = GROUP_OF[name]
        words = dict(name=name, thing=a(name))
        if ask.random() < 0.3:
            text = ask("group_of_open", **words)
            yield Question("group_of", text, f"The {name} is {a(group)}.", group, reads="group_word")
            continue
        yes = ask.random() < 0.5
        asked = ask.pick(
            [word for word in COLLECTIVE if (name in MEMBERS[word]) == yes and facts.is_clear(word)] or [group]
        )
        yes = name in MEMBERS[asked]
        yield yes_no(
            "group_of", ask("group_of", **(words | {"a": a(asked)})), yes, f"the {name} is {a(asked if yes else group)}"
        )


# ---- Places and relations


def at_place(facts: Facts, ask: Asker) -> Iterator[Question]:
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
            yield which("at_place", ask("at_place", where=where), _capital(answer), names)


def _subject(names) -> str:
    """'the cat is', 'the cat and the dog are', 'there is nothing'."""
    names = list(names)
    if not names:
        return "there is nothing"
    return f"{joined([the(name) for name in names])} {'is' if len(names) == 1 else 'are'}"


def where_yes_no(facts: Facts, ask: Asker) -> Iterator[Question]:
    for thing in ask.shuffled(facts.single):
        if place := facts.place(thing):
            for yes in ask.shuffled((True, False)):
                asked = ask.pick(_sides(place) if yes else _elsewhere(place))
                text = ask("where_yes_no", name=thing.name, thing=a(thing.name), where=PLACE_PHRASE[asked])
                yield yes_no("where_yes_no", text, yes, f"the {thing.name} is {PLACE_PHRASE[place]}")


def _sides(place: str) -> list[str]:
    """The place itself, and the sides that a corner belongs to."""
    return list(dict.fromkeys([place, place, *place.split()]))


def _elsewhere(place: str) -> list[str]:
    """Places of which one cannot say that they are the same, more or less exactly told."""
    words = set(place.split())
    return [other for other in PLACES if not (words <= set(other.split()) or set(other.split()) <= words)]


def relation_yes_no(facts: Facts, ask: Asker) -> Iterator[Question]:
    for pair in ask.shuffled(facts.relations()):
        for yes in ask.shuffled((True, False)):
            one, rel, other = swap(pair, ask)
            asked = ask.pick(wordings.REL_WORDS[rel if yes else OPPOSITE[rel]])
            text = ask("relation_yes_no", name=one.name, thing=a(one.name), rel=asked, other=other.name)
            yield yes_no("relation_yes_no", text, yes, f"the {one.name} is {rel} the {other.name}")


def either_or(facts: Facts, ask: Asker) -> Iterator[Question]:
    makers = [
        maker(facts, ask) for maker in (_either_relation, _either_place, _either_color, _either_count, _either_name)
    ]
    while makers:
        maker = ask.pick(makers)
        if (question := next(maker, None)) is None:
            makers.remove(maker)
        else:
            yield question


def _either_relation(facts: Facts, ask: Asker) -> Iterator[Question]:
    for pair in ask.shuffled(facts.relations()):
        one, rel, other = swap(pair, ask)
        first, second = ask.shuffled((rel, OPPOSITE[rel]))
        first = first.removesuffix(" of") if ask.random() < 0.5 else first
        text = ask("either_relation", name=one.name, rel=first, opposite=second, other=other.name)
        yield Question("either_or", text, f"The {one.name} is {rel} the {other.name}.", rel, reads="relation")


def _either_place(facts: Facts, ask: Asker) -> Iterator[Question]:
    for thing in ask.shuffled(facts.single):
        if place := facts.place(thing):
            first, second = ask.shuffled((place, ask.pick(_elsewhere(place))))
            text = ask("either_place", name=thing.name, where=PLACE_PHRASE[first], elsewhere=PLACE_PHRASE[second])
            yield Question("either_or", text, f"The {thing.name} is {PLACE_PHRASE[place]}.", place, reads="where")


def _either_color(facts: Facts, ask: Asker) -> Iterator[Question]:
    color = facts.scene.color
    first, second = ask.shuffled((color, ask.other(color, COLOR_NAMES)))
    text = ask("either_color", color=first, wrong=second, a_color=a(first), a_wrong=a(second))
    yield Question("either_or", text, f"The background is {color}.", color, reads="color")


def _either_count(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name, count in ask.shuffled(facts.count.items()):
        first, second = ask.shuffled((count, ask.pick([n for n in range(1, 6) if n != count])))
        text = ask("either_count", number=NUMBERS[first], wrong=NUMBERS[second], many=plural(name))
        yield Question("either_or", text, _capital(facts.there_is({name: count})), NUMBERS[count], reads="count_of")


def _either_name(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name in ask.shuffled(facts.count):
        first, second = ask.shuffled((name, facts.absent(ask, hard=ask.random() < 0.5)))
        answer = _capital(facts.there_is({name: facts.count[name]}))
        yield which("either_or", ask("either_name", a=a(first), b=a(second)), answer, (name,))


def beside(facts: Facts, ask: Asker) -> Iterator[Question]:
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
                text = ask("beside", rel=ask.pick(wordings.REL_WORDS[rel]), name=thing.name)
                yield which("beside", text, _capital(f"{_subject(names)} {rel} the {thing.name}"), names)


def nearest(facts: Facts, ask: Asker) -> Iterator[Question]:
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


# ---- Colours and patterns


def background_yes_no(facts: Facts, ask: Asker) -> Iterator[Question]:
    color = facts.scene.color
    for yes in ask.shuffled((True, False)):
        asked = color if yes else ask.other(color, COLOR_NAMES)
        text = ask("background_yes_no", color=asked, a_color=a(asked))
        yield yes_no("background_yes_no", text, yes, f"the background is {color}")


def pattern(facts: Facts, ask: Asker) -> Iterator[Question]:
    word = PATTERN_WORD[facts.scene.pattern]
    if ask.random() < 0.5:
        yield Question("pattern", ask("pattern"), f"The background is {word}.", word, reads="pattern")
    else:
        yes = ask.random() < 0.5
        asked = word if yes else PATTERN_WORD[ask.other(facts.scene.pattern, PATTERNS)]
        yield yes_no("pattern", ask("pattern_yes_no", pattern=asked), yes, f"the background is {word}")


def color_of(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name in ask.shuffled(facts.count):
        color = COLOR_OF[name]
        verb = "has" if color == SEVERAL else "is"
        if color not in COLOR_NAMES or ask.random() < 0.6:
            answer = f"The {name} {verb} {color}."
            yield Question("color_of", ask("color_of", name=name), answer, color, reads="thing_color")
        else:
            yes = ask.random() < 0.5
            asked = color if yes else ask.other(color, COLOR_NAMES)
            text = ask("color_of_yes_no", name=name, color=asked, a_color=a(asked))
            yield yes_no("color_of", text, yes, f"the {name} is {color}")


# ---- Numbers and sizes


def more(facts: Facts, ask: Asker) -> Iterator[Question]:
    """Yes/no, or which of the two; now and then there are as many of both."""
    for one, other in zip(ask.shuffled(facts.count), ask.shuffled(facts.count)):
        if one == other or (facts.count[one] == facts.count[other] and ask.random() < 0.97):
            continue
        more_, fewer = sorted((one, other), key=lambda name: -facts.count[name])
        answer = facts.there_is({more_: facts.count[more_], fewer: facts.count[fewer]})
        if facts.count[one] == facts.count[other]:
            yield yes_no("more", ask("more", many=plural(one), others=plural(other)), False, answer)
        elif ask.random() < 0.3:
            first, second = ask.shuffled((one, other))
            text = ask("more_open", many=plural(first), others=plural(second))
            yield which("more", text, f"There are more {plural(more_)}.", (more_,))
        else:
            yes = ask.random() < 0.5
            first, second = (more_, fewer) if yes else (fewer, more_)
            yield yes_no("more", ask("more", many=plural(first), others=plural(second)), yes, answer)


def count_yes_no(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name, count in ask.shuffled(facts.count.items()):
        for yes in ask.shuffled((True, False)):
            asked = count if yes else ask.pick([n for n in range(2, 6) if n != count and abs(n - count) <= 2])
            if count > 1 or (not yes and ask.random() < 0.15):  # or nearly all answers would be no
                text = ask("count_yes_no", number=NUMBERS[asked], many=plural(name))
                yield yes_no("count_yes_no", text, yes, facts.there_is({name: count}))


def bigger(facts: Facts, ask: Asker) -> Iterator[Question]:
    for big, small in ask.shuffled(facts.clear_sizes()):
        answer = f"the {big} is bigger than the {small}"
        if ask.random() < 0.4:
            first, second = ask.shuffled((big, small))
            yield which("bigger", ask("bigger_open", name=first, other=second), _capital(answer), (big,))
        else:
            yes = ask.random() < 0.5
            first, second = (big, small) if yes else (small, big)
            yield yes_no("bigger", ask("bigger", name=first, other=second), yes, answer)


def biggest(facts: Facts, ask: Asker) -> Iterator[Question]:
    for key, name in ask.shuffled(facts.extremes()):
        yield which("biggest", ask(key), f"The {name} is the {key}.", (name,))


# ---- Only, besides, both


def only(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name in ask.shuffled(facts.count)[: 1 if len(facts.count) > 1 else None]:
        if len(facts.things) == 1:
            yield yes_no("only", ask("only", a=a(name), name=name), True, f"there is only {a(name)}")
        elif ask.random() < 0.5 and facts.count[name] == 1:
            yield yes_no("only", ask("only", a=a(name), name=name), False, _also(facts, name))


def _also(facts: Facts, name: str) -> str:
    others = {other: count for other, count in facts.count.items() if other != name}
    return f"{there(next(iter(others.values())))} also {facts.listing(others)}"


def besides(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name in ask.shuffled(facts.count):
        if facts.count[name] > 1:
            continue
        others = [other for other in facts.count if other != name]
        answer = _also(facts, name) if others else f"there is only {a(name)}"
        if ask.random() < (0.7 if not others else 0.3):
            yield yes_no("besides", ask("besides_yes_no", name=name), bool(others), answer)
        else:
            text = ask("besides", name=name)
            if others:
                yield which("besides", text, _capital(answer), others)
            else:
                yield which("besides", text, f"There is nothing besides the {name}.", ())


def both(facts: Facts, ask: Asker) -> Iterator[Question]:
    for name in ask.shuffled(facts.count):
        yes = ask.random() < 0.6 and len(facts.count) > 1
        if len(facts.count) == 1 and ask.random() < 0.7:
            continue
        other = ask.other(name, facts.count) if yes else facts.absent(ask, hard=ask.random() < 0.5)
        first, second = ask.shuffled((name, other))
        text = ask("both", a=a(first), b=a(second))
        if yes:
            answer = facts.there_is({each: facts.count[each] for each in (first, second)})
        else:
            answer = f"{facts.there_is({name: facts.count[name]})}, but no {other}"
        yield yes_no("both", text, yes, answer)


# ---- What is not there, and what no picture tells


def absent(facts: Facts, ask: Asker) -> Iterator[Question]:
    """Whatever is asked about a thing that is not there: first of all, it is not."""
    for _ in range(3):
        unseen = ask.random() < 0.3
        name = ask.noun() if unseen else facts.absent(ask, hard=ask.random() < 0.5)
        rel = ask.pick(wordings.REL_WORDS[ask.pick(list(OPPOSITE))])
        words = dict(
            name=name, a=a(name), rel=rel, where=PLACE_PHRASE[ask.pick(PLACES)], other=ask.pick(list(facts.count))
        )
        yield Question("absent", ask("absent", **words), f"There is no {name}.", "no", reads="yes_no")


def unknown(facts: Facts, ask: Asker) -> Iterator[Question]:
    for _ in range(3):
        noun = ask.noun()
        if ask.random() < 0.2:
            text = ask("unknown_count", many=plural(noun))
            yield Question("unknown", text, _capital(none_of(noun)), "no", reads="yes_no")
        else:
            yield yes_no("unknown", ask("unknown", a=a(noun), many=plural(noun)), False, f"there is no {noun}")


def cannot_tell(facts: Facts, ask: Asker) -> Iterator[Question]:
    for text in ask.shuffled(ask.untold)[:3]:
        name = ask.pick(list(facts.count))
        words = dict(
            name=name,
            a=a(name),
            many=plural(ask.pick(NAMES)),
            digit=1 + int(9 * ask.random()),
            country=ask.pick(ask.countries),
        )
        yield Question("cannot_tell", text.format(**words), wordings.CANNOT_TELL, "cannot tell", reads="said")


def small_talk(facts: Facts, ask: Asker) -> Iterator[Question]:
    said = {wordings.HELLO: "hello", wordings.NAME: "minillava", wordings.WELCOME: "welcome", wordings.BYE: "bye"}
    for text, answer in ask.shuffled(ask.small_talk.items())[:2]:
        yield Question("small_talk", text, answer, said[answer], reads="said")


# ---- Follow-ups: questions that mean something only after the one before


def follow_up(facts: Facts, ask: Asker) -> Iterator[Question]:
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


def _where_is_it(facts: Facts, ask: Asker) -> Iterator[Question]:
    for thing in ask.shuffled(facts.single)[:1]:
        if place := facts.place(thing):
            answer = f"The {thing.name} is {PLACE_PHRASE[place]}."
            before = _exists(facts, ask, thing.name)
            yield Question("follow_up", ask("where_is_it"), answer, place, reads="where", before=before)
    if ask.random() < 0.3:
        name = facts.absent(ask, hard=True)
        before = _exists(facts, ask, name)
        yield Question("follow_up", ask("where_is_it"), f"There is no {name}.", "no", reads="yes_no", before=before)


def _and_another(facts: Facts, ask: Asker) -> Iterator[Question]:
    name, yes = ask.pick(list(facts.count)), ask.random() < 0.5
    first = facts.absent(ask, hard=False) if yes or len(facts.count) == 1 else ask.pick(list(facts.count))
    second = name if yes else facts.absent(ask, hard=ask.random() < 0.5, but=(first,))
    answer = facts.there_is({second: facts.count[second]}) if yes else f"there is no {second}"
    yield yes_no("follow_up", ask("and_a", a=a(second)), yes, answer, before=_exists(facts, ask, first))


def _and_the_other(facts: Facts, ask: Asker) -> Iterator[Question]:
    placed = [
        (thing.name, PLACE_PHRASE[facts.place(thing)], facts.place(thing))
        for thing in facts.single
        if facts.place(thing)
    ]
    if len(placed) > 1:
        (one, where, _), (other, elsewhere, place) = ask.shuffled(placed)[:2]
        before = [("user", ask("where", name=one)), ("assistant", f"The {one} is {where}.")]
        answer = f"The {other} is {elsewhere}."
        yield Question("follow_up", ask("and_the", name=other), answer, place, reads="where", before=before)


def _and_how_many(facts: Facts, ask: Asker) -> Iterator[Question]:
    names = ask.shuffled(facts.count)
    first = names[0] if len(names) > 1 else facts.absent(ask, hard=True)
    second = names[-1] if ask.random() < 0.75 else facts.absent(ask, hard=True, but=(first,))
    before = [("user", ask("count_of", many=plural(first))), ("assistant", facts.count_sentence(first))]
    number = NUMBERS[facts.count.get(second, 0)]
    text = ask("and_many", many=plural(second))
    yield Question("follow_up", text, facts.count_sentence(second), number, reads="count_of", before=before)


def _how_many_of_it(facts: Facts, ask: Asker) -> Iterator[Question]:
    """After "are there any cats", whose answer does not count them."""
    name = ask.pick(list(facts.count))
    before = [("user", f"Are there any {plural(name)}?"), ("assistant", "Yes.")]
    number = NUMBERS[facts.count[name]]
    yield Question(
        "follow_up", ask("how_many_of_it"), facts.count_sentence(name), number, reads="count_of", before=before
    )


def _how_many_things(facts: Facts, ask: Asker) -> Iterator[Question]:
    before = [("user", ask("list")), ("assistant", _capital(facts.there_is(facts.count)))]
    total = len(facts.things)
    answer = "There is one object." if total == 1 else f"There are {NUMBERS[total]} objects."
    yield Question("follow_up", ask("how_many_things"), answer, NUMBERS[total], reads="count", before=before)


def _is_it(facts: Facts, ask: Asker) -> Iterator[Question]:
    for thing in ask.shuffled(facts.single)[:1]:
        if place := facts.place(thing):
            yes = ask.random() < 0.5
            asked = ask.pick(_sides(place) if yes else _elsewhere(place))
            text = ask("is_it_place", where=PLACE_PHRASE[asked])
            before = _exists(facts, ask, thing.name)
            yield yes_no("follow_up", text, yes, f"the {thing.name} is {PLACE_PHRASE[place]}", before=before)


def _sure(facts: Facts, ask: Asker) -> Iterator[Question]:
    if ask.random() < 0.3:
        before = _exists(facts, ask, ask.pick(list(facts.count)))
        yield Question("follow_up", ask("sure"), wordings.SURE, "what i see", reads="said", before=before)


NATURAL = {
    "group_yes_no": (group_yes_no, 20),
    "group_list": (group_list, 12),
    "group_count": (group_count, 10),
    "group_where": (group_where, 4),
    "group_of": (group_of, 6),
    "at_place": (at_place, 10),
    "where_yes_no": (where_yes_no, 10),
    "relation_yes_no": (relation_yes_no, 14),
    "either_or": (either_or, 8),
    "beside": (beside, 12),
    "nearest": (nearest, 6),
    "background_yes_no": (background_yes_no, 7),
    "pattern": (pattern, 4),
    "color_of": (color_of, 5),
    "more": (more, 6),
    "count_yes_no": (count_yes_no, 4),
    "bigger": (bigger, 6),
    "biggest": (biggest, 4),
    "only": (only, 5),
    "besides": (besides, 5),
    "both": (both, 5),
    "absent": (absent, 9),
    "unknown": (unknown, 5),
    "cannot_tell": (cannot_tell, 8),
    "small_talk": (small_talk, 4),
    "follow_up": (follow_up, 12),
}
