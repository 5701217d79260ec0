"""A scene without its picture: as prose from which every question can be answered, and as a map of 7 x 7 words.

The language model is pretrained on these texts before it sees a picture. The map is what a picture's 49 patches will
later stand in for.
"""

from minillava.data.facts import NUMBERS, PLACE_PHRASE, Facts, a, pick, sentence, shuffled, swap
from minillava.data.scenes import RELATIONS, Scene, Thing, cell, where

FORMS = ("prose", "map")


def in_words(scene: Scene, form: str, rng) -> str:
    """The scene as "prose" or as a "map"."""
    return describe_in_words(scene, rng) if form == "prose" else " ".join(grid_words(scene))


def grid_words(scene: Scene, cells: int = 7) -> list[str]:
    """The picture in cells x cells words, row by row: a thing's name where its box covers at least 35% of the cell,
    else the colour.

    Where several cover it, the one that covers most of it is named; a thing's centre cell bears its name in any case.
    """
    words, best, side = [scene.color] * cells**2, [0.35] * cells**2, scene.size / cells
    for thing in scene.things:
        x1, y1, x2, y2 = (edge / side for edge in thing.box)
        for row in range(int(y1), min(cells, int(y2) + 1)):
            for column in range(int(x1), min(cells, int(x2) + 1)):
                covered = (min(x2, column + 1) - max(x1, column)) * (min(y2, row + 1) - max(y1, row))
                if covered >= best[row * cells + column]:
                    words[row * cells + column], best[row * cells + column] = thing.name, covered
    for thing in scene.things:
        words[int(thing.y / side) * cells + int(thing.x / side)] = thing.name
    return words


def describe_in_words(scene: Scene, rng) -> str:
    """Prose from which every kind of question can be answered: each thing with its place, the background, relations not
    implied by places.
    """
    facts = Facts(scene)
    sentences = _thing_sentences(facts, rng)
    for pair in shuffled(rng, facts.relations()):
        if not _implied(*pair, scene.size) or rng.random() < 0.25:
            one, rel, other = swap(pair, rng)
            sentences.append(f"The {one.name} is {rel} the {other.name}.")
    look = a(facts.background(rng))
    background = pick(
        rng,
        (
            f"The background is {facts.background(rng)}.",
            f"The picture has {look} background.",
            f"Everything is on {look} background.",
        ),
    )
    sentences.insert(0 if rng.random() < 0.5 else len(sentences), background)
    if rng.random() < 0.3:
        total = len(facts.things)
        sentences.insert(0, "There is one object." if total == 1 else f"There are {NUMBERS[total]} objects.")
    return " ".join(sentences)


def _thing_sentences(facts: Facts, rng) -> list[str]:
    """One sentence for each thing, or one for a pair of them; a second cat is 'another cat'."""
    named, parts = set(), []
    for thing in shuffled(rng, facts.things):
        what = f"another {thing.name}" if thing.name in named else a(thing.name)
        named.add(thing.name)
        place = facts.place(thing)
        parts.append((what, f" {PLACE_PHRASE[place]}" if place else ""))
    sentences = []
    while parts:
        what, place = parts.pop(0)
        if parts and rng.random() < 0.3:
            what_else, place_else = parts.pop(0)
            sentences.append(f"There is {what}{place} and {what_else}{place_else}.")
        else:
            forms = (f"there is {what}{place}",) + (
                (f"{what} is{place}", f"{place.strip()} there is {what}") if place else ()
            )
            sentences.append(sentence(pick(rng, forms)))
    return sentences


def _implied(one: Thing, rel: str, other: Thing, size: int) -> bool:
    """Whether the thirds alone tell the relation: one axis has more thirds between the two than the other."""
    (row, column), (other_row, other_column) = cell(one, size), cell(other, size)
    rows, columns = abs(row - other_row), abs(column - other_column)
    clear = where(one, size) and where(other, size)
    return bool(clear) and rows != columns and (columns > rows) == (rel in RELATIONS[:2])
