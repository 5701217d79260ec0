"""The card that goes with a data set: what it is, who wrote it from what, and what its licence depends on."""

from pathlib import Path

from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.settings import Settings
from minillava.data.instruct.stats import count, table

LICENCES = {
    "scenes": "The scenes are this project's (Apache-2.0), drawn with Noto emoji (see minillava/data/EMOJI_LICENSE.md).",
    "coco": (
        "COCO's annotations are under CC BY 4.0; its pictures are Flickr users', each under its own licence and COCO's "
        "terms of use. The data set holds file names and text, no pictures."
    ),
    "jsonl": (
        "The captions and boxes come from a file whose licence is not known to this program: look it up before you "
        "pass the data on."
    ),
}
TEACHERS = {
    "rules": "The text was written by this project's rules (Apache-2.0).",
    "openai": (
        "The text was written by a model behind an endpoint: its provider's terms say what the text may be used for."
    ),
    "simple": "No teacher: captions answer requests for a brief description.",
    "own": "The text was written by the language model in a folder: its licence says what its output may be used for.",
}


def card(settings: Settings, records: list[dict], pictures: int, prompts: Prompts) -> str:
    """Markdown."""
    told = {
        "source": f"{settings.source}, {pictures} pictures from {settings.start} on",
        "kinds": settings.kind,
        "teacher": settings.teacher,
        "prompts": f"{prompts.digest()} (hash of all texts, {prompts.shots} worked examples at most)",
        "seed": settings.seed,
    }
    if settings.teacher != "rules":
        told |= {"temperature": settings.temperature, "max tokens": settings.max_tokens}
    is_coco = Path(settings.source).name.startswith("captions_")
    source = LICENCES["coco"] if is_coco else LICENCES.get(settings.source, LICENCES["jsonl"])
    is_taught = any(record["kind"] != "simple" for record in records)
    teacher = TEACHERS.get(settings.teacher, TEACHERS["own"]) if is_taught else TEACHERS["simple"]
    made_from = "\n".join(f"- {name}: {value}" for name, value in told.items())
    return f"""# {Path(settings.out).stem}

Visual instruction data in LLaVA's JSON: {{id, image, conversations}}. No one who wrote it has seen a picture.

## What it holds

{table(count(records))}

## How it was made

{made_from}

## Licence

{source}
{teacher}

## Limits

What no caption and no box tells is not in the data, and what they get wrong is. Filters find many invented objects, not
all, and judge no other claims; see the report beside this file for what they left out.
"""
