"""What can be said about a scene: captions, questions with answers, contradicting phrases, and the scene in words alone.

Everything is derived from the scene's things, so it is true by construction. Wherever a text lists things, the order is left to right by
each name's first occurrence. The functions that choose take an `rng`: anything with a `random()` in [0, 1), such as `random.Random(0)`,
`np.random.default_rng(0)` or `scenes.Draws(0)`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from minillava.data.scenes import (
    COLOR_NAMES,
    COLORS,
    GROUP_OF,
    GROUPS,
    NAMES,
    OPPOSITE,
    PATTERNS,
    PLACES,
    RELATIONS,
    Scene,
    Thing,
    cell,
    relation,
    where,
)

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
    "piece of clothing": "pieces of clothing",
}
PLACE_PHRASE = {
    place: f"on the {place}" if place in ("left", "right") else "in the middle" if place == "middle" else f"at the {place}" for place in PLACES
}
PATTERN_WORD = {"plain": "plain", "gradient": "shaded", "stripes": "striped", "checks": "checkered", "dots": "dotted", "noise": "cloudy"}
CAN_FLY = {
    "helicopter": "it is built to fly",
    "airplane": "it is built to fly",
    "rocket": "it is built to fly",
    **dict.fromkeys(("owl", "parrot", "butterfly", "bee"), "it has wings"),
}
VAGUE_GROUPS = {"household item", "office item", "device", "tool"}  # a spoon is a tool to some: never set one against another
LIVES_IN_WATER = {"fish", "whale", "octopus"}
ARGUABLE = {"rooster", "penguin", "duck", "frog", "turtle", "crocodile", "flamingo"}  # beside these, nothing is asked on flying or water


SIDE = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


def a(name: str) -> str:
    """'a cat', 'an owl'."""
    if name == "food":
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


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


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _there(count: int) -> str:
    return "there is" if count == 1 else "there are"


def _pick(rng, items: Sequence):
    return items[int(rng.random() * len(items))]


def _shuffled(rng, items) -> list:
    return [item for _, _, item in sorted((rng.random(), i, item) for i, item in enumerate(items))]


# ---- Facts: what the texts below are made of


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

    def listing(self) -> str:
        """'a cat, a banana and two buses'."""
        return joined([counted(name, count) for name, count in self.count.items()])

    def there_listing(self) -> str:
        """'there is a cat and two buses': the verb agrees with the first one, as speakers do."""
        return f"{_there(next(iter(self.count.values())))} {self.listing()}"

    def background(self, rng) -> str:
        """'blue' or 'striped blue'."""
        word = PATTERN_WORD[self.scene.pattern]
        return f"{word} {self.scene.color}" if rng.random() < 0.4 else self.scene.color

    def absent(self, rng, hard: bool, but: Collection[str] = ()) -> str:
        """A name that the scene lacks (none of `but`): of a group that it shows if `hard`, else of one that it does not."""
        group = _pick(rng, [group for group in GROUPS if (group in self.groups) == hard])
        names = [name for name in GROUPS[group] if name not in self.count and name not in but]
        return _pick(rng, names) if names else self.absent(rng, False, but)  # all five buildings may be there


def _swap(relation_: tuple[Thing, str, Thing], rng) -> tuple[Thing, str, Thing]:
    """The same fact, told from either side."""
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
GROUPED = ("{groups} on {a_bg} background", "a picture with {groups}", "{groups}: {listing}", "{there_objects} on {a_bg} background")
SHORT = ("{some}", "a picture of {some}", "this is a picture with {some}", "{some} can be seen", "a picture that shows {some}")


def captions(scene: Scene, rng, n: int = 5) -> list[str]:
    """`n` true captions, different where the scene allows it: first one with everything in it, one with places, a short one; then any."""
    facts, out = Facts(scene), []
    styles = [_full_caption, _place_caption, _short_caption, _group_caption, _relation_caption]
    for i in range(n):
        for _ in range(4):
            caption = _sentence((styles[i] if i < 3 else _pick(rng, styles))(facts, rng))
            if caption not in out:
                break
        out.append(caption)
    return out


def _full_caption(facts: Facts, rng) -> str:
    return _pick(rng, FULL).format(listing=facts.listing(), there=facts.there_listing(), a_bg=a(facts.background(rng)))


def _place_caption(facts: Facts, rng) -> str:
    things = facts.things if rng.random() < 0.5 else _shuffled(rng, facts.things)
    start = _pick(rng, ("", "there is ", "a picture with "))
    return start + joined([_placed(facts, thing, things[i - 1] if i else None, rng) for i, thing in enumerate(things)])


def _placed(facts: Facts, thing: Thing, before: Thing | None, rng) -> str:
    """'a cat at the top left', or sometimes 'a cat below it' of the thing just named."""
    rel = before and relation(thing, before, facts.scene.size)
    if rel and rng.random() < 0.35:
        return f"{a(thing.name)} {rel} it"
    place = facts.place(thing)
    return f"{a(thing.name)} {PLACE_PHRASE[place]}" if place else a(thing.name)


def _short_caption(facts: Facts, rng) -> str:
    some = _shuffled(rng, facts.count)[: 1 + int(rng.random() * 2)]
    return _pick(rng, SHORT).format(some=joined([counted(name, facts.count[name]) for name in some]))


def _group_caption(facts: Facts, rng) -> str:
    total = len(facts.things)
    sizes = {group: sum(GROUP_OF[thing.name] == group for thing in facts.things) for group in GROUPS}
    groups = joined(["some food" if group == "food" else counted(group, size) for group, size in sizes.items() if size])
    objects = f"{_there(total)} {NUMBERS[total]} {'object' if total == 1 else 'objects'}"
    return _pick(rng, GROUPED).format(groups=groups, listing=facts.listing(), there_objects=objects, a_bg=a(facts.background(rng)))


def _relation_caption(facts: Facts, rng) -> str:
    relations = facts.relations()
    if not relations:
        return _place_caption(facts, rng)
    one, rel, other = _swap(_pick(rng, relations), rng)
    return f"{a(one.name)} {rel} {a(other.name)}" + (f" on {a(facts.background(rng))} background" if rng.random() < 0.5 else "")


# ---- Questions

KIND_WEIGHTS = {
    "existence": 30,
    "count_of": 14,
    "count": 6,
    "where": 12,
    "relation": 14,
    "color": 5,
    "group": 5,
    "list": 8,
    "describe": 3,
    "reasoning": 3,
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "existence": (
        "Is there {a}?",
        "Is there {a} in the picture?",
        "Do you see {a}?",
        "Can you see {a} here?",
        "Does the picture show {a}?",
        "Is {a} in the image?",
    ),
    "count_of": ("How many {many} are there?", "How many {many} do you see?", "How many {many} are in the picture?", "What is the number of {many}?"),
    "count": (
        "How many objects are there?",
        "How many things do you see?",
        "How many objects are in the picture?",
        "What is the number of objects in the image?",
    ),
    "where": (
        "Where is the {name}?",
        "Where in the picture is the {name}?",
        "Where do you see the {name}?",
        "In which part of the image is the {name}?",
    ),
    "relation": (
        "Where is the {name} relative to the {other}?",
        "Where is the {name}, seen from the {other}?",
        "How is the {name} placed relative to the {other}?",
    ),
    "relation_yes_no": (
        "Is the {name} {rel} the {other}?",
        "Do you see the {name} {rel} the {other}?",
        "Is it true that the {name} is {rel} the {other}?",
    ),
    "color": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "What is the background color?",
    ),
    "group": ("Which of them is {a}?", "Which object is {a}?", "Which of the things in the picture is {a}?"),
    "eat": ("What can you eat here?", "Which thing in the picture can you eat?", "What in the picture could you eat?"),
    "list": (
        "What is in the picture?",
        "What do you see?",
        "What objects are in the image?",
        "What does the picture show?",
        "List the objects in the picture.",
    ),
    "describe": (
        "Describe the picture.",
        "Describe this image.",
        "Can you describe the picture?",
        "Tell me about this picture.",
        "What is going on in this image?",
    ),
    "fly": ("Which of them could fly?", "What in the picture could fly?", "Which thing here is able to fly?"),
    "water": ("Which of them lives in water?", "What in the picture lives in water?", "Which animal here lives in water?"),
    "wear": ("What could someone wear here?", "Which of them could someone wear?", "What in the picture could a person put on?"),
    "music": ("Which of them could make music?", "What could a musician play here?", "Which thing here is for making music?"),
    "odd": ("Which thing does not belong with the others?", "Which of them is the odd one out?", "What does not fit with the rest?"),
}
SHORT_PROMPT = "Answer the question using a single word or phrase."  # as in LLaVA-1.5 (arXiv 2310.03744, section 3.2)


@dataclass(frozen=True)
class Question:
    """A question on one scene; `short` is the bare word that `parse_answer(kind, answer)` finds, `names` the things it is about."""

    kind: str
    text: str
    answer: str
    short: str
    names: tuple[str, ...] = ()


def questions(scene: Scene, rng, n: int = 10, short: float | None = None) -> list[Question]:
    """Up to `n` different questions in random order of kinds (KIND_WEIGHTS); a plain scene may not have ten.

    short: the share of them (not `describe`) that asks for a single word or phrase, as LLaVA-1.5 does, and answers with `short`.
    Of the existence questions half are noes, and half of the noes name something from a group that the picture does show.
    """
    facts, out = Facts(scene), []
    makers = {kind: maker(facts, rng) for kind, maker in _MAKERS.items()}
    while len(out) < n and makers:
        kind = _weighted(rng, makers)
        question = next(makers[kind], None)
        if question is None:  # this kind has nothing more to ask
            del makers[kind]
            continue
        question = replace(question, text=_casual(question.text, rng))
        out.append(_shortened(question) if short and kind != "describe" and rng.random() < short else question)
    return out


def roll_call(scene: Scene, rng) -> tuple[str, str]:
    """(question, answer) about several names at once: which are there, how many of each, where each is, how pairs of them lie.

    Each verdict stands right after its name: a dense exercise in looking a name up, from which single questions follow.
    """
    facts, absent = Facts(scene), []
    for _ in range(len(facts.count) + 1 + int(4 * rng.random())):
        absent.append(facts.absent(rng, hard=rng.random() < 0.5, but=absent))
    names = (*facts.count, *absent)
    pairs = [_swap(pair, rng) for pair in facts.relations()]
    calls = [
        ("Which of these are there", {name: "yes" if name in facts.count else "no" for name in names}),
        ("How many are there of each", {name: NUMBERS[facts.count.get(name, 0)] for name in names}),
        ("Where is each of these", dict.fromkeys(absent, "nowhere") | {t.name: facts.place(t) for t in facts.single if facts.place(t)}),
        ("Where is the first, seen from the second", {f"{one.name} and {other.name}": SIDE[rel] for one, rel, other in pairs}),
    ]
    question, verdict = _pick(rng, calls if pairs else calls[:3])
    asked = _shuffled(rng, verdict)
    return f"{question}: {', '.join(asked)}?", ", ".join(f"{each} {verdict[each]}" for each in asked) + "."


def _weighted(rng, kinds) -> str:
    left = rng.random() * sum(KIND_WEIGHTS[kind] for kind in kinds)
    for kind in kinds:
        left -= KIND_WEIGHTS[kind]
        if left < 0:
            break
    return kind


def _casual(text: str, rng) -> str:
    """Now and then without the capital or the question mark, as people type."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    return text.rstrip("?") if rng.random() < 0.06 else text


def _shortened(question: Question) -> Question:
    return replace(question, text=f"{question.text}\n{SHORT_PROMPT}", answer=question.short)


def _ask(rng, template: str, **words: str) -> str:
    return _pick(rng, QUESTIONS[template]).format(**words)


def _existence(facts: Facts, rng) -> Iterator[Question]:
    """A yes and a no for each name, in random order: balanced wherever the reader stops."""
    asked = set()
    for name in _shuffled(rng, facts.count):
        yes_first = rng.random() < 0.5
        for yes in (yes_first, not yes_first):
            if yes:
                answer = f"Yes, {_there(facts.count[name])} {counted(name, facts.count[name])}."
                yield Question("existence", _ask(rng, "existence", a=a(name)), answer, "yes", (name,))
            else:
                other = facts.absent(rng, hard=rng.random() < 0.5, but=asked)
                asked.add(other)
                yield Question("existence", _ask(rng, "existence", a=a(other)), f"No, there is no {other}.", "no", (other,))


def _count_of(facts: Facts, rng) -> Iterator[Question]:
    asked = set()
    for name in _shuffled(rng, facts.count):
        if rng.random() < 0.176:  # one zero for 0.85 / 0.15 others
            other = facts.absent(rng, hard=rng.random() < 0.5, but=asked)
            asked.add(other)
            yield Question("count_of", _ask(rng, "count_of", many=plural(other)), f"There are no {plural(other)}.", "zero", (other,))
        count = facts.count[name]
        answer = f"There is one {name}." if count == 1 else f"There are {counted(name, count)}."
        yield Question("count_of", _ask(rng, "count_of", many=plural(name)), answer, NUMBERS[count], (name,))


def _count(facts: Facts, rng) -> Iterator[Question]:
    total = len(facts.things)
    answer = "There is one object." if total == 1 else f"There are {NUMBERS[total]} objects."
    yield Question("count", _ask(rng, "count"), answer, NUMBERS[total])


def _color(facts: Facts, rng) -> Iterator[Question]:
    yield Question("color", _ask(rng, "color"), f"The background is {facts.scene.color}.", facts.scene.color)


def _where(facts: Facts, rng) -> Iterator[Question]:
    for thing in _shuffled(rng, facts.single):
        if place := facts.place(thing):
            yield Question("where", _ask(rng, "where", name=thing.name), f"The {thing.name} is {PLACE_PHRASE[place]}.", place, (thing.name,))


def _relation(facts: Facts, rng) -> Iterator[Question]:
    """Each clear pair once openly or as yes/no, then once the other way."""
    pairs = [(pair, rng.random() < 0.5) for pair in _shuffled(rng, facts.relations())]
    for pair, is_open in pairs + [(pair, not is_open) for pair, is_open in pairs]:
        one, rel, other = _swap(pair, rng)
        names, truth = (one.name, other.name), f"the {one.name} is {rel} the {other.name}."
        if is_open:
            text = _ask(rng, "relation", name=one.name, other=other.name)
            yield Question("relation", text, truth[0].upper() + truth[1:], rel, names)
        else:
            yes = rng.random() < 0.5
            text = _ask(rng, "relation_yes_no", name=one.name, other=other.name, rel=rel if yes else OPPOSITE[rel])
            yield Question("relation", text, f"{'Yes' if yes else 'No'}, {truth}", "yes" if yes else "no", names)


def _only(facts: Facts, wanted) -> str | None:
    """The one name in `wanted` that the scene shows, if it shows exactly one, once."""
    found = [name for name in facts.count if name in wanted]
    return found[0] if len(found) == 1 and facts.count[found[0]] == 1 else None


def _group(facts: Facts, rng) -> Iterator[Question]:
    for group in _shuffled(rng, sorted(facts.groups)):
        name = _only(facts, GROUPS[group])
        if name is None or (group in VAGUE_GROUPS and len(facts.groups & VAGUE_GROUPS) > 1):
            continue
        if group == "food" and "animal" not in facts.groups and rng.random() < 0.5:  # one may eat a duck, too
            yield Question("group", _ask(rng, "eat"), f"You can eat the {name}.", name, (name,))
        elif len(facts.count) > 1:
            yield Question("group", _ask(rng, "group", a=a(group)), f"The {name} is {a(group)}.", name, (name,))


def _list(facts: Facts, rng) -> Iterator[Question]:
    yield Question("list", _ask(rng, "list"), _sentence(facts.there_listing()), _names_text(facts.count), tuple(facts.count))


def _describe(facts: Facts, rng) -> Iterator[Question]:
    sentences = [_sentence(facts.there_listing()), f"The background is {facts.background(rng)}."]
    details = [f"The {one.name} is {rel} the {other.name}." for one, rel, other in (_swap(pair, rng) for pair in facts.relations())]
    details += [f"The {t.name} is {PLACE_PHRASE[facts.place(t)]}." for t in facts.single if facts.place(t)]
    if details:
        sentences.append(_pick(rng, details))
    yield Question("describe", _ask(rng, "describe"), " ".join(sentences), _names_text(facts.count), tuple(facts.count))


def _reasoning(facts: Facts, rng) -> Iterator[Question]:
    """What a thing is for, or which differs: asked only where nothing else in the scene would do as an answer."""
    shown, answers = facts.count.keys(), {"odd": _odd_one_out(facts)}
    if "boxing glove" not in shown:
        answers["wear"] = _told(facts, GROUPS["piece of clothing"], "Someone could wear the {name}, because it is a piece of clothing.")
    if "device" not in facts.groups:  # a radio makes music too
        answers["music"] = _told(facts, GROUPS["musical instrument"], "The {name} could make music, because it is a musical instrument.")
    if not shown & ARGUABLE:
        answers["fly"] = _told(facts, CAN_FLY, "The {name} could fly, because {why}.")
        answers["water"] = _told(facts, LIVES_IN_WATER, "The {name} lives in water.")
    for template, (name, answer) in _shuffled(rng, [(key, found) for key, found in answers.items() if found]):
        yield Question("reasoning", _ask(rng, template), answer, name, (name,))


def _told(facts: Facts, wanted, answer: str) -> tuple[str, str] | None:
    """The only name in `wanted` and the answer about it."""
    name = _only(facts, wanted)
    return (name, answer.format(name=name, why=CAN_FLY.get(name))) if name else None


def _odd_one_out(facts: Facts) -> tuple[str, str] | None:
    """The one thing outside the group that all others, of two or more names, share."""
    if len(facts.groups) != 2 or len(facts.count) < 3 or facts.groups <= VAGUE_GROUPS:
        return None
    for alone, rest in (sorted(facts.groups), sorted(facts.groups, reverse=True)):
        names = [name for name in facts.count if GROUP_OF[name] == alone]
        if len(names) == 1 and facts.count[names[0]] == 1:
            return names[0], f"The {names[0]} does not belong, because it is {a(alone)} and the others are {plural(rest)}."
    return None


_MAKERS = {
    "existence": _existence,
    "count_of": _count_of,
    "count": _count,
    "where": _where,
    "relation": _relation,
    "color": _color,
    "group": _group,
    "list": _list,
    "describe": _describe,
    "reasoning": _reasoning,
}


# ---- Reading an answer

_SINGULAR = {form: name for name in NAMES for form in (name, plural(name))}
_ANY_NAME = re.compile(r"\b(" + "|".join(sorted(_SINGULAR, key=len, reverse=True)) + r")\b")
_ANY_NUMBER = re.compile(r"\b(no|none|" + "|".join(NUMBERS) + r"|\d+)\b")
_ANY_COLOR = re.compile(r"\b(" + "|".join(COLORS) + r"|grey)\b")
_ANY_PLACE = re.compile(r"\b(" + "|".join(sorted(PLACES, key=len, reverse=True)) + r")\b")
_ANY_RELATION = {
    "to the left of": r"\bleft\b",
    "to the right of": r"\bright\b",
    "above": r"\b(above|over|on top)\b",
    "below": r"\b(below|under|underneath|beneath)\b",
}
_PLACE_WORDS = ((r"[-,]", " "), (r"\bupper\b", "top"), (r"\blower\b", "bottom"), (r"\b(center|centre)\b", "middle"), (r"\s+", " "))


def names_in(text: str) -> list[str]:
    """The names of things in a text, singular, in order, each once."""
    return list(dict.fromkeys(_SINGULAR[form] for form in _ANY_NAME.findall(text.lower())))


def _names_text(names) -> str:
    return ", ".join(sorted(names))


def parse_answer(kind: str, text: str) -> str:
    """A free answer to a question of that kind, in the form of `Question.short`; "" where it says nothing of the kind.

    existence: "yes" or "no", by the first of these words. count, count_of: a number word. color: a colour. where: a place (PLACES).
    relation: "yes", "no" or one of RELATIONS. group, reasoning: the first name. list, describe: all names, sorted, joined by ", ".
    """
    text = text.lower()
    if kind in ("list", "describe"):
        return _names_text(names_in(text))
    if kind in ("group", "reasoning"):
        return next(iter(names_in(text)), "")
    return _READERS[kind](text)


def _yes_or_no(text: str) -> str:
    found = re.search(r"\b(yes|no)\b", text)
    return found[1] if found else ""


def _read_number(text: str) -> str:
    found = _ANY_NUMBER.search(text)
    if not found:
        return "one" if re.search(r"\ban?\b", text) else ""
    word = found[1]
    if word.isdigit():
        return NUMBERS[int(word)] if int(word) < len(NUMBERS) else word
    return "zero" if word in ("no", "none") else word


def _read_color(text: str) -> str:
    found = _ANY_COLOR.search(text)
    return found[1].replace("grey", "gray") if found else ""


def _read_place(text: str) -> str:
    for pattern, word in _PLACE_WORDS:
        text = re.sub(pattern, word, text)
    return max(_ANY_PLACE.findall(text), key=len, default="")


def _read_relation(text: str) -> str:
    first = re.match(r"\W*(yes|no)\b", text)
    if first:
        return first[1]
    at = {rel: found.start() for rel, pattern in _ANY_RELATION.items() if (found := re.search(pattern, text))}
    return min(at, key=at.get, default="")


_READERS = {
    "existence": _yes_or_no,
    "count": _read_number,
    "count_of": _read_number,
    "color": _read_color,
    "where": _read_place,
    "relation": _read_relation,
}


# ---- The scene without a picture


def grid_words(scene: Scene, cells: int = 7) -> list[str]:
    """The picture in cells x cells words, row by row: a thing's name where its box covers at least 35% of the cell, else the colour.

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
    """Prose from which every kind of question can be answered: each thing with its place, the background, relations not implied by places."""
    facts = Facts(scene)
    sentences = _thing_sentences(facts, rng)
    for pair in _shuffled(rng, facts.relations()):
        if not _implied(*pair, scene.size) or rng.random() < 0.25:
            one, rel, other = _swap(pair, rng)
            sentences.append(f"The {one.name} is {rel} the {other.name}.")
    look = a(facts.background(rng))
    background = _pick(
        rng, (f"The background is {facts.background(rng)}.", f"The picture has {look} background.", f"Everything is on {look} background.")
    )
    sentences.insert(0 if rng.random() < 0.5 else len(sentences), background)
    if rng.random() < 0.3:
        total = len(facts.things)
        sentences.insert(0, "There is one object." if total == 1 else f"There are {NUMBERS[total]} objects.")
    return " ".join(sentences)


def _thing_sentences(facts: Facts, rng) -> list[str]:
    """One sentence for each thing, or one for a pair of them; a second cat is 'another cat'."""
    told, parts = set(), []
    for thing in _shuffled(rng, facts.things):
        what = f"another {thing.name}" if thing.name in told else a(thing.name)
        told.add(thing.name)
        place = facts.place(thing)
        parts.append((what, f" {PLACE_PHRASE[place]}" if place else ""))
    sentences = []
    while parts:
        what, place = parts.pop(0)
        if parts and rng.random() < 0.3:
            what_else, place_else = parts.pop(0)
            sentences.append(f"There is {what}{place} and {what_else}{place_else}.")
        else:
            forms = (f"there is {what}{place}",) + ((f"{what} is{place}", f"{place.strip()} there is {what}") if place else ())
            sentences.append(_sentence(_pick(rng, forms)))
    return sentences


def _implied(one: Thing, rel: str, other: Thing, size: int) -> bool:
    """Whether the thirds alone tell the relation: one axis has more thirds between the two than the other."""
    (row, column), (other_row, other_column) = cell(one, size), cell(other, size)
    rows, columns = abs(row - other_row), abs(column - other_column)
    clear = where(one, size) and where(other, size)
    return bool(clear) and rows != columns and (columns > rows) == (rel in RELATIONS[:2])


# ---- Phrases that a picture makes true or false


def phrases(scene: Scene, rng) -> list[tuple[str, str]]:
    """(true, contradicting) pairs: one for each name first, then counts, places, background and relations, those that are clear, shuffled."""
    facts = Facts(scene)
    names = [(a(name), a(facts.absent(rng, hard=rng.random() < 0.5))) for name in facts.count]
    pairs = [_count_phrases(name, count, rng) for name, count in facts.count.items()]
    pairs += [_count_phrases("object", len(facts.things), rng)]
    pairs += _place_phrases(facts, rng) + _background_phrases(scene, rng)
    for pair in facts.relations():
        one, rel, other = _swap(pair, rng)
        pairs.append((f"{a(one.name)} {rel} {a(other.name)}", f"{a(other.name)} {rel} {a(one.name)}"))
    return names + _shuffled(rng, pairs)


def _count_phrases(name: str, count: int, rng) -> tuple[str, str]:
    wrong = _pick(rng, [other for other in range(1, 6) if other != count and abs(other - count) <= 2])
    return tuple(f"{NUMBERS[k]} {name if k == 1 else plural(name)}" for k in (count, wrong))


def _place_phrases(facts: Facts, rng) -> list[tuple[str, str]]:
    pairs = []
    for name in facts.count:
        places = [facts.place(thing) for thing in facts.things if thing.name == name]
        if all(places):  # else the wrong place might be arguable
            wrong = _pick(rng, [place for place in PLACES if place not in places])
            pairs.append((f"{a(name)} {PLACE_PHRASE[_pick(rng, places)]}", f"{a(name)} {PLACE_PHRASE[wrong]}"))
    return pairs


def _background_phrases(scene: Scene, rng) -> list[tuple[str, str]]:
    color = _pick(rng, [color for color in COLOR_NAMES if color != scene.color])
    pattern = PATTERN_WORD[scene.pattern]
    wrong = PATTERN_WORD[_pick(rng, [other for other in PATTERNS if other != scene.pattern])]
    false = f"{wrong} {scene.color}" if rng.random() < 0.5 else f"{pattern} {color}"
    return [(f"{a(scene.color)} background", f"{a(color)} background"), (f"{a(pattern + ' ' + scene.color)} background", f"{a(false)} background")]
