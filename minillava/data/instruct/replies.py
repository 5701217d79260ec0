"""A reply as question and answer pairs.

Conversation and reasoning are written as blocks "Question:" / "===" / "Answer:", joined by "===" (the form of LLaVA's
own prompt files); a detailed description is plain text, and its question is drawn from a list."""

import re

Pair = tuple[str, str]


def parse_pairs(text: str) -> list[Pair] | None:
    """The pairs of a reply, in order; None if the whole reply is not in the form."""
    parts = re.split(r"^\s*={3,}\s*$", text.strip().strip("`").strip(), flags=re.MULTILINE)
    parts = [part.strip() for part in parts if part.strip()]
    if not parts or len(parts) % 2:
        return None
    pairs = []
    for question, answer in zip(parts[::2], parts[1::2], strict=True):
        asked, told = (
            re.match(r"Question:\s*(.+)", question, re.DOTALL | re.I),
            re.match(r"Answer:\s*(.*)", answer, re.DOTALL | re.I),
        )
        if not (asked and told):
            return None
        pairs.append((asked[1].strip(), told[1].strip()))
    return pairs


def whole_pairs(text: str) -> list[Pair] | None:
    """The pairs of a reply that was cut off: all but the last block, which may lack its end."""
    blocks = list(re.finditer(r"^\s*={3,}\s*\n\s*Question:", text, flags=re.MULTILINE | re.I))
    return parse_pairs(text[: blocks[-1].start()]) if blocks else None


def write_pairs(pairs: list[Pair]) -> str:
    """The text that `parse_pairs` reads."""
    return "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in pairs)
