"""Writing a data set: its pictures, a contact sheet, charts, a report, a card, and the data last: if the data are
there, all is.
"""

import json
from collections import Counter
from pathlib import Path

from minillava.data.instruct import report
from minillava.data.instruct.card import card
from minillava.data.instruct.generate import DataSet
from minillava.data.instruct.prompts import Prompts
from minillava.data.instruct.settings import Settings
from minillava.data.instruct.sources import Picture
from minillava.data.scene_records import png
from minillava.errors import UserError
from minillava.files import locked, write_atomically


def write(settings: Settings, made: DataSet, pictures: list[Picture], prompts: Prompts) -> None:
    """Write the files and say what was left out; UserError where nothing is left to write."""
    reasons = sum(made.gone.values(), Counter())
    why = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
    if not made.records:
        raise UserError(f"Nothing is left to write: {sum(made.replies.values())} replies, all left out ({why}).")
    out = Path(settings.out)
    write_scenes(out.parent, made, pictures)
    write_atomically(out.with_suffix(".sheet.png"), report.contact_sheet(made, pictures, settings.images))
    write_atomically(out.with_suffix(".charts.png"), lambda path: report.charts(made.records, path))
    head = f"# {out.name}: what was made, and what was left out\n\n"
    write_atomically(out.with_suffix(".report.md"), f"{head}{report.text(made)}\n")
    write_atomically(settings.card or out.with_suffix(".card.md"), card(settings, made.records, len(pictures), prompts))
    write_atomically(out, json.dumps(made.records, indent=1, ensure_ascii=False) + "\n")
    print(f"{out}: {len(made.records)} records; left out: {reasons.total()}{f' ({why})' if why else ''}")


def write_scenes(folder: Path, made: DataSet, pictures: list[Picture]) -> None:
    """Draw the scenes that the records name into images/ of the folder."""
    named = {record["image"] for record in made.records}
    shown = [picture for picture in pictures if picture.scene and picture.image in named]
    if shown:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with locked(folder / "images"):
            for picture in shown:
                write_atomically(folder / picture.image, png(picture.scene.render()))
