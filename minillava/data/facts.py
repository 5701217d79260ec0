"""What is true of a scene, in English: words and their plurals, the scene's facts, and captions.

Everything is derived from the scene's things, so it is true by construction. Wherever a text lists things, the order is
left to right by each name's first occurrence. The functions that choose take an `rng`: anything with a `random()` in
[0, 1), such as `np.random.default_rng(0)`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

from minillava.data.groups import ARGUABLE, MEMBERS
from minillava.data.scenes import GROUP_OF, GROUPS, OPPOSITE, PLACES, Scene, Thing, relation, where

# ---- Words

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR = {
    "sheep": "sheep",
    "fish": "fish",
    "mouse": "mice",
    "wolf": "wolves",
    "scarf": "scarves",
    "cactus": "cacti",
    "food": "food",
    "furniture": "furniture",
    "clothing": "clothing",
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "policeman": "policemen",
    "goose": "geese",
    "tooth": "teeth",
    "deer": "deer",
    "moose": "moose",
    "piece of clothing": "pieces of clothing",
}
PLACE_PHRASE = {
    place: f"on the {place}"
    if place in ("left", "right")
    else "in the middle"
    if place == "middle"
    else f"at the {place}"
    for place in PLACES
}
PATTERN_WORD = {
    "plain": "plain",
    "gradient": "shaded",
    "stripes": "striped",
    "checks": "checkered",
    "dots": "dotted",
    "noise": "cloudy",
}


def a(name: str) -> str:
    """'a cat', 'an owl'."""
    if name in ("food", "furniture", "clothing"):
        return name
    return ("an " if name[0] in "aeiou" and not name.startswith("uni") and name != "ufo" else "a ") + name


def the(name: str) -> str:
    return f"the {name}"


def plural(name: str) -> str:
    if name in IRREGULAR:
        return IRREGULAR[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def counted(name: str, count: int) -> str:
    """'a cat', 'two cats'."""
    return a(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def joined(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def there(count: int) -> str:
    return "there is" if count == 1 else "there are"


def pick(rng, items: Sequence):
    return items[int(rng.random() * len(items))]


def shuffled(rng, items) -> list:
    return [item for _, _, item in sorted((rng.random(), i, item) for i, item in enumerate(items))]


def names_text(names: Iterable[str]) -> str:
    """Names sorted and joined by ", ": how a list of things is compared."""
    return ", ".join(sorted(names))


# ---- Facts


class Facts:
    """A scene, looked at once: names left to right with their counts, the places and the relations that are clear."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.things = sorted(scene.things, key=lambda thing: thing.x)
        self.count: dict[str, int] = {}
        for thing in self.things:
            self.count[thing.name] = self.count.get(thing.name, 0) + 1
        self.single = [thing for thing in self.things if self.count[thing.name] == 1]
        self.groups = {GROUP_OF[name] for name in self.count}

    def place(self, thing: Thing) -> str | None:
        return where(thing, self.scene.size)

    def relations(self) -> list[tuple[Thing, str, Thing]]:
        """(a, relation, b) for each clear pair of things whose names occur once."""
        pairs = ((x, relation(x, y, self.scene.size), y) for x, y in combinations(self.single, 2))
        return [pair for pair in pairs if pair[1]]

    def listing(self, count: dict[str, int] | None = None) -> str:
        """'a cat, a banana and two buses': all things, or the given ones."""
        return joined([counted(name, count) for name, count in (count or self.count).items()])

    def there_is(self, count: dict[str, int]) -> str:
        """'there is a cat and two buses': the verb agrees with the first one, as speakers do."""
        return f"{there(next(iter(count.values())))} {self.listing(count)}"

    def there_listing(self) -> str:
        return self.there_is(self.count)

    def count_sentence(self, name: str) -> str:
        """'There are two cats.'"""
        count = self.count.get(name, 0)
        return (
            f"There is one {name}." if count == 1 else f"There are {NUMBERS[count] if count else 'no'} {plural(name)}."
        )

    # what there is of a group, or of another word for several names

    def members(self, word: str) -> dict[str, int]:
        return {name: count for name, count in self.count.items() if name in MEMBERS[word]}

    def is_clear(self, word: str) -> bool:
        """Whether nothing is there that only some would call so."""
        return not self.count.keys() & ARGUABLE.get(word, frozenset())

    def words(self) -> list[str]:
        """The words for what is there, those alone that are clear."""
        return [word for word in MEMBERS if self.members(word) and self.is_clear(word)]

    def absent_word(self, rng, words: Collection[str] = tuple(MEMBERS)) -> str:
        """A word for nothing that is there, drawn so that over many scenes it is absent as often as it is not."""
        absent = [word for word in words if not self.members(word) and self.is_clear(word)]
        odds = [word for word in absent for _ in range(_ODDS[word])]
        return pick(rng, odds)

    # places and sizes

    def place_of(self, *names: str) -> str | None:
        """The place of the only thing of these names."""
        things = [thing for thing in self.things if thing.name in names]
        return self.place(things[0]) if len(things) == 1 else None

    def names_at(self, place: str) -> list[str] | None:
        """What is at a place, or else, for a side, in its corners; None where that is not clear."""
        places = [self.place(thing) for thing in self.things]
        if None in places:
            return None
        exactly = [thing.name for thing, own in zip(self.things, places, strict=True) if own == place]
        about = [thing.name for thing, own in zip(self.things, places, strict=True) if place in own.split()]
        names = exactly or about
        return names if len(set(names)) == len(names) else None

    def extent(self, thing: Thing) -> tuple[int, int]:
        """The longest side and the area of a thing's box."""
        x1, y1, x2, y2 = thing.box
        return max(x2 - x1, y2 - y1), (x2 - x1) * (y2 - y1)

    def is_bigger(self, one: Thing, other: Thing) -> bool:
        (side, area), (other_side, other_area) = self.extent(one), self.extent(other)
        return side >= 1.1 * other_side and area >= 1.4 * other_area

    def clear_sizes(self) -> list[tuple[str, str]]:
        """(bigger, smaller) for each pair of names that occur once, where the one clearly is."""
        pairs = [(x, y) for x in self.single for y in self.single if x is not y]
        return [(x.name, y.name) for x, y in pairs if self.is_bigger(x, y)]

    def extremes(self) -> list[tuple[str, str]]:
        """("biggest", name) and ("smallest", name), where one of several things clearly is."""
        found = []
        for one in self.single if len(self.things) > 1 else ():
            others = [other for other in self.things if other is not one]
            found += [("biggest", one.name)] * all(self.is_bigger(one, other) for other in others)
            found += [("smallest", one.name)] * all(self.is_bigger(other, one) for other in others)
        return found

    def background(self, rng) -> str:
        """'blue' or 'striped blue'."""
        word = PATTERN_WORD[self.scene.pattern]
        return f"{word} {self.scene.color}" if rng.random() < 0.4 else self.scene.color

    def absent(self, rng, hard: bool, but: Collection[str] = ()) -> str:
        """A name that the scene lacks (none of `but`): of a group that it shows if `hard`, else of one that it does
        not.
        """
        group = pick(rng, [group for group in GROUPS if (group in self.groups) == hard])
        names = [name for name in GROUPS[group] if name not in self.count and name not in but]
        return pick(rng, names) if names else self.absent(rng, False, but)  # all five buildings may be there


_SHOWN = {word: 1 - (1 - len(names) / 144) ** 2.6 for word, names in MEMBERS.items()}  # in so many scenes, about
_ODDS = {word: round(50 * shown / (1 - shown)) + 1 for word, shown in _SHOWN.items()}


def swap(relation_: tuple[Thing, str, Thing], rng) -> tuple[Thing, str, Thing]:
    """The same fact, seen from either side."""
    one, rel, other = relation_
    return (one, rel, other) if rng.random() < 0.5 else (other, OPPOSITE[rel], one)


# ---- Captions

FULL = (
    "{listing} on {a_bg} background",
    "{there} on {a_bg} background",
    "{listing} in front of {a_bg} background",
    "{a_bg} picture with {listing}",
    "{a_bg} background with {listing} on it",
    "a picture of {listing} on {a_bg} background",
    "on {a_bg} background {there}",
)
GROUPED = (
    "{groups} on {a_bg} background",
    "a picture with {groups}",
    "{groups}: {listing}",
    "{there_objects} on {a_bg} background",
)
SHORT = (
    "{some}",
    "a picture of {some}",
    "this is a picture with {some}",
    "{some} can be seen",
    "a picture that shows {some}",
)


def captions(scene: Scene, rng, n: int = 5) -> list[str]:
    """`n` true captions, different where the scene allows it: first one with everything in it, one with places, a short
    one; then any.
    """
    facts, out = Facts(scene), []
    styles = [_full_caption, _place_caption, _short_caption, _group_caption, _relation_caption]
    for i in range(n):
        for _ in range(4):
            caption = sentence((styles[i] if i < 3 else pick(rng, styles))(facts, rng))
            if caption not in out:
                break
        out.append(caption)
    return out


def _full_caption(facts: Facts, rng) -> str:
    return pick(rng, FULL).format(listing=facts.listing(), there=facts.there_listing(), a_bg=a(facts.background(rng)))


def _place_caption(facts: Facts, rng) -> str:
    things = facts.things if rng.random() < 0.5 else shuffled(rng, facts.things)
    start = pick(rng, ("", "there is ", "a picture with "))
    return start + joined([_placed(facts, thing, things[i - 1] if i else None, rng) for i, thing in enumerate(things)])


def _placed(facts: Facts, thing: Thing, before: Thing | None, rng) -> str:
    """'a cat at the top left', or sometimes 'a cat below it' of the thing just named."""
    rel = before and relation(thing, before, facts.scene.size)
    if rel and rng.random() < 0.35:
        return f"{a(thing.name)} {rel} it"
    place = facts.place(thing)
    return f"{a(thing.name)} {PLACE_PHRASE[place]}" if place else a(thing.name)


def _short_caption(facts: Facts, rng) -> str:
    some = shuffled(rng, facts.count)[: 1 + int(rng.random() * 2)]
    return pick(rng, SHORT).format(some=joined([counted(name, facts.count[name]) for name in some]))


def _group_caption(facts: Facts, rng) -> str:
    total = len(facts.things)
    sizes = {group: sum(GROUP_OF[thing.name] == group for thing in facts.things) for group in GROUPS}
    groups = joined(["some food" if group == "food" else counted(group, size) for group, size in sizes.items() if size])
    objects = f"{there(total)} {NUMBERS[total]} {'object' if total == 1 else 'objects'}"
    return pick(rng, GROUPED).format(
        groups=groups, listing=facts.listing(), there_objects=objects, a_bg=a(facts.background(rng))
    )


def _relation_caption(facts: Facts, rng) -> str:
    relations = facts.relations()
    if not relations:
        return _place_caption(facts, rng)
    one, rel, other = swap(pick(rng, relations), rng)
    return f"{a(one.name)} {rel} {a(other.name)}" + (
        f" on {a(facts.background(rng))} background" if rng.random() < 0.5 else ""
    )
