"""Reading a free answer: what it says, in the form in which the truth of the question is known."""

import re

from minillava.data.facts import NUMBERS, PATTERN_WORD, names_text, plural
from minillava.data.groups import SEVERAL
from minillava.data.scenes import COLORS, GROUPS, NAMES, PLACES

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
_PLACE_WORDS = (
    (r"[-,]", " "),
    (r"\bupper\b", "top"),
    (r"\blower\b", "bottom"),
    (r"\b(center|centre)\b", "middle"),
    (r"\s+", " "),
)


def names_in(text: str) -> list[str]:
    """The names of things in a text, singular, in order, each once."""
    return list(dict.fromkeys(_SINGULAR[form] for form in _ANY_NAME.findall(text.lower())))


def parse_answer(kind: str, text: str) -> str:
    """A free answer to a question of that kind, in the form of `Question.short`; "" where it says nothing of the kind.

    existence, yes_no: "yes" or "no", by the first of these words. count, count_of: a number word. color: a colour.
    where: a place (PLACES). relation: "yes", "no" or one of RELATIONS. group, reasoning: the first name. list,
    describe: all names, sorted, joined by ", ". names: the same of those that are the answer, or "nothing". The others:
    a word of their kind.
    """
    text = text.lower()
    if kind in ("list", "describe"):
        return names_text(names_in(text))
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


def _read_names(text: str) -> str:
    """The names before the verb, as in "the cat and the dog are above the bus"; in "there is a cat", after it."""
    subject = re.split(r"\b(?:is|are)\b", text)[0]
    says_none = re.search(r"\b(nothing|no)\b", text)
    names = names_in(subject) or ([] if says_none else names_in(text))
    return names_text(names) or ("nothing" if says_none else "")


def _read_thing_color(text: str) -> str:
    if re.search(r"\b(several|many) colou?rs\b", text):
        return SEVERAL
    return " and ".join(dict.fromkeys(color.replace("grey", "gray") for color in _ANY_COLOR.findall(text)))


def _first_of(words):
    pattern = re.compile(r"\b(" + "|".join(sorted(words, key=len, reverse=True)) + r")\b")
    return lambda text: found[1] if (found := pattern.search(text)) else ""


_READERS = {
    "existence": _yes_or_no,
    "yes_no": _yes_or_no,
    "names": _read_names,
    "thing_color": _read_thing_color,
    "group_word": _first_of(GROUPS),
    "pattern": _first_of(PATTERN_WORD.values()),
    "said": _first_of(("cannot tell", "hello", "minillava", "welcome", "bye", "what i see")),
    "count": _read_number,
    "count_of": _read_number,
    "color": _read_color,
    "where": _read_place,
    "relation": _read_relation,
}
