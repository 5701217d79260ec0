"""What is not there, what no picture tells, and greetings."""

from collections.abc import Iterator

from minillava.data.facts import PLACE_PHRASE, Facts, a, plural, sentence
from minillava.data.natural.asking import RELATIONS, REPLIES, Asker, NaturalQuestion, none_of, yes_no
from minillava.data.scenes import NAMES, OPPOSITE, PLACES


def absent(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    """Whatever is asked about a thing that is not there: first of all, it is not."""
    for _ in range(3):
        unseen = ask.random() < 0.3
        name = ask.noun() if unseen else facts.absent(ask, hard=ask.random() < 0.5)
        rel = ask.pick(RELATIONS[ask.pick(list(OPPOSITE))])
        words = dict(
            name=name, a=a(name), rel=rel, where=PLACE_PHRASE[ask.pick(PLACES)], other=ask.pick(list(facts.count))
        )
        yield NaturalQuestion("absent", ask("absent", **words), f"There is no {name}.", "no", reads="yes_no")


def unknown(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for _ in range(3):
        noun = ask.noun()
        if ask.random() < 0.2:
            text = ask("unknown_count", many=plural(noun))
            yield NaturalQuestion("unknown", text, sentence(none_of(noun)), "no", reads="yes_no")
        else:
            yield yes_no("unknown", ask("unknown", a=a(noun), many=plural(noun)), False, f"there is no {noun}")


def cannot_tell(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    for text in ask.shuffled(ask.untold)[:3]:
        name = ask.pick(list(facts.count))
        words = dict(
            name=name,
            a=a(name),
            many=plural(ask.pick(NAMES)),
            digit=1 + int(9 * ask.random()),
            country=ask.pick(ask.countries),
        )
        yield NaturalQuestion(
            "cannot_tell", text.format(**words), "I cannot tell that from the picture.", "cannot tell", reads="said"
        )


def small_talk(facts: Facts, ask: Asker) -> Iterator[NaturalQuestion]:
    said = [(text, short) for short, texts in ask.small_talk.items() for text in texts]
    for text, short in ask.shuffled(said)[:2]:
        yield NaturalQuestion("small_talk", text, REPLIES[short], short, reads="said")
