"""What was made and what was left out, as text and as pictures: a contact sheet of picture, context and reply; charts
of questions and words.
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from minillava.data.instruct.context import symbolic_context
from minillava.data.instruct.filters import REASONS
from minillava.data.instruct.generate import DataSet
from minillava.data.instruct.sources import Picture
from minillava.data.instruct.stats import count
from minillava.errors import UserError
from minillava.files import inside
from minillava.inputs.image import open_image

WHY = {**REASONS, "noun phrases": "its noun phrases are rare, or frequent and their hundred captions are full"}


def text(made: DataSet) -> str:
    """Markdown: for each kind how many replies gave how many records, and why the others went, with samples."""
    kept = {kind: sum(record["kind"] == kind for record in made.records) for kind in made.replies}
    lines = [
        "| kind | replies | records |",
        "|---|---|---|",
        *(f"| {kind} | {made.replies[kind]} | {kept[kind]} |" for kind in made.replies),
    ]
    reasons = [reason for reason in WHY if any(counts[reason] for counts in made.gone.values())]
    if not reasons:
        return "\n".join([*lines, "", "Nothing was left out."])
    kinds = list(made.gone)
    lines += ["", f"| left out because | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    lines += [
        f"| {reason}: {WHY[reason]} | " + " | ".join(str(made.gone[kind][reason]) for kind in kinds) + " |"
        for reason in reasons
    ]
    for reason in reasons:
        lines += ["", f"{reason}:", "", *(f"    {' '.join(sample.split())[:300]}" for sample in made.samples[reason])]
    return "\n".join(lines)


def contact_sheet(made: DataSet, pictures: Sequence[Picture], images: str) -> bytes:
    """PNG: for the first pictures of the data set the picture, what the teacher read, and what it wrote."""
    written: dict[str, list[dict]] = {}
    for record in made.records:
        written.setdefault(record["image"], []).append(record)
    shown = [picture for picture in pictures if picture.image in written][:6]
    contexts = [_wrapped(symbolic_context(picture, "detail"), 58, 24) for picture in shown]
    blocks = [
        (_thumbnail(picture, images), context, _replies(written[picture.image]))
        for picture, context in zip(shown, contexts, strict=True)
    ]
    line, side, font = 15, 200, ImageFont.load_default(12)
    heights = [max(side, line * max(len(context), len(replies))) + 24 for _, context, replies in blocks]
    sheet = Image.new("RGB", (1240, max(60, sum(heights))), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for (picture, context, replies), height in zip(blocks, heights, strict=True):
        if picture:
            sheet.paste(picture, (10, top + 12))
        for left, lines in ((220, context), (610, replies)):
            for number, words in enumerate(lines):
                draw.text((left, top + 12 + number * line), words, "black", font)
        top += height
        draw.line((0, top - 1, sheet.width, top - 1), "lightgray")
    file = io.BytesIO()
    sheet.save(file, "png")
    return file.getvalue()


def _thumbnail(picture: Picture, images: str) -> Image.Image | None:
    """200 pixels wide at most; None where there is no file to show."""
    if picture.scene:
        return picture.scene.render().resize((200, 200))
    if not images:
        return None
    try:
        image = open_image(inside(images, picture.image))
    except UserError:
        return None
    image.thumbnail((200, 200))
    return image


def _replies(records: list[dict]) -> list[str]:
    lines = []
    for record in records:
        lines.append(f"[{record['kind']}]")
        for turn in record["conversations"]:
            lines += _wrapped(
                ("Q: " if turn["from"] == "human" else "A: ") + turn["value"].replace("<image>\n", ""), 95, 7
            )
    return lines[:40]


def _wrapped(text: str, width: int, most: int) -> list[str]:
    lines = text[: width * most].split("\n")  # more is not shown
    lines = [piece for line in lines for piece in (textwrap.wrap(line, width) or [""])]
    return lines if len(lines) <= most else [*lines[: most - 1], "..."]


def charts(records: list[dict], path: Path) -> None:
    """PNG: how questions begin, and the words of an answer by kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, for it takes a second to import
    from matplotlib.figure import Figure

    stats = count(records)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    openings = stats.openings.most_common(12)[::-1]
    left.barh([words for words, _ in openings], [number for _, number in openings])
    left.set_title("how questions begin")
    left.set_xlabel("questions")
    kinds = sorted(stats.words)
    right.boxplot([stats.words[kind] for kind in kinds], orientation="horizontal", showfliers=False)
    right.set_yticks(range(1, len(kinds) + 1), kinds)
    right.set_title("words of an answer (box: the middle half)")
    right.set_xlabel("words")
    right.set_xlim(left=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font may lack characters
        figure.savefig(path, dpi=110, format="png")
