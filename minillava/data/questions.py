"""Questions about a scene, with the answer as a sentence and as the bare word that decides whether an answer is right."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from minillava.data.asking import Asker, Question, casually, variously
from minillava.data.facts import NUMBERS, PLACE_PHRASE, Facts, a, counted, names_text, plural, sentence, swap, there
from minillava.data.natural import NATURAL
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
ALL_WEIGHTS = KIND_WEIGHTS | {kind: weight for kind, (_, weight) in NATURAL.items()}
SHORT_SHARE = 0.15  # of the questions of a conversation ask for a word or phrase
SHORT_PROMPT = "Answer the question using a single word or phrase."  # as in LLaVA-1.5 (arXiv 2310.03744, section 3.2)
NEVER_SHORT = ("describe", "absent", "cannot_tell", "small_talk", "follow_up")


def questions(
    scene: Scene,
    rng,
    n: int = 10,
    short: float | None = None,
    weights: dict[str, float] = KIND_WEIGHTS,
    of: str = "plain",
    typed=casually,
) -> list[Question]:
    """Up to `n` questions in random order of kinds (`weights`); a plain scene may not have ten.

    short: the share of them that asks for a single word or phrase, as LLaVA-1.5 does, and answers with `short`. Of the
    existence questions half are noes, and half of the noes name something from a group that the picture does show.
    of: the wordings, "plain" (the first ten kinds have such), "training", or "held out", which no training uses.
    typed: (text, rng) -> the text as someone types it.
    """
    facts, ask, out = Facts(scene), Asker(rng, of), []
    makers = {kind: _MAKERS[kind](facts, ask) for kind in weights}
    while len(out) < n and makers:
        kind = _weighted(rng, {kind: weights[kind] for kind in makers})
        question = next(makers[kind], None)
        if question is None:  # this kind has nothing more to ask
            del makers[kind]
            continue
        question = replace(question, text=typed(question.text, rng))
        is_short = short and kind not in NEVER_SHORT and rng.random() < short
        out.append(_shortened(question) if is_short else question)
    return out


def conversation(scene: Scene, rng, count: int = 10) -> list[Turn]:
    """Up to `count` questions of the first ten kinds and their answers as turns: the exported conversations.json."""
    return [turn for question in questions(scene, rng, count, SHORT_SHARE) for turn in question.turns()]


def talk(scene: Scene, rng, count: int = 10, kinds: Collection[str] = tuple(ALL_WEIGHTS)) -> list[Turn]:
    """Up to `count` questions of all kinds, in all wordings of the training, and their answers: a sample of stage 2."""
    weights = {kind: ALL_WEIGHTS[kind] for kind in kinds}
    asked = questions(scene, rng, count, SHORT_SHARE, weights, "training", variously)
    return [turn for question in asked for turn in question.turns()]


def caption_request(scene: Scene, rng) -> list[Turn]:
    """One question that asks for a list or a description, and its answer: a sample of stage 1.

    This is the paper's simple expansion of an image and caption pair, "Human: Xq Xv  Assistant: Xc" (arXiv 2304.08485,
    section 3).
    """
    make = _MAKERS["describe" if rng.random() < 0.5 else "list"]
    return next(make(Facts(scene), Asker(rng, "training"))).turns()


def _weighted(rng, weights: dict[str, float]) -> str:
    kinds, left = list(weights), rng.random() * sum(weights.values())
    for kind in kinds[:-1]:
        left -= weights[kind]
        if left < 0:
            return kind
    return kinds[-1]


def _shortened(question: Question) -> Question:
    return replace(question, text=f"{question.text}\n{SHORT_PROMPT}", answer=question.short)


def _existence(facts: Facts, ask: Asker) -> Iterator[Question]:
    """A yes and a no for each name, in random order: balanced wherever the reader stops."""
    asked = set()
    for name in ask.shuffled(facts.count):
        yes_first = ask.random() < 0.5
        for yes in (yes_first, not yes_first):
            if yes:
                answer = f"Yes, {there(facts.count[name])} {counted(name, facts.count[name])}."
                yield Question("existence", ask("existence", a=a(name), many=plural(name)), answer, "yes", (name,))
            else:
                other = facts.absent(ask, hard=ask.random() < 0.5, but=asked)
                asked.add(other)
                yield Question(
                    "existence",
                    ask("existence", a=a(other), many=plural(other)),
                    f"No, there is no {other}.",
                    "no",
                    (other,),
                )


def _count_of(facts: Facts, ask: Asker) -> Iterator[Question]:
    asked = set()
    for name in ask.shuffled(facts.count):
        if ask.random() < 0.176:  # one zero for 0.85 / 0.15 others
            other = facts.absent(ask, hard=ask.random() < 0.5, but=asked)
            asked.add(other)
            yield Question(
                "count_of",
                ask("count_of", many=plural(other)),
                f"There are no {plural(other)}.",
                "zero",
                (other,),
            )
        count = facts.count[name]
        answer = f"There is one {name}." if count == 1 else f"There are {counted(name, count)}."
        yield Question("count_of", ask("count_of", many=plural(name)), answer, NUMBERS[count], (name,))


def _count(facts: Facts, ask: Asker) -> Iterator[Question]:
    total = len(facts.things)
    answer = "There is one object." if total == 1 else f"There are {NUMBERS[total]} objects."
    yield Question("count", ask("count"), answer, NUMBERS[total])


def _color(facts: Facts, ask: Asker) -> Iterator[Question]:
    yield Question("color", ask("color"), f"The background is {facts.scene.color}.", facts.scene.color)


def _where(facts: Facts, ask: Asker) -> Iterator[Question]:
    for thing in ask.shuffled(facts.single):
        if place := facts.place(thing):
            yield Question(
                "where",
                ask("where", name=thing.name),
                f"The {thing.name} is {PLACE_PHRASE[place]}.",
                place,
                (thing.name,),
            )


def _relation(facts: Facts, ask: Asker) -> Iterator[Question]:
    """Each clear pair once openly or as yes/no, then once the other way."""
    pairs = [(pair, ask.random() < 0.5) for pair in ask.shuffled(facts.relations())]
    for pair, is_open in pairs + [(pair, not is_open) for pair, is_open in pairs]:
        one, rel, other = swap(pair, ask)
        names, truth = (one.name, other.name), f"the {one.name} is {rel} the {other.name}."
        if is_open:
            text = ask("relation", name=one.name, other=other.name)
            yield Question("relation", text, truth[0].upper() + truth[1:], rel, names)
        else:
            yes = ask.random() < 0.5
            words = dict(name=one.name, thing=a(one.name), other=other.name)
            text = ask("relation_yes_no", **words, rel=rel if yes else OPPOSITE[rel])
            yield Question("relation", text, f"{'Yes' if yes else 'No'}, {truth}", "yes" if yes else "no", names)


def _only(facts: Facts, wanted) -> str | None:
    """The one name in `wanted` that the scene shows, if it shows exactly one, once."""
    found = [name for name in facts.count if name in wanted]
    return found[0] if len(found) == 1 and facts.count[found[0]] == 1 else None


def _group(facts: Facts, ask: Asker) -> Iterator[Question]:
    for group in ask.shuffled(sorted(facts.groups)):
        name = _only(facts, GROUPS[group])
        if name is None or (group in VAGUE_GROUPS and len(facts.groups & VAGUE_GROUPS) > 1):
            continue
        if group == "food" and "animal" not in facts.groups and ask.random() < 0.5:  # one may eat a duck, too
            yield Question("group", ask("eat"), f"You can eat the {name}.", name, (name,))
        elif len(facts.count) > 1:
            yield Question("group", ask("group", a=a(group)), f"The {name} is {a(group)}.", name, (name,))


def _list(facts: Facts, ask: Asker) -> Iterator[Question]:
    yield Question("list", ask("list"), sentence(facts.there_listing()), names_text(facts.count), tuple(facts.count))


def _describe(facts: Facts, ask: Asker) -> Iterator[Question]:
    sentences = [sentence(facts.there_listing()), f"The background is {facts.background(ask)}."]
    details = [
        f"The {one.name} is {rel} the {other.name}."
        for one, rel, other in (swap(pair, ask) for pair in facts.relations())
    ]
    details += [f"The {t.name} is {PLACE_PHRASE[facts.place(t)]}." for t in facts.single if facts.place(t)]
    if details:
        sentences.append(ask.pick(details))
    yield Question("describe", ask("describe"), " ".join(sentences), names_text(facts.count), tuple(facts.count))


def _reasoning(facts: Facts, ask: Asker) -> Iterator[Question]:
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
    for template, (name, answer) in ask.shuffled([(key, found) for key, found in answers.items() if found]):
        yield Question("reasoning", ask(template), answer, name, (name,))


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
} | {kind: maker for kind, (maker, _) in NATURAL.items()}
