"""What a natural question is, and who asks it: who draws the wording, the thing it is about, and how it is typed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from minillava.data.facts import a, names_text, pick, plural, shuffled
from minillava.data.groups import MASS
from minillava.data.questions import QUESTIONS, Question
from minillava.inputs.conversation import Turn

WORDINGS = json.loads((Path(__file__).parent / "wordings.json").read_text(encoding="utf-8"))
RELATIONS, REPLIES = WORDINGS["relations"], WORDINGS["replies"]


@dataclass(frozen=True)
class NaturalQuestion(Question):
    """`answers.parse_answer(reads, answer)` finds `short`; `before` is what was said just before it."""

    reads: str = ""  # how the answer is read
    before: tuple[Turn, ...] = ()

    def asked(self) -> list[Turn]:
        return [*self.before, ("user", self.text)]


def yes_no(kind: str, text: str, yes: bool, answer: str, **more) -> NaturalQuestion:
    """A question whose answer begins with yes or no, and is judged by it."""
    word = "yes" if yes else "no"
    return NaturalQuestion(kind, text, f"{word.capitalize()}, {answer}.", word, reads="yes_no", **more)


def which(kind: str, text: str, answer: str, found, **more) -> NaturalQuestion:
    """A question whose answer names things, or says that there is nothing."""
    return NaturalQuestion(kind, text, answer, names_text(found) or "nothing", reads="names", **more)


def forms(word: str) -> dict[str, str]:
    return {"a": a(word), "many": plural(word), "name": word}


def none_of(word: str) -> str:
    return f"there is no {word}" if word in MASS else f"there are no {plural(word)}"


class Asker:
    """Draws from `rng`, anything with a `random()` in [0, 1), and asks in the wordings, nouns and small talk of
    "training", or in those that are "held out" for the test.
    """

    def __init__(self, rng, of: str = "training"):
        self.random, own = rng.random, WORDINGS[of]
        self.wordings = QUESTIONS | WORDINGS["training"]["questions"] | own["questions"]
        self.nouns, self.countries = own["nouns"], own["countries"]
        self.small_talk, self.untold = own["small talk"], own["no picture tells"]

    def __call__(self, key: str, **words: str) -> str:
        """A question of this key; where its wording says {here}, "in the picture" or nothing, for instance."""
        return self.pick(self.wordings[key]).format(**{"here": self.pick(WORDINGS["here"]), **words})

    def pick(self, items):
        return pick(self, items)

    def shuffled(self, items) -> list:
        return shuffled(self, items)

    def other(self, item, items):
        """One of the others."""
        return self.pick([other for other in items if other != item])

    def noun(self) -> str:
        """A noun that names nothing of the tiny world."""
        return self.pick(self.nouns)


# ---- As people type

SPELLINGS = (
    (r"^What is\b", ("what's", "whats", "What's")),
    (r"^Where is\b", ("where's", "wheres", "Where's")),
    (r"\bpicture\b", ("pic", "photo", "image")),
    (r"\byou\b", ("u",)),
    (r"\bcolor\b", ("colour",)),
    (r"\bgray\b", ("grey",)),
    (r"\bto the (left|right) of\b", (r"\1 of", r"on the \1 of")),
)


def sloppy(text: str, rng) -> str:
    """In lower case, without the last mark, with short forms, and half the time with a letter wrong."""
    for pattern, short_forms in SPELLINGS:
        if rng.random() < 0.6:
            text = re.sub(pattern, pick(rng, short_forms), text)
    if rng.random() < 0.5:
        text = _misspelt(text, rng)
    return text.rstrip("?.").lower()


def _misspelt(text: str, rng) -> str:
    """One letter inside a longer word is missing, doubled, or has changed places with the next."""
    longer = list(re.finditer(r"[A-Za-z]{5,}", text))
    if not longer:
        return text
    word = pick(rng, longer)
    at = word.start() + 1 + int(rng.random() * (len(word[0]) - 3))
    pair = text[at : at + 2]
    return text[:at] + pick(rng, (pair[1], pair[0] + pair, pair[::-1])) + text[at + 2 :]
