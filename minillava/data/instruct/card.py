"""The card that goes with a data set: what it is, who wrote it from what, and what its licence depends on."""

from minillava.data.instruct.stats import count, table

LICENCES = {
    "scenes": "The scenes are this project's (Apache-2.0), drawn with Noto emoji (see minillava/data/EMOJI_LICENSE.md).",
    "coco": (
        "COCO's annotations are under CC BY 4.0; its pictures are Flickr users', each under its own licence and COCO's terms of use. "
        "The data set holds file names and text, no pictures."
    ),
    "jsonl": "The captions and boxes come from a file whose licence is not known to this program: look it up before you pass the data on.",
}
TEACHERS = {
    "rules": "The text was written by this project's rules (Apache-2.0).",
    "openai": "The text was written by a model behind an endpoint: its provider's terms say what the text may be used for.",
    "simple": "No teacher: captions answer requests for a brief description.",
    "own": "The text was written by the language model in a folder: its licence says what its output may be used for.",
}


def card(title: str, records: list[dict], made_from: dict[str, object], source: str, teacher: str) -> str:
    """Markdown. `made_from`: how it was made, name by value; `source` and `teacher` are keys of LICENCES and TEACHERS."""
    lines = [
        f"# {title}",
        "",
        "Visual instruction data in LLaVA's JSON: {id, image, conversations}. No one who wrote it has seen a picture.",
    ]
    lines += ["", "## What it holds", "", table(count(records)), "", "## How it was made", ""]
    lines += [f"- {name}: {value}" for name, value in made_from.items()]
    lines += ["", "## Licence", "", LICENCES[source], TEACHERS[teacher], "", "## Limits", ""]
    lines.append(
        "What no caption and no box tells is not in the data, and what they get wrong is. Filters find many invented objects, not all, and judge no "
        "other claims; see the report beside this file for what they left out."
    )
    return "\n".join(lines) + "\n"
