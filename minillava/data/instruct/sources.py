"""Pictures whose captions and boxes are known: COCO's annotation files, JSONL, or scenes of the tiny world.

COCO (cocodataset.org, "data format"): captions_*.json and instances_*.json, boxes [x, y, width, height] in pixels; 2014
and 2017 alike. JSONL: a line a picture, {"id", "image", "captions": [...], "instances": [{"category", "bbox": [x1, y1,
x2, y2]}]}, boxes in fractions of width and height, as `python -m minillava.data` writes them. Every file is treated as
untrusted."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillava.data.facts import captions
from minillava.data.scenes import SPLITS, Box, Scene, sample_scene
from minillava.errors import UserError
from minillava.files import check_name, parse_json, read_file, read_json


@dataclass(frozen=True)
class Picture:
    """What is known of a picture. Boxes are (x1, y1, x2, y2) in fractions of its width and height; `scene` is known in
    the tiny world alone.
    """

    id: str
    image: str
    captions: tuple[str, ...]
    instances: tuple[tuple[str, Box], ...] = ()
    scene: Scene | None = None


def read_source(source: str, start: int = 0, limit: int = 0) -> list[Picture]:
    """Pictures start .. start + limit - 1 of "scenes", of a captions_*.json or of a .jsonl file; limit 0: all (of the
    endless scenes: 100).
    """
    if start < 0 or limit < 0:
        raise UserError(f"--start {start} --limit {limit}: both must be 0 or more.")
    if source == "scenes":
        return [scene_picture(seed) for seed in range(start, start + (limit or 100))]
    path = Path(source)
    pictures = read_coco(path) if path.name.startswith("captions_") else read_jsonl(path)
    pictures = pictures[start : start + limit if limit else None]
    if not pictures:
        raise UserError(f"{source} holds no pictures with captions after --start {start}.")
    return pictures


def scene_picture(seed: int, split: str = "train") -> Picture:
    """A scene, with the captions and boxes that `python -m minillava.data` writes of it."""
    scene, rng = sample_scene(seed, split), np.random.default_rng([SPLITS[split], seed, 2])
    boxes = tuple((name, tuple(round(edge, 3) for edge in box)) for name, box in scene.boxes())
    return Picture(f"{seed:06d}", f"images/{seed:06d}.png", tuple(captions(scene, rng)), boxes, scene)


# ---- JSONL
def read_jsonl(path: Path) -> list[Picture]:
    """A picture a line; UserError that names the line."""
    pictures, lines = [], read_file(path).decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                pictures.append(_picture(parse_json(line.encode(), "it")))
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    _expect_different([picture.id for picture in pictures], path)
    return pictures


def _picture(value) -> Picture:
    if not isinstance(value, dict) or not isinstance(value.get("image"), str):
        raise UserError("it must be an object with an image, the name of a file, and captions.")
    check_name(value["image"])
    said, instances = value.get("captions"), value.get("instances", [])
    if not isinstance(said, list) or not said or not all(isinstance(text, str) for text in said):
        raise UserError("its captions must be a list of at least one text.")
    if not isinstance(instances, list) or not all(
        isinstance(item, dict) and isinstance(item.get("category"), str) for item in instances
    ):
        raise UserError("its instances must be a list of objects with a category and a bbox.")
    boxes = tuple((one_line(item["category"]), fractions(item.get("bbox"), 1, 1)) for item in instances)
    return Picture(str(value.get("id", value["image"])), value["image"], tuple(map(one_line, said)), boxes)


def one_line(text: str) -> str:
    return " ".join(text.split())


def fractions(box, width: float, height: float) -> Box:
    """Corners in fractions of the picture, inside it; UserError for what is no box of four numbers."""
    numbers = (
        isinstance(box, list | tuple)
        and len(box) == 4
        and all(isinstance(edge, int | float) and math.isfinite(edge) for edge in box)
    )
    if not numbers or width <= 0 or height <= 0 or box[0] > box[2] or box[1] > box[3]:
        raise UserError(f"{str(box)[:60]} is no box [x1, y1, x2, y2] in a picture of {width} x {height}.")
    scaled = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    return tuple(min(max(edge, 0.0), 1.0) for edge in scaled)


def _expect_different(ids: list[str], path: Path) -> None:
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise UserError(f"{path} holds the id {twice[:40]!r} twice; every picture needs an id of its own.")


# ---- COCO
def read_coco(path: Path) -> list[Picture]:
    """The pictures of captions_X.json that have captions, with the boxes of instances_X.json beside it (without it:
    none); crowds are left out.
    """
    file, boxes = read_json(path), path.with_name(path.name.replace("captions_", "instances_", 1))
    try:
        said = defaultdict(list)
        for note in sorted(file["annotations"], key=lambda note: note["id"]):
            said[note["image_id"]].append(one_line(note["caption"]))
        instances = _coco_instances(boxes) if boxes.is_file() else {}
        images = sorted((image for image in file["images"] if image["id"] in said), key=lambda image: image["id"])
        for image in images:
            check_name(image["file_name"])
        return [
            Picture(
                f"{image['id']:012d}",
                image["file_name"],
                tuple(said[image["id"]]),
                tuple(instances.get(image["id"], ())),
            )
            for image in images
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} and {boxes.name} must be COCO's annotation files: {type(error).__name__} {error} while reading them."
        ) from None


def _coco_instances(path: Path) -> dict[int, list[tuple[str, Box]]]:
    """{image id: its (category, corners in fractions)}; crowds, whose box holds many things, are left out."""
    file, found = read_json(path), defaultdict(list)
    names = {category["id"]: one_line(category["name"]) for category in file["categories"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in file["images"]}
    for note in file["annotations"]:
        if not note.get("iscrowd"):
            x, y, width, height = note["bbox"]
            found[note["image_id"]].append(
                (names[note["category_id"]], fractions([x, y, x + width, y + height], *sizes[note["image_id"]]))
            )
    return found
