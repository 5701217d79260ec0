"""Which replies may stay, and why the others may not.

`judge` gives the pairs that stay, and for every pair or reply that goes a reason out of REASONS. A conversation loses
the bad pair alone, a description or a reasoning goes whole. Replies are strangers' texts of any length: no pattern
here has an open end (".*") behind a beginning that can occur often.
"""

import re
from collections.abc import Sequence

from minillava.data.instruct.objects import hallucinated
from minillava.data.instruct.replies import Pair, clean, parse_pairs
from minillava.data.instruct.teacher import Reply
from minillava.data.scenes import COLORS

REASONS = {
    "empty": "the reply, a question or an answer is empty",
    "refusal": "the teacher declines",
    "cut off": "the reply ended at the limit of tokens",
    "unparsable": "it is not in the form of questions and answers",
    "control token": "it holds a token that a template or tokenizer gives a meaning",
    "talks of its source": "it speaks of captions, boxes or coordinates, which no one sees in the picture",
    "cannot be known": "the question asks what the context does not tell, or the answer says so",
    "hallucinated object": "it names a thing that is neither in the captions nor among the boxes",
    "too short": "fewer words than the kind needs",
    "too long": "more words than the kind allows",
    "duplicate": "the same question was asked before about the picture, or the same answer given",
}
# least and most, of an answer
WORDS = {"conversation": (1, 150), "detail": (12, 400), "reasoning": (10, 400), "simple": (2, 60)}
LETTERS = 20  # of a word, at most, on average
LONGEST_QUESTION, LONGEST_REPLY = 1_000, 50_000  # characters

_CONTROL = re.compile(
    r"<image>|</?s>|<\|[^|]*\|>|\[/?INST\]|<</?SYS>>|###|<unk>|<pad>|\b(USER|ASSISTANT|Human|Assistant):"
)
_SOURCE = re.compile(
    r"\b(captions?|bounding[ -]box(es)?|coordinates?|annotations?|(provided|given) (text|context|descriptions?|information|sentences?)"
    r"|according to the (text|context|description|sentences?)"
    r"|(the|these|those|its|their) box(es)? (shows?|tells?|says?|indicates?|suggests?|are given))\b|\[\s*[01]?\.\d+\s*,",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^\W*(i'?m sorry|sorry,|i apologi[sz]e|unfortunately, i|as an? (ai|language model)"
    r"|i (can(not|'t)|am (not able|unable)|'m (not able|unable))|i'm (not able|unable))",
    re.IGNORECASE,
)
_IGNORANCE = re.compile(
    r"\b((not|cannot|can't|impossible|difficult|hard|unable) (be )?(possible )?(to )?(be )?"
    r"(determined?|told|tell|say|known?|specified|mentioned|stated|be sure)"
    r"|(is|are|does|do)(n't| not) (mention|specif|state|provide|clear|given)\w*|unknown|no information)\b",
    re.IGNORECASE,
)
_NEVER_SEEN = re.compile(
    r"\b(name of (the|this) (man|woman|person|boy|girl|dog|cat|photographer|street|city|place|restaurant)"
    r"|who (took|made|is taking) (the|this) (photo|picture|image)|when was (the|this) (photo|picture|image)|how old (is|are)"
    r"|how much (does|did|do) .{1,60} cost|what (camera|lens)|outside (of )?the (picture|image|frame)|what happen(s|ed) (before|after)"
    r"|what (is|are) .{1,60} thinking|what (year|date|day))\b",
    re.IGNORECASE,
)
_COLOR_QUESTION = re.compile(r"\bcolou?rs?\b", re.I)
_COLOR_WORDS = re.compile(r"\b(" + "|".join([*COLORS, "grey", "gold", "silver", "beige", "tan"]) + r")\b", re.I)


def judge(reply: Reply, kind: str, context: str, question: str = "") -> tuple[list[Pair], list[tuple[str, str]]]:
    """(pairs that stay, [(reason, text) that went]); `question` is what a description answers."""
    text = clean(reply.text)
    if not text:
        return [], [("cut off" if reply.truncated else "empty", "")]
    if len(text) > LONGEST_REPLY:
        return [], [("too long", text)]
    if _REFUSAL.search(text):
        return [], [("refusal", text)]
    if reply.truncated and kind != "conversation":
        return [], [("cut off", text)]
    pairs = [(question, text)] if kind in ("detail", "simple") else parse_pairs(text, reply.truncated)
    if not pairs:
        return [], [("cut off" if reply.truncated else "unparsable", text)]
    if kind == "reasoning" and len(pairs) > 1:
        return [], [("unparsable", text)]
    kept, gone = _sift(pairs, kind, context)
    return kept, gone + ([("cut off", text[-200:])] if reply.truncated else [])


def _sift(pairs: Sequence[Pair], kind: str, context: str) -> tuple[list[Pair], list[tuple[str, str]]]:
    kept, gone, asked = [], [], set()
    for question, answer in pairs:
        same = " ".join(re.findall(r"\w+", question.lower()))
        reason = "duplicate" if same in asked else fault(question, answer, kind, context)
        if reason:
            gone.append((reason, f"{question} {answer}"))
        else:
            kept.append((question, answer))
            asked.add(same)
    return kept, gone


def fault(question: str, answer: str, kind: str, context: str) -> str | None:
    """The first of REASONS that holds of a pair, or None."""
    words, (least, most) = len(answer.split()), WORDS[kind]
    # what the teacher wrote; the question of a description is ours
    written = answer if kind in ("detail", "simple") else f"{question}\n{answer}"
    checks = {
        "empty": lambda: not question.strip() or not answer.strip(),
        "too long": lambda: words > most or len(answer) > most * LETTERS or len(question) > LONGEST_QUESTION,
        "control token": lambda: _CONTROL.search(written),
        "refusal": lambda: _REFUSAL.search(answer),
        "talks of its source": lambda: _SOURCE.search(written),
        "cannot be known": lambda: (
            _NEVER_SEEN.search(question) or _IGNORANCE.search(answer) or _unseen_color(question, answer, context)
        ),
        "hallucinated object": lambda: hallucinated(answer, context),
        "too short": lambda: words < least,
    }
    return next((reason for reason, holds in checks.items() if holds()), None)


def _unseen_color(question: str, answer: str, context: str) -> bool:
    """Whether a question on colour is answered with one that the context does not name."""
    if not _COLOR_QUESTION.search(question):
        return False
    named = {word.lower().replace("grey", "gray") for word in _COLOR_WORDS.findall(context)}
    return any(word.lower().replace("grey", "gray") not in named for word in _COLOR_WORDS.findall(answer))
