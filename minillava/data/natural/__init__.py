"""The questions that people ask beyond the first ten kinds: groups, places, comparisons, follow-ups, what is not there
and what no picture tells.

A kind is a function of the scene's facts; how it is asked stands in wordings.json. There {a}, {many} and {name} are a
thing ("a cat", "cats", "cat"), {other} a second one, {rel} a relation and {where} a place ("on the left"). The
weights in the repository were not trained on these questions yet; talk.py makes a training's conversations of them.
"""

from collections.abc import Collection

from minillava.data.facts import Facts
from minillava.data.natural import follow_ups, of_groups, of_looks, of_nothing, of_places
from minillava.data.natural.asking import Asker, NaturalQuestion
from minillava.data.scenes import Scene

NATURAL = {
    "group_yes_no": of_groups.group_yes_no,
    "group_list": of_groups.group_list,
    "group_count": of_groups.group_count,
    "group_where": of_groups.group_where,
    "group_of": of_groups.group_of,
    "at_place": of_places.at_place,
    "where_yes_no": of_places.where_yes_no,
    "relation_yes_no": of_places.relation_yes_no,
    "either_or": of_places.either_or,
    "beside": of_places.beside,
    "nearest": of_places.nearest,
    "background_yes_no": of_looks.background_yes_no,
    "pattern": of_looks.pattern,
    "color_of": of_looks.color_of,
    "more": of_looks.more,
    "count_yes_no": of_looks.count_yes_no,
    "bigger": of_looks.bigger,
    "biggest": of_looks.biggest,
    "only": of_looks.only,
    "besides": of_looks.besides,
    "both": of_looks.both,
    "absent": of_nothing.absent,
    "unknown": of_nothing.unknown,
    "cannot_tell": of_nothing.cannot_tell,
    "small_talk": of_nothing.small_talk,
    "follow_up": follow_ups.follow_up,
}


def natural_questions(
    scene: Scene, rng, n: int, of: str = "training", kinds: Collection[str] | dict[str, int] = tuple(NATURAL)
) -> list[NaturalQuestion]:
    """Up to `n` questions of `kinds`, each as likely as another or as its weight says, in wordings of "training" or those
    "held out".
    """
    weights = kinds if isinstance(kinds, dict) else dict.fromkeys(kinds, 1)
    facts, ask, out = Facts(scene), Asker(rng, of), []
    makers = {kind: NATURAL[kind](facts, ask) for kind in kinds}
    while len(out) < n and makers:
        kind = ask.pick([kind for kind in makers for _ in range(weights[kind])])
        if question := next(makers[kind], None):
            out.append(question)
        else:  # this kind has nothing more to ask
            del makers[kind]
    return out
