"""A reply as question and answer pairs.

Conversation and reasoning are written as blocks "Question:" / "===" / "Answer:", joined by "===" (the form of LLaVA's
own prompt files); a detailed description is plain text, and its question is drawn from a list.
"""

import re

from minillava.errors import UNSHOWN

Pair = tuple[str, str]


# What a model that reasons writes before it answers, as in "<think>...</think>".
_THOUGHT = re.compile(r"(</?(?:think|thinking|thought|reasoning)>)", re.IGNORECASE)
_PART = re.compile(r"(question|answer):(.*)", re.IGNORECASE | re.DOTALL)


def clean(text: str) -> str:
    """The text of a reply without thoughts and without characters that control a terminal.

    Thoughts without a beginning, which some templates write into the prompt, began before the reply; those without an
    end reach to its end.
    """
    kept, is_thought = [], False
    for piece in _THOUGHT.split(UNSHOWN.sub("", "\n".join(text.splitlines()))):
        if _THOUGHT.fullmatch(piece):
            if piece[1] == "/" and not is_thought:
                kept.clear()
            is_thought = piece[1] != "/"
        elif not is_thought:
            kept.append(piece)
    return "".join(kept).strip()


def parse_pairs(text: str, truncated: bool = False) -> list[Pair] | None:
    """The pairs of a reply, in order; None if the whole reply is not in the form.

    truncated: the reply was cut off, and its last pair, which may lack its end, does not count.
    """
    parts = [part for part in _parts(text.strip().strip("`")) if part]
    if truncated:
        parts = parts[: (len(parts) - 1) // 2 * 2]
    said = [_PART.fullmatch(part) for part in parts]
    names = [match and match[1].lower() for match in said]
    if not parts or names != ["question", "answer"] * (len(parts) // 2):
        return None
    texts = [match[2].strip() for match in said]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _parts(text: str) -> list[str]:
    """What stands between the lines of three "=" and more; line by line, so that its time grows with the length."""
    parts = [[]]
    for line in text.split("\n"):
        if len(line.strip()) > 2 and not line.strip().strip("="):
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(lines).strip() for lines in parts]


def write_pairs(pairs: list[Pair]) -> str:
    """The text that `parse_pairs` reads."""
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in pairs)
