"""How well hallucinated objects are found: precision and recall on planted ones.

Every picture's caption is judged twice against what is left of its context without that caption. As it stands it is
true, so what is flagged is a false alarm. Then one object word in it is replaced by one that the whole context lacks:
that is to be flagged. A caption that names a thing which no other caption and no box names counts as a false alarm,
too, though a teacher could not have known the thing: precision is a lower bound. What is planted is in the vocabulary
of objects.py: recall says nothing of words outside it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minillava.data.instruct.context import symbolic_context
from minillava.data.instruct.objects import AMBIGUOUS, class_of, hallucinated, object_classes, object_words
from minillava.data.instruct.sources import Picture


def planted(pictures: Sequence[Picture], seed: int = 0) -> dict[str, float]:
    """Counts and figures: "true" texts, "planted" texts, "precision", "recall" of the flag over both together."""
    rng, hits, false_alarms, texts, plants = np.random.default_rng(seed), 0, 0, 0, 0
    classes = sorted(set(class_of().values()) - AMBIGUOUS)
    for picture in pictures:
        named = object_classes(symbolic_context(picture, "detail"))
        absent = [name for name in classes if name not in named]
        for index, caption in enumerate(picture.captions):
            others = replace(picture, captions=picture.captions[:index] + picture.captions[index + 1 :])
            context = symbolic_context(others, "detail")
            texts += 1
            false_alarms += bool(hallucinated(caption, context))
            if (words := object_words(caption)) and absent:
                word = words[int(rng.integers(len(words)))]
                plants += 1
                hits += bool(
                    hallucinated(caption.lower().replace(word, absent[int(rng.integers(len(absent)))], 1), context)
                )
    flagged = hits + false_alarms
    return {
        "true": texts,
        "false alarms": false_alarms,
        "planted": plants,
        "found": hits,
        "precision": round(hits / flagged, 3) if flagged else 0.0,
        "recall": round(hits / plants, 3) if plants else 0.0,
    }
