"""Scenes as files: pictures, LLaVA's conversation JSON, and the captions and boxes from which a text-only teacher can
write more.

python -m minillava.data --count 1000 --out FOLDER [--split val] [--start 5000]
python -m minillava.data --preview sheet.png
"""

import io
import json
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minillava.arguments import Parser, whole_number
from minillava.data.facts import captions
from minillava.data.questions import conversation
from minillava.data.scenes import SPLITS, Scene, sample_scene
from minillava.errors import UserError
from minillava.files import locked, write_atomically


def records(count: int, folder: str | Path, split: str = "train", start: int = 0) -> None:
    """Write scenes start..start + count - 1 of a split into `folder`, each file whole or absent, the lists after their
    pictures.

    images/NNNNNN.png      the picture of scene NNNNNN
    conversations.json     LLaVA's: [{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", ...}, ...]}]
    scenes.jsonl           a line a scene: {"id", "image", "captions": [5], "instances": [{"category", "bbox": [x1, y1, x2, y2]}]}

    "image" is relative to `folder`; a bbox is in fractions of the picture's side, as LLaVA's teacher reads boxes.
    """
    folder, conversations, lines = Path(folder), [], []
    for seed in range(start, start + count):
        scene, rng = sample_scene(seed, split), np.random.default_rng([SPLITS[split], seed, 1])
        about = {"id": f"{seed:06d}", "image": f"images/{seed:06d}.png"}
        write_atomically(folder / about["image"], png(scene.render()))
        conversations.append({**about, "conversations": _conversation(scene, rng)})
        instances = [{"category": name, "bbox": [round(edge, 3) for edge in box]} for name, box in scene.boxes()]
        lines.append(json.dumps({**about, "captions": captions(scene, rng), "instances": instances}) + "\n")
    write_atomically(folder / "scenes.jsonl", "".join(lines))
    write_atomically(folder / "conversations.json", json.dumps(conversations, indent=1) + "\n")


def _conversation(scene: Scene, rng) -> list[dict[str, str]]:
    """Two to six questions in LLaVA's JSON, the picture before the first."""
    (speaker, first), *rest = conversation(scene, rng, count=int(rng.integers(2, 7)))
    turns = [(speaker, "<image>\n" + first), *rest]
    return [{"from": {"user": "human", "assistant": "gpt"}[speaker], "value": text} for speaker, text in turns]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def preview(split: str = "train", start: int = 0, columns: int = 6, rows: int = 4) -> Image.Image:
    """A contact sheet, each scene with a caption under it."""
    side, text_height, gap, font = 168, 66, 8, ImageFont.load_default(11)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + text_height + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(columns * rows):
        scene = sample_scene(start + i, split, size=side)
        left, top = gap + i % columns * (side + gap), gap + i // columns * (side + text_height + gap)
        sheet.paste(scene.render(), (left, top))
        caption = captions(scene, np.random.default_rng(start + i), 2)[i % 2]
        draw.text((left, top + side + 3), textwrap.fill(caption, 28), "black", font, spacing=1)
    return sheet


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="data", description="Write scenes of the tiny world to files.")
    parser.add_argument("--count", type=whole_number(1, 10**6), default=1000, help="how many scenes (default 1000)")
    parser.add_argument("--out", help="folder for images/, conversations.json and scenes.jsonl")
    parser.add_argument(
        "--split", choices=SPLITS, default="train", help="train, val, or pairs: names never together in the others"
    )
    parser.add_argument("--start", type=whole_number(0, 10**12), default=0, help="seed of the first scene (default 0)")
    parser.add_argument("--preview", metavar="FILE.png", help="write a contact sheet of 24 scenes")
    flags = parser.parse_args(argv)
    if not (flags.out or flags.preview):
        raise UserError("Give --out FOLDER or --preview FILE.png; --help lists the options.")
    if flags.out:
        Path(flags.out).mkdir(parents=True, exist_ok=True)
        with locked(flags.out):
            records(flags.count, flags.out, flags.split, flags.start)
    if flags.preview:
        write_atomically(flags.preview, png(preview(flags.split, flags.start)))
