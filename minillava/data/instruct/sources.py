"""Pictures whose captions and boxes are known: COCO's annotation files, JSONL, or scenes of the tiny world.

COCO (cocodataset.org, "data format"): captions_*.json and instances_*.json, boxes [x, y, width, height] in pixels, of
2014 and 2017. JSONL: a line a picture, {"id", "image", "captions": [...], "instances": [{"category", "bbox": [x1, y1,
x2, y2]}]}, boxes in fractions of width and height, as `python -m minillava.data` writes them. No file is trusted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minillava.data.facts import captions
from minillava.data.scenes import SPLITS, Box, Scene, sample_scene
from minillava.errors import UserError
from minillava.files import check_name, parse_json, read_file

LARGEST = 1 << 31  # bytes of a source; instances_train2017.json has 470 MB
MOST_SCENES = 10**6  # at a time: the pictures of a run are all in memory
OVER = 0.05  # how far a box may reach over the picture's edge, by rounding or an annotator's hand


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
    endless scenes: 100). UserError for what cannot be read, with the line or the annotation.
    """
    if source == "scenes":
        if limit > MOST_SCENES:
            raise UserError(f"--limit {limit} is too many scenes for one run: at most {MOST_SCENES}.")
        return [scene_picture(seed) for seed in range(start, start + (limit or 100))]
    path = Path(source)
    pictures = read_coco(path) if path.name.startswith("captions_") else read_jsonl(path)
    name, times = Counter(picture.id for picture in pictures).most_common(1)[0] if pictures else ("", 0)
    if times > 1:
        raise UserError(f"{path} holds the id {name[:40]!r} twice; every picture needs an id of its own.")
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
    """A picture a line. Lines end at \\n alone: U+2028 and its like are text."""
    lines = read_file(path, LARGEST).decode("utf-8-sig", "replace").split("\n")
    return [
        _told(f"{path}, line {number}", lambda line=line: _picture(parse_json(line.encode(), "it")))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _told(where: str, read: Callable):
    """What `read()` gives; an error in it names the place."""
    try:
        return read()
    except (UserError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: {error}") from None


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
    boxes = tuple((one_line(item["category"]), fractions(item.get("bbox"))) for item in instances)
    return Picture(str(value.get("id", value["image"])), value["image"], tuple(map(one_line, said)), boxes)


def one_line(text: str) -> str:
    return " ".join(text.split())


def fractions(box, width: float = 1, height: float = 1) -> Box:
    """Corners in fractions of the picture, cut at its edges; UserError for what is no box in the picture."""
    try:
        x1, y1, x2, y2 = (edge / size for edge, size in zip(box, (width, height) * 2, strict=True))
    except (TypeError, ValueError, ArithmeticError):  # no four numbers, a size of 0, or 400 digits
        x1 = y1 = x2 = y2 = math.nan
    if not (-OVER <= x1 <= x2 <= 1 + OVER and -OVER <= y1 <= y2 <= 1 + OVER):
        raise UserError(f"{str(box)[:60]} is no box [x1, y1, x2, y2] in a picture of {width} x {height}.")
    return tuple(min(max(edge, 0.0), 1.0) for edge in (x1, y1, x2, y2))


# ---- COCO
def read_coco(path: Path) -> list[Picture]:
    """The pictures of captions_X.json that have captions, with the boxes of instances_X.json beside it, if it is there;
    crowds are left out.
    """
    beside = path.with_name(path.name.replace("captions_", "instances_", 1))
    try:
        file, said = parse_json(read_file(path, LARGEST), path), defaultdict(list)
        for note in sorted(file["annotations"], key=lambda note: note["id"]):
            said[note["image_id"]].append(one_line(note["caption"]))
        instances = _coco_instances(beside) if beside.is_file() else {}
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
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path} and {beside.name} must be COCO's annotation files: {type(error).__name__} {error} in reading them."
        ) from None


def _coco_instances(path: Path) -> dict[int, list[tuple[str, Box]]]:
    """{image id: its (category, corners in fractions)}; crowds, whose box holds many things, are left out."""
    file, found = parse_json(read_file(path, LARGEST), path), defaultdict(list)
    names = {category["id"]: one_line(category["name"]) for category in file["categories"]}
    sizes = {image["id"]: (image["width"], image["height"]) for image in file["images"]}
    for note in file["annotations"]:
        if not note.get("iscrowd"):
            box = _told(
                f"{path}, annotation {note.get('id')}",
                lambda note=note: _coco_box(note["bbox"], *sizes[note["image_id"]]),
            )
            found[note["image_id"]].append((names[note["category_id"]], box))
    return found


def _coco_box(box, width: float, height: float) -> Box:
    x, y, box_width, box_height = box
    return fractions((x, y, x + box_width, y + box_height), width, height)
