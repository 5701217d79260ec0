"""Questions about a scene, with the answer as a sentence and as the bare word that decides whether an answer is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from minillava.data.facts import (
    NUMBERS,
    PLACE_PHRASE,
    Facts,
    a,
    counted,
    names_text,
    pick,
    plural,
    sentence,
    shuffled,
    swap,
    there,
)
from minillava.data.scenes import GROUP_OF, GROUPS, OPPOSITE, Scene
from minillava.inputs.conversation import Turn

CAN_FLY = {
    "helicopter": "it is built to fly",
    "airplane": "it is built to fly",
    "rocket": "it is built to fly",
    **dict.fromkeys(("owl", "parrot", "butterfly", "bee"), "it has wings"),
}
# a spoon is a tool to some: never set one against another
VAGUE_GROUPS = {"household item", "office item", "device", "tool"}
LIVES_IN_WATER = {"fish", "whale", "octopus"}
# beside these, nothing is asked on flying or water
ARGUABLE = {"rooster", "penguin", "duck", "frog", "turtle", "crocodile", "flamingo"}

KIND_WEIGHTS = {
    "existence": 30,
    "count_of": 14,
    "count": 6,
    "where": 24,
    "relation": 24,
    "color": 5,
    "group": 5,
    "list": 8,
    "describe": 3,
    "reasoning": 5,
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
    "count_of": (
        "How many {many} are there?",
        "How many {many} do you see?",
        "How many {many} are in the picture?",
        "What is the number of {many}?",
    ),
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
    "water": (
        "Which of them lives in water?",
        "What in the picture lives in water?",
        "Which animal here lives in water?",
    ),
    "wear": (
        "What could someone wear here?",
        "Which of them could someone wear?",
        "What in the picture could a person put on?",
    ),
    "music": (
        "Which of them could make music?",
        "What could a musician play here?",
        "Which thing here is for making music?",
    ),
    "odd": (
        "Which thing does not belong with the others?",
        "Which of them is the odd one out?",
        "What does not fit with the rest?",
    ),
}
SHORT_SHARE = 0.15  # of the questions of a conversation ask for a word or phrase
SHORT_PROMPT = "Answer the question using a single word or phrase."  # as in LLaVA-1.5 (arXiv 2310.03744, section 3.2)


@dataclass(frozen=True)
class Question:
    """A question on one scene; `short` is the bare word that `answers.parse_answer(kind, answer)` finds, `names` the
    things it is about.
    """

    kind: str
    text: str
    answer: str
    short: str
    names: tuple[str, ...] = ()

    def turns(self) -> list[Turn]:
        return [("user", self.text), ("assistant", self.answer)]


def questions(scene: Scene, rng, n: int = 10, short: float | None = None) -> list[Question]:
    """Up to `n` different questions in random order of kinds (KIND_WEIGHTS); a plain scene may not have ten.

    short: the share of them (not `describe`) that asks for a single word or phrase, as LLaVA-1.5 does, and answers with
    `short`. Of the existence questions half are noes, and half of the noes name something from a group that the picture
    does show.
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


def conversation(scene: Scene, rng, count: int = 10) -> list[Turn]:
    """Up to `count` questions and their answers as turns: a sample of stage 2, and of the exported conversations.json."""
    return [turn for question in questions(scene, rng, count, short=SHORT_SHARE) for turn in question.turns()]


def caption_request(scene: Scene, rng) -> list[Turn]:
    """One question that asks for a list or a description, and its answer: a sample of stage 1.

    This is the paper's simple expansion of an image and caption pair, "Human: Xq Xv  Assistant: Xc" (arXiv 2304.08485,
    section 3).
    """
    make = _MAKERS["describe" if rng.random() < 0.5 else "list"]
    return next(make(Facts(scene), rng)).turns()


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
    return pick(rng, QUESTIONS[template]).format(**words)


def _existence(facts: Facts, rng) -> Iterator[Question]:
    """A yes and a no for each name, in random order: balanced wherever the reader stops."""
    asked = set()
    for name in shuffled(rng, facts.count):
        yes_first = rng.random() < 0.5
        for yes in (yes_first, not yes_first):
            if yes:
                answer = f"Yes, {there(facts.count[name])} {counted(name, facts.count[name])}."
                yield Question("existence", _ask(rng, "existence", a=a(name)), answer, "yes", (name,))
            else:
                other = facts.absent(rng, hard=rng.random() < 0.5, but=asked)
                asked.add(other)
                yield Question(
                    "existence", _ask(rng, "existence", a=a(other)), f"No, there is no {other}.", "no", (other,)
                )


def _count_of(facts: Facts, rng) -> Iterator[Question]:
    asked = set()
    for name in shuffled(rng, facts.count):
        if rng.random() < 0.176:  # one zero for 0.85 / 0.15 others
            other = facts.absent(rng, hard=rng.random() < 0.5, but=asked)
            asked.add(other)
            yield Question(
                "count_of",
                _ask(rng, "count_of", many=plural(other)),
                f"There are no {plural(other)}.",
                "zero",
                (other,),
            )
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
    for thing in shuffled(rng, facts.single):
        if place := facts.place(thing):
            yield Question(
                "where",
                _ask(rng, "where", name=thing.name),
                f"The {thing.name} is {PLACE_PHRASE[place]}.",
                place,
                (thing.name,),
            )


def _relation(facts: Facts, rng) -> Iterator[Question]:
    """Each clear pair once openly or as yes/no, then once the other way."""
    pairs = [(pair, rng.random() < 0.5) for pair in shuffled(rng, facts.relations())]
    for pair, is_open in pairs + [(pair, not is_open) for pair, is_open in pairs]:
        one, rel, other = swap(pair, rng)
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
    for group in shuffled(rng, sorted(facts.groups)):
        name = _only(facts, GROUPS[group])
        if name is None or (group in VAGUE_GROUPS and len(facts.groups & VAGUE_GROUPS) > 1):
            continue
        if group == "food" and "animal" not in facts.groups and rng.random() < 0.5:  # one may eat a duck, too
            yield Question("group", _ask(rng, "eat"), f"You can eat the {name}.", name, (name,))
        elif len(facts.count) > 1:
            yield Question("group", _ask(rng, "group", a=a(group)), f"The {name} is {a(group)}.", name, (name,))


def _list(facts: Facts, rng) -> Iterator[Question]:
    yield Question(
        "list", _ask(rng, "list"), sentence(facts.there_listing()), names_text(facts.count), tuple(facts.count)
    )


def _describe(facts: Facts, rng) -> Iterator[Question]:
    sentences = [sentence(facts.there_listing()), f"The background is {facts.background(rng)}."]
    details = [
        f"The {one.name} is {rel} the {other.name}."
        for one, rel, other in (swap(pair, rng) for pair in facts.relations())
    ]
    details += [f"The {t.name} is {PLACE_PHRASE[facts.place(t)]}." for t in facts.single if facts.place(t)]
    if details:
        sentences.append(pick(rng, details))
    yield Question("describe", _ask(rng, "describe"), " ".join(sentences), names_text(facts.count), tuple(facts.count))


def _reasoning(facts: Facts, rng) -> Iterator[Question]:
    """What a thing is for, or which differs: asked only where nothing else in the scene would do as an answer."""
    shown, answers = facts.count.keys(), {"odd": _odd_one_out(facts)}
    if "boxing glove" not in shown:
        answers["wear"] = _only_answer(
            facts, GROUPS["piece of clothing"], "Someone could wear the {name}, because it is a piece of clothing."
        )
    if "device" not in facts.groups:  # a radio makes music too
        answers["music"] = _only_answer(
            facts, GROUPS["musical instrument"], "The {name} could make music, because it is a musical instrument."
        )
    if not shown & ARGUABLE:
        answers["fly"] = _only_answer(facts, CAN_FLY, "The {name} could fly, because {why}.")
        answers["water"] = _only_answer(facts, LIVES_IN_WATER, "The {name} lives in water.")
    for template, (name, answer) in shuffled(rng, [(key, found) for key, found in answers.items() if found]):
        yield Question("reasoning", _ask(rng, template), answer, name, (name,))


def _only_answer(facts: Facts, wanted, answer: str) -> tuple[str, str] | None:
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
            return names[
                0
            ], f"The {names[0]} does not belong, because it is {a(alone)} and the others are {plural(rest)}."
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
