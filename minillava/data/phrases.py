"""Short phrases that a picture makes true or false: what the vision tower's contrastive training compares pictures
with.
"""

from minillava.data.facts import NUMBERS, PATTERN_WORD, PLACE_PHRASE, Facts, a, pick, plural, shuffled, swap
from minillava.data.scenes import COLOR_NAMES, OPPOSITE, PATTERNS, PLACES, Scene


def contrastive_phrases(scene: Scene, rng, others: int = 3) -> list[tuple[str, str]]:
    """(true, contradicting) pairs: one for each name, one for each clear place, and a few `others` (counts, background,
    relations).
    """
    facts = Facts(scene)
    names = [(a(name), a(facts.absent(rng, hard=rng.random() < 0.5))) for name in facts.count]
    pairs = [_count_phrases(name, count, rng) for name, count in facts.count.items()]
    pairs += [_count_phrases("object", len(facts.things), rng), *_background_phrases(scene, rng)]
    for pair in facts.relations():
        one, rel, other = swap(pair, rng)
        pairs.append((f"{a(one.name)} {rel} {a(other.name)}", f"{a(other.name)} {rel} {a(one.name)}"))
    return names + _place_phrases(facts, rng) + shuffled(rng, pairs)[:others]


def true_phrases(scene: Scene) -> set[str]:
    """Every phrase of the forms above that is true of the scene: a phrase made for another picture of the batch may be
    true here, too.
    """
    facts = Facts(scene)
    true = {a(name) for name in facts.count}
    true |= {_counted_phrase(name, count) for name, count in [*facts.count.items(), ("object", len(facts.things))]}
    true |= {f"{a(thing.name)} {PLACE_PHRASE[facts.place(thing)]}" for thing in facts.things if facts.place(thing)}
    true |= {f"{a(scene.color)} background", f"{a(PATTERN_WORD[scene.pattern] + ' ' + scene.color)} background"}
    for one, rel, other in facts.relations():
        true |= {f"{a(one.name)} {rel} {a(other.name)}", f"{a(other.name)} {OPPOSITE[rel]} {a(one.name)}"}
    return true


def _counted_phrase(name: str, count: int) -> str:
    return f"{NUMBERS[count]} {name if count == 1 else plural(name)}"


def _count_phrases(name: str, count: int, rng) -> tuple[str, str]:
    wrong = pick(rng, [other for other in range(1, 6) if other != count and abs(other - count) <= 2])
    return _counted_phrase(name, count), _counted_phrase(name, wrong)


def _place_phrases(facts: Facts, rng) -> list[tuple[str, str]]:
    pairs = []
    for name in facts.count:
        places = [facts.place(thing) for thing in facts.things if thing.name == name]
        if all(places):  # else the wrong place might be arguable
            wrong = pick(rng, [place for place in PLACES if place not in places])
            pairs.append((f"{a(name)} {PLACE_PHRASE[pick(rng, places)]}", f"{a(name)} {PLACE_PHRASE[wrong]}"))
    return pairs


def _background_phrases(scene: Scene, rng) -> list[tuple[str, str]]:
    color = pick(rng, [color for color in COLOR_NAMES if color != scene.color])
    pattern = PATTERN_WORD[scene.pattern]
    wrong = PATTERN_WORD[pick(rng, [other for other in PATTERNS if other != scene.pattern])]
    false = f"{wrong} {scene.color}" if rng.random() < 0.5 else f"{pattern} {color}"
    return [
        (f"{a(scene.color)} background", f"{a(color)} background"),
        (f"{a(pattern + ' ' + scene.color)} background", f"{a(false)} background"),
    ]
