"""Colours, patterns, numbers and sizes; only, besides and both."""

from collections.abc import Iterator

from minillava.data.facts import NUMBERS, PATTERN_WORD, Facts, a, plural, sentence, there
from minillava.data.groups import COLOR_OF, SEVERAL
from minillava.data.natural.asking import Asker, NaturalQuestion, which, yes_no
from minillava.data.scenes import COLOR_NAMES, PATTERNS


def background_yes_no(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    color = facts.scene.color
    for yes in ask.shuffled((True, False)):
        asked = color if yes else ask.other(color, COLOR_NAMES)
        text = ask("background_yes_no", color=asked, a_color=a(asked))
        yield yes_no("background_yes_no", text, yes, f"the background is {color}")


def pattern(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    word = PATTERN_WORD[facts.scene.pattern]
    if ask.random() < 0.5:
        yield NaturalQuestion("pattern", ask("pattern"), f"The background is {word}.", word, reads="pattern")
    else:
        yes = ask.random() < 0.5
        asked = word if yes else PATTERN_WORD[ask.other(facts.scene.pattern, PATTERNS)]
        yield yes_no("pattern", ask("pattern_yes_no", pattern=asked), yes, f"the background is {word}")


def color_of(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for name in ask.shuffled(facts.count):
        color = COLOR_OF[name]
        verb = "has" if color == SEVERAL else "is"
        if color not in COLOR_NAMES or ask.random() < 0.6:
            answer = f"The {name} {verb} {color}."
            yield NaturalQuestion("color_of", ask("color_of", name=name), answer, color, reads="thing_color")
        else:
            yes = ask.random() < 0.5
            asked = color if yes else ask.other(color, COLOR_NAMES)
            text = ask("color_of_yes_no", name=name, color=asked, a_color=a(asked))
            yield yes_no("color_of", text, yes, f"the {name} is {color}")


def more(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
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


def count_yes_no(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for name, count in ask.shuffled(facts.count.items()):
        for yes in ask.shuffled((True, False)):
            asked = count if yes else ask.pick([n for n in range(2, 6) if n != count and abs(n - count) <= 2])
            if count > 1 or (not yes and ask.random() < 0.15):  # or nearly all answers would be no
                text = ask("count_yes_no", number=NUMBERS[asked], many=plural(name))
                yield yes_no("count_yes_no", text, yes, facts.there_is({name: count}))


def bigger(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for big, small in ask.shuffled(facts.clear_sizes()):
        answer = f"the {big} is bigger than the {small}"
        if ask.random() < 0.4:
            first, second = ask.shuffled((big, small))
            yield which("bigger", ask("bigger_open", name=first, other=second), sentence(answer), (big,))
        else:
            yes = ask.random() < 0.5
            first, second = (big, small) if yes else (small, big)
            yield yes_no("bigger", ask("bigger", name=first, other=second), yes, answer)


def biggest(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for key, name in ask.shuffled(facts.extremes()):
        yield which("biggest", ask(key), f"The {name} is the {key}.", (name,))


def only(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for name in ask.shuffled(facts.count)[: 1 if len(facts.count) > 1 else None]:
        if len(facts.things) == 1:
            yield yes_no("only", ask("only", a=a(name), name=name), True, f"there is only {a(name)}")
        elif ask.random() < 0.5 and facts.count[name] == 1:
            yield yes_no("only", ask("only", a=a(name), name=name), False, _also(facts, name))


def _also(facts: Facts, name: str) -> str:
    others = {other: count for other, count in facts.count.items() if other != name}
    return f"{there(next(iter(others.values())))} also {facts.listing(others)}"


def besides(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
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
                yield which("besides", text, sentence(answer), others)
            else:
                yield which("besides", text, f"There is nothing besides the {name}.", ())


def both(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
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
