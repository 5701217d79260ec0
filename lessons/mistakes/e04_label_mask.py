"""Known mistakes in lessons/exercises/e04_label_mask.py."""

from lessons.mistakes.base import mistake


def mask_variant(decide, shift=0, ignore=-100):
    def label_mask(ids, offsets, supervised_at):
        labels = [
            i if decide(start, end, supervised_at) else ignore for i, (start, end) in zip(ids, offsets, strict=True)
        ]
        return labels[shift:] + [ignore] * min(shift, len(labels))

    return label_mask


def last_character(start, end, at):
    return end > start and at[end - 1]


for sentence, options in {
    "you supervise the questions and mask the answers; it is the other way round": {
        "decide": lambda s, e, at: e > s and not at[e - 1]
    },
    "every token pays in yours; the questions and the template must have the label -100": {
        "decide": lambda s, e, at: e > s
    },
    "you decide by the first character of a token; the last one counts, since a token may begin with the space before a word": {
        "decide": lambda s, e, at: e > s and at[s]
    },
    "`end` is one behind the token's last character: look at supervised_at[end - 1]": {
        "decide": lambda s, e, at: e > s and e < len(at) and at[e]
    },
    "a token without characters pays in yours: it comes from nowhere in the answer, so its label is -100": {
        "decide": lambda s, e, at: bool(at) and at[e - 1]
    },
    "you ask for all of a token's characters to be supervised; the last one alone decides": {
        "decide": lambda s, e, at: e > s and all(at[s:e])
    },
    "one supervised character anywhere in a token is enough for yours; the last one alone decides": {
        "decide": lambda s, e, at: any(at[s:e])
    },
    "your labels are shifted by one; the loss does that, and twice is once too often": {
        "decide": last_character,
        "shift": 1,
    },
    "your masked labels are 0, which is a token; the label that cross entropy leaves out is -100": {
        "decide": last_character,
        "ignore": 0,
    },
}.items():
    mistake("label_mask", "label_mask", sentence)(mask_variant(**options))
