"""A known mistake, and the list that each exercise's file adds its own to."""

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    name: str  # of the part that is wrong: "apply_rope"
    part: object
    sentence: str


MISTAKES: dict[str, list[Mistake]] = defaultdict(list)


def mistake(key: str, name: str, sentence: str):
    """A decorator that adds what follows to the known mistakes of an exercise, as its part `name`."""

    def add(part):
        MISTAKES[key].append(Mistake(name, part, sentence))
        return part

    return add


# What both kinds of layer, the tower's and the decoder's, can have wrong.
NO_RESIDUAL = "the residual path is missing: each part's output is added to x, and does not replace it"
POST_NORM = "you norm after adding (the first transformer's order); here the norm stands before each part, and x itself is never normed"
NORMED_RESIDUAL = "you add to the normed x; the residual path carries x as it was, only the part reads the normed one"
PARALLEL = "your MLP reads the layer's input; it has to read x after attention was added"
FIRST_RESIDUAL = "you add the MLP to the layer's input, and attention's output is lost on the residual path"
