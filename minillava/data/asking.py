"""What a question is, and who asks it: who draws the wording, the thing it is about, and how casually it is typed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minillava.data import small_talk
from minillava.data.facts import names_text, pick, shuffled
from minillava.data.held_out import HELD_OUT
from minillava.data.wordings import HERE, PLAIN, TRAINING
from minillava.inputs.conversation import Turn


@dataclass(frozen=True)
class Question:
    """A question on one scene; `short` is the bare word that `answers.parse_answer(reads, answer)` finds, `names` the
    things it is about, `before` what was said just before it.
    """

    kind: str
    text: str
    answer: str
    short: str
    names: tuple[str, ...] = ()
    reads: str = ""  # how the answer is read, if not as all of its kind
    before: tuple[Turn, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "reads", self.reads or self.kind)
        object.__setattr__(self, "before", tuple(self.before))

    def asked(self) -> list[Turn]:
        return [*self.before, ("user", self.text)]

    def turns(self) -> list[Turn]:
        return [*self.asked(), ("assistant", self.answer)]


def yes_no(kind: str, text: str, yes: bool, answer: str, **more) -> Question:
    """A question whose answer begins with yes or no, and is judged by it."""
    return Question(kind, text, f"{'Yes' if yes else 'No'}, {answer}.", "yes" if yes else "no", reads="yes_no", **more)


def which(kind: str, text: str, answer: str, found, **more) -> Question:
    """A question whose answer names things, or says that there is nothing."""
    return Question(kind, text, answer, names_text(found) or "nothing", reads="names", **more)


class Asker:
    """Draws from `rng`, anything with a `random()` in [0, 1), and words questions "plain", as in "training", or in the
    wordings, nouns and small talk that are "held out" for the test.
    """

    def __init__(self, rng, of: str = "plain"):
        self.random = rng.random
        self.wordings = {
            "plain": PLAIN,
            "training": TRAINING,
            "held out": TRAINING | HELD_OUT,
        }[of]
        pool = "held out" if of == "held out" else "training"
        self.untold, self.nouns = small_talk.WHAT_NO_PICTURE_TELLS[pool], small_talk.NOUNS[pool]
        self.small_talk, self.countries = small_talk.SMALL_TALK[pool], small_talk.COUNTRIES[pool]

    def __call__(self, key: str, **words: str) -> str:
        text = self.pick(self.wordings[key])
        return text.format(here=self.pick(HERE), **words) if "{here}" in text else text.format(**words)

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


def properly(text: str, rng) -> str:
    return text


def casually(text: str, rng) -> str:
    """Now and then without the capital or the question mark."""
    if rng.random() < 0.12:
        text = text[0].lower() + text[1:]
    return text.rstrip("?") if rng.random() < 0.06 else text


def variously(text: str, rng) -> str:
    """As a training has it: casually, or sloppily typed."""
    return sloppy(text, rng) if rng.random() < 0.12 else casually(text, rng)


def sloppy(text: str, rng) -> str:
    """In lower case, without the last mark, with short forms, and half the time with a letter wrong."""
    for pattern, forms in SPELLINGS:
        if rng.random() < 0.6:
            text = re.sub(pattern, pick(rng, forms), text)
    if rng.random() < 0.5:
        text = _misspelt(text, rng)
    return text.rstrip("?.").lower()


def _misspelt(text: str, rng) -> str:
    """One letter inside a longer word is missing, doubled, or has changed places with the next."""
    longer = [match for match in re.finditer(r"[A-Za-z]{5,}", text)]
    if not longer:
        return text
    word = pick(rng, longer)
    at = word.start() + 1 + int(rng.random() * (len(word[0]) - 3))
    pair = text[at : at + 2]
    return text[:at] + pick(rng, (pair[1], pair[0] + pair, pair[::-1])) + text[at + 2 :]
