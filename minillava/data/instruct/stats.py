"""What a data set holds: kinds, turns, words, picture folders; of ours and of the published LLaVA-Instruct-150K and
mix665k files.

Published records do not name their kind, so it is told by their form: answers of one to five words on average are "short
answers", as in VQA; of the other records, those with several questions are conversations; a single question that asks
for a description makes "detail", any other "reasoning".
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import mean, median

from minillava.data.records import picture_name, read_turns
from minillava.errors import UserError

_DESCRIBE = re.compile(
    r"\b(descri(be|bing|ption)|explain (the )?(visual|various)|analy[sz]e|what is this photo|what's happening|go through)",
    re.I,
)
_TWO_WORDS = ("how many", "in which")


@dataclass
class Stats:
    """Counts over the records: words of the answers and turns by kind, first words of the questions, folders of the
    pictures.
    """

    records: int = 0
    text_only: int = 0
    words: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    turns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    openings: Counter = field(default_factory=Counter)
    folders: Counter = field(default_factory=Counter)
    broken: Counter = field(default_factory=Counter)


def kind_of(record: dict, turns: list[tuple[str, str]]) -> str:
    """The kind that a record names, or the one of its form."""
    if isinstance(record.get("kind"), str):
        return record["kind"]
    answers = [text for who, text in turns if who == "assistant"]
    if mean(len(answer.split()) for answer in answers) <= 5:
        return "short answers"
    if len(answers) > 1:
        return "conversation"
    return "detail" if _DESCRIBE.search(turns[0][1]) else "reasoning"


def opening(question: str) -> str:
    """The first word of a question, lower case; two if one does not tell what is asked."""
    words = re.findall(r"[\w']+", question.replace("<image>", "").lower())[:2]
    return " ".join(words) if " ".join(words) in _TWO_WORDS else words[0][:24] if words else "nothing"


def count(records: list[dict]) -> Stats:
    """The counts; a record that cannot be read is counted by what is wrong with it."""
    stats = Stats()
    for record in records:
        stats.records += 1
        try:
            turns, name = read_turns(record), picture_name(record)
        except UserError as error:
            stats.broken[re.sub(r"\d+", "N", str(error))] += 1
            continue
        kind = kind_of(record, turns)
        stats.text_only += name is None
        if name:
            stats.folders[name.rpartition("/")[0] or "."] += 1
        stats.turns[kind].append(len(turns) // 2)
        stats.words[kind] += [len(text.split()) for who, text in turns if who == "assistant"]
        stats.openings.update(opening(text) for who, text in turns if who == "user")
    return stats


def table(stats: Stats) -> str:
    """Markdown: a row a kind, then folders and first words."""
    lines = [
        "| kind | records | questions | questions a record | words an answer (mean, median, most) |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted(stats.turns):
        turns, words = stats.turns[kind], stats.words[kind]
        lines.append(
            f"| {kind} | {len(turns)} | {sum(turns)} | {mean(turns):.1f} | {mean(words):.1f}, {median(words):g}, {max(words)} |"
        )
    lines += ["", f"{stats.records} records, {stats.text_only} of text only."]
    lines += [f"{number} cannot be read: {why}." for why, number in stats.broken.most_common()]
    if stats.folders:
        lines.append(
            "Picture folders: "
            + ", ".join(f"{folder} {number}" for folder, number in stats.folders.most_common(12))
            + "."
        )
    if stats.openings:
        lines.append(
            "Questions begin with: "
            + ", ".join(f"{words} {number}" for words, number in stats.openings.most_common(12))
            + "."
        )
    return "\n".join(lines)
