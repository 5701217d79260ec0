"""LLaVA's JSON as people have it: records from a file, and the picture and turns of one record, without opening the
picture.

A file is a JSON list, or one object a line (JSONL, whose lines end in "\\n" alone); UTF-8, 16 or 32, with or without a
byte order mark.
"""

import json
import re
from pathlib import Path

from minillava.errors import UserError
from minillava.files import parse_json, read_file
from minillava.inputs.conversation import Turn

LARGEST = 1 << 33  # bytes of a file; LLaVA-1.5's has one gigabyte
# What other programs call a picture, as a key and in a question.
PICTURE_KEY = re.compile(r"image|img|picture|photo|video", re.IGNORECASE)
PICTURE_MARK = re.compile(r"<\|?(image|img|picture|video)\w*\|?>", re.IGNORECASE)
MOSTLY = 0.9  # of all records: so many without the pictures that they speak of are a mistake
SPEAKERS = {"human": "user", "gpt": "assistant"}


def read_records(path: Path) -> list[dict]:
    """The records of a file; UserError in one sentence for what is no list of objects."""
    data = read_file(path, LARGEST)
    lines = _json_lines(data, path)
    records = parse_json(data, path) if lines is None else lines
    if isinstance(records, dict) and "conversations" in records:  # a list of one
        records = [records]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} must hold a list of records, each an object with conversations, as LLaVA's data does.")
    if not records:
        raise UserError(f"{path} holds no records.")
    return records


def _json_lines(data: bytes, path: Path) -> list | None:
    """The objects of a JSONL file; None if its first line is no object by itself, so that the file is one JSON text."""
    encoding = json.detect_encoding(data)
    if not data[:1000].decode(encoding, "ignore").lstrip().startswith("{"):
        return None
    try:
        lines = [(number, line) for number, line in enumerate(data.decode(encoding).split("\n"), 1) if line.strip()]
        if len(lines) == 1 or not isinstance(json.loads(lines[0][1]), dict):
            return None
    except (ValueError, RecursionError):
        return None
    return [parse_json(line.encode(), f"{path}, line {number},") for number, line in lines]


def named(index: int, record: dict) -> str:
    """How messages name a record."""
    return f"record {index} (id {str(record.get('id'))[:40]!r})"


def picture_name(record: dict) -> str | None:
    """The record's picture: "a.png" or ["a.png"]; None in text-only records."""
    name = record.get("image") or record.get("images")
    if isinstance(name, list):
        if len(name) > 1:
            raise UserError(f"it names {len(name)} pictures, and several pictures are not supported")
        name = name[0] if name else None
    if not name:
        return None
    if not isinstance(name, str):
        raise UserError(f"its image must be the name of a file, not {type(name).__name__}")
    if name.lower().startswith(("data:", "http:", "https:")):
        raise UserError(
            f"its image is a {name.partition(':')[0]}: address; pictures must be files in the folder that --images names"
        )
    return name


def sign_of_a_picture(record: dict, turns: list[Turn]) -> str:
    """What in a record that names no picture says that there is one: another key, or a mark with which the first
    question begins or ends. "" in a record of text alone.
    """
    held = {key for key, value in record.items() if value and isinstance(value, str | list | dict)}
    question = turns[0][1].strip()
    marks = (m[0] for m in PICTURE_MARK.finditer(question) if m.start() == 0 or m.end() == len(question))
    return next(filter(PICTURE_KEY.search, sorted(held)), None) or next(marks, "")


def tell_unnamed(path: str | Path, num_records: int, unnamed: list[str]) -> None:
    """Say how many records speak of pictures that they do not name, each given as its name and what in it speaks of one;
    UserError where nearly all do.
    """
    if not unnamed:
        return
    line = f"{len(unnamed)} of {num_records} records speak of pictures that are not under 'image' ({unnamed[0]})"
    if len(unnamed) >= MOSTLY * num_records:
        raise UserError(f"{path}: {line}: rename the key")
    print(f"note: {line}: they count as text alone")


def read_turns(record: dict) -> list[Turn]:
    """What was said, user first; "<image>" is still in the text."""
    conversations = record.get("conversations")
    texts = (
        [turn.get("value") for turn in conversations if isinstance(turn, dict)]
        if isinstance(conversations, list)
        else []
    )
    if not texts or len(texts) != len(conversations) or not all(isinstance(text, str) for text in texts):
        raise UserError("it has no conversations: a list of {from, value} is needed")
    for number, turn in enumerate(conversations):
        expected = ("human", "gpt")[number % 2]
        if turn.get("from") != expected:
            raise UserError(f"turn {number + 1} is from {turn.get('from')!r} where {expected!r} is due")
    if len(conversations) % 2:
        raise UserError("the last question has no answer")
    return [(SPEAKERS[turn["from"]], turn["value"]) for turn in conversations]


def without_mark(turns: list[Turn]) -> list[Turn]:
    """The turns of a record with a picture, without the "<image>" of the first question, where it must stand once;
    elsewhere it is text.
    """
    marks = turns[0][1].count("<image>")
    if marks != 1:
        raise UserError(f"<image> must stand once in the first question; it stands {marks} times")
    return [("user", turns[0][1].replace("<image>", "").strip()), *turns[1:]]
