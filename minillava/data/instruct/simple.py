"""The simple expansion: a caption answers a request for a brief description; and the filter by noun phrases that made
CC-595K from CC3M.

Visual Instruction Tuning (arXiv 2304.08485), section 4.2 and appendix: noun phrases are counted over all captions;
those that occur less than 3 times are passed over; then, from the rarest on, each phrase's captions are taken, at most
100 of a phrase. The authors found the phrases with spaCy. Here they are found without a tagger: function words, frequent
verbs, adverbs in -ly and punctuation end a phrase, and what stands between them is one. That finds "red fire engine",
but a rare verb ("a man juggles balls") stays in its phrase, which then counts as rare.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

RARE, MOST = 3, 100  # as the paper
FUNCTION_WORDS = """
a an the this that these those his her its their my your our some any each every no one two three four five six seven eight nine ten several
many few more most other another both all he she it they we you i him them who which what where when while as of in on at by with from to into
onto over under above below behind beside besides between near next front top bottom left right middle along across through around up down out
off inside outside against toward towards for and or but nor so than then there here is are was were be been being has have had do does did can
could will would may might must not very too also just about during after before
"""
VERBS = """
sit sits sitting stand stands standing lie lies lying lay laying walk walks walking ride rides riding hold holds holding wear wears wearing look
looks looking play plays playing eat eats eating run runs running show shows showing shown see seen seeing make makes making take takes taking
hang hangs hanging drive drives driving fly flies flying jump jumps jumping carry carries carrying rest rests resting park parked filled covered
made placed surrounded get gets getting go goes going use uses using wait waits waiting talk talks talking watch watches watching
"""
_BREAKS = frozenset(f"{FUNCTION_WORDS} {VERBS}".split())


def noun_phrases(caption: str) -> set[str]:
    """The runs of content words of a caption, lower case."""
    phrases, run = set(), []
    for word in [*re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\d+|[^\w\s]", caption.lower()), "."]:
        if not word[0].isalpha() or word in _BREAKS or (word.endswith("ly") and len(word) > 5):
            if run:
                phrases.add(" ".join(run))
            run = []
        else:
            run.append(word)
    return phrases


def frequent_captions(captions: Sequence[str], seed: int = 0) -> list[int]:
    """The indices that the filter keeps, ascending."""
    holding: dict[str, list[int]] = defaultdict(list)
    for index, caption in enumerate(captions):
        for phrase in noun_phrases(caption):
            holding[phrase].append(index)
    kept: set[int] = set()
    rng = np.random.default_rng(seed)
    for phrase in sorted(
        (phrase for phrase in holding if len(holding[phrase]) >= RARE),
        key=lambda phrase: (len(holding[phrase]), phrase),
    ):
        indices = holding[phrase]
        kept.update(indices if len(indices) <= MOST else (int(i) for i in rng.choice(indices, MOST, replace=False)))
    return sorted(kept)
