"""From pictures to LLaVA's JSON: requests, replies, filters, records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from minillava.data.instruct.context import KINDS, WITH_BOXES, symbolic_context
from minillava.data.instruct.filters import judge
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.replies import Pair
from minillava.data.instruct.simple import frequent_captions
from minillava.data.instruct.sources import Picture
from minillava.data.instruct.teacher import Reply, Request, request_seed
from minillava.errors import UserError

SAMPLES = 5  # of what was left out, for each reason, in the report


@dataclass
class DataSet:
    """The records, and what was left out: {kind: {reason: count}} and a few texts a reason."""

    records: list[dict] = field(default_factory=list)
    replies: Counter = field(default_factory=Counter)
    gone: dict[str, Counter] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, picture: Picture, kind: str, pairs: Sequence[Pair], gone: Sequence[tuple[str, str]]) -> None:
        """Count a reply, note what of it is left out, and make a record of the rest in LLaVA's JSON: the picture stands
        before the first question. "kind" is ours, and other readers ignore it.
        """
        self.replies[kind] += 1
        for reason, text in gone:
            self.gone.setdefault(kind, Counter())[reason] += 1
            if len(held := self.samples.setdefault(reason, [])) < SAMPLES:
                held.append(text[:400])
        turns = [
            {"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)
        ]
        if turns:
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            about = {"id": f"{picture.id}-{kind}", "image": picture.image, "kind": kind}
            self.records.append({**about, "conversations": turns})


def make_requests(pictures: Sequence[Picture], kinds: Sequence[str], prompts: Prompts, seed: int) -> list[Request]:
    """A request for each picture and each kind that a teacher writes, picture by picture."""
    if set(kinds) & set(WITH_BOXES) and not any(picture.instances for picture in pictures):
        raise UserError(
            "No picture has boxes, from which detail and reasoning are written: put instances_X.json beside captions_X.json."
        )
    return [
        Request(
            picture, kind, prompts.messages(kind, symbolic_context(picture, kind)), request_seed(seed, picture, kind)
        )
        for picture in pictures
        for kind in kinds
        if kind in KINDS
    ]


def assemble(requests: Sequence[Request], replies: Sequence[Reply], prompts: Prompts) -> DataSet:
    """The data set of what the filters keep, in the order of the requests; the order of the replies plays no part."""
    made, asked, questions = DataSet(), set(), prompts.questions("detail")
    for request, reply in zip(requests, replies, strict=True):
        picture, kind = request.picture, request.kind
        question = questions[request.seed % len(questions)] if kind == "detail" else ""
        pairs, gone = judge(reply, kind, symbolic_context(picture, "detail"), question)
        kept = []
        for pair in pairs:
            if (picture.id, *pair) in asked or (kind != "conversation" and pair[1] in asked):
                gone.append(("duplicate", " ".join(pair)))
            else:
                asked |= {(picture.id, *pair)} | ({pair[1]} if kind != "conversation" else set())
                kept.append(pair)
        made.add(picture, kind, kept, gone)
    return made


def expand(pictures: Sequence[Picture], prompts: Prompts, seed: int, noun_phrases: bool) -> DataSet:
    """The simple expansion: one caption of each picture answers a brief request; with `noun_phrases`, only captions
    that CC-595K's filter keeps.
    """
    made, questions = DataSet(), prompts.questions("brief")
    draws = [np.random.default_rng(request_seed(seed, picture, "simple")) for picture in pictures]
    said = [
        picture.captions[int(rng.integers(len(picture.captions)))] for picture, rng in zip(pictures, draws, strict=True)
    ]
    kept = set(frequent_captions(said, seed=seed)) if noun_phrases else set(range(len(said)))
    for index, (picture, caption, rng) in enumerate(zip(pictures, said, draws, strict=True)):
        question = questions[int(rng.integers(len(questions)))]
        pairs, gone = judge(Reply(caption), "simple", "\n".join(picture.captions), question)
        if pairs and index not in kept:
            pairs, gone = [], [("noun phrases", caption)]
        made.add(picture, "simple", pairs, gone)
    return made


def merge(*sets: DataSet) -> DataSet:
    """Several data sets as one."""
    whole = DataSet()
    for part in sets:
        whole.records += part.records
        whole.replies += part.replies
        for kind, counts in part.gone.items():
            whole.gone[kind] = whole.gone.get(kind, Counter()) + counts
        for reason, texts in part.samples.items():
            whole.samples[reason] = (whole.samples.get(reason, []) + texts)[:SAMPLES]
    return whole
