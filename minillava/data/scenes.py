"""The tiny world: emoji scenes whose objects, boxes and backgrounds are known exactly, as COCO knows its own.

A scene is a background (one named colour, one pattern) and 1 to 5 things. `sample_scene` draws it from a seed,
`Scene.pixels` paints it: (seed, split, size) -> uint8 (size, size, 3). What can be said about a scene is in the modules
beside this one; `python -m minillava.data` writes scenes to files.

Coordinates are pixels of the scene, x to the right and y down; a box is (x1, y1, x2, y2) without its last row, column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# fmt: off
GROUPS: dict[str, tuple[str, ...]] = {
    "animal": (
        "cat", "dog", "mouse", "rabbit", "horse", "cow", "pig", "sheep", "elephant", "tiger", "monkey", "kangaroo", "zebra", "giraffe",
        "lion", "fox", "wolf", "bear", "panda", "frog", "turtle", "snake", "crocodile", "hedgehog", "penguin", "owl", "duck", "parrot",
        "rooster", "flamingo", "fish", "whale", "octopus", "snail", "butterfly", "bee", "spider",
    ),
    "food": (
        "apple", "banana", "pear", "peach", "lemon", "pineapple", "strawberry", "watermelon", "coconut", "carrot", "avocado", "eggplant",
        "hamburger", "pizza", "taco", "sandwich", "pretzel", "croissant", "egg", "doughnut", "cookie", "lollipop", "cupcake", "ice cream",
        "birthday cake",
    ),
    "vehicle": (
        "bus", "taxi", "ambulance", "fire engine", "tractor", "bicycle", "motorcycle", "car", "helicopter", "airplane", "rocket",
        "sailboat", "canoe", "locomotive",
    ),
    "plant": ("cactus", "rose", "tulip", "sunflower", "hibiscus", "hyacinth", "shamrock", "seedling", "palm tree"),
    "sports item": ("basketball", "baseball", "soccer ball", "volleyball", "boxing glove", "skateboard", "trophy"),
    "tool": ("hammer", "axe", "wrench", "screwdriver", "shovel", "ladder", "magnet"),
    "household item": ("chair", "bed", "toilet", "bathtub", "mirror", "candle", "teapot", "spoon", "toothbrush", "bucket"),
    "device": ("television", "radio", "camera", "laptop", "joystick", "telephone", "flashlight"),
    "office item": ("pencil", "paperclip", "notebook", "newspaper", "envelope", "briefcase", "calendar"),
    "piece of clothing": ("t-shirt", "dress", "kimono", "scarf", "coat", "top hat", "hiking boot", "cap"),
    "musical instrument": ("guitar", "violin", "trumpet", "saxophone", "accordion", "drum", "flute", "harp"),
    "building": ("house", "church", "castle", "factory", "mosque"),
}
# fmt: on
NAMES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
GROUP_OF: dict[str, str] = {name: group for group, names in GROUPS.items() for name in names}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 44),
    "orange": (246, 146, 40),
    "yellow": (248, 220, 64),
    "green": (70, 168, 74),
    "blue": (52, 108, 214),
    "purple": (134, 70, 178),
    "pink": (248, 162, 196),
    "brown": (128, 84, 50),
    "gray": (142, 144, 148),
    "white": (242, 242, 240),
    "black": (28, 28, 32),
}
COLOR_NAMES = tuple(COLORS)
PATTERNS = ("plain", "gradient", "stripes", "checks", "dots", "noise")

SIZE = 112  # default side of a scene, px
SPLITS = {"train": 0, "val": 1, "pairs": 2}  # the first word of each split's seed
THING_SIZES = (26, 30, 34, 38, 42, 46)  # longest side before turning, px of a 112 px scene
ANGLES = tuple(range(-20, 21, 5))
MIN_DISTANCE, MAX_IOU = 26, 0.12  # between the centres (px of a 112 px scene) and the boxes of two things
HERE = Path(__file__).parent

Box = tuple[float, float, float, float]


# ---- Sprites: an emoji, scaled and turned, ready to be pasted


class Sprite(NamedTuple):
    """Premultiplied colours and opacity of the visible part of a turned emoji, cropped to it."""

    rgb: np.ndarray  # uint8 (h, w, 3)
    alpha: np.ndarray  # uint8 (h, w, 1)


@cache
def _tiles() -> dict[str, Image.Image]:
    """Every emoji by name, cropped to what is visible; emoji.json lists the tiles of emoji.png in order."""
    index = json.loads((HERE / "emoji.json").read_text(encoding="utf-8"))
    sheet, side, columns = Image.open(HERE / "emoji.png").convert("RGBA"), index["tile"], index["columns"]
    tiles = {}
    for i, entry in enumerate(index["emoji"]):
        left, top = i % columns * side, i // columns * side
        tile = sheet.crop((left, top, left + side, top + side))
        tiles[entry["name"]] = tile.crop(tile.getchannel("A").point(lambda a: 255 * (a > 25)).getbbox())
    return tiles


@cache
def sprite(name: str, size: int, angle: int, flip: bool) -> Sprite:
    """The emoji with its longest side `size` px, mirrored if `flip`, then turned `angle` degrees counter-clockwise."""
    if flip:  # a mirrored picture turned by a = the mirror of one turned by -a: half the memory
        rgb, alpha = sprite(name, size, -angle, False)
        return Sprite(rgb[:, ::-1], alpha[:, ::-1])
    tile = _tiles()[name]
    scale = size / max(tile.size)
    turned = tile.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    shape = [max(1, round(side * scale)) for side in turned.size]
    pixels = np.asarray(turned.resize(shape, Image.Resampling.LANCZOS))
    seen = pixels[..., 3] > 25  # more than a tenth opaque
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint16)
    alpha = pixels[..., 3:]
    return Sprite((pixels[..., :3] * alpha // 255).astype(np.uint8), alpha.astype(np.uint8))


# ---- Backgrounds: shades of one named colour

SHADES = 32  # a pattern is an index into this many shades, dark to light


@lru_cache(maxsize=128)
def _pattern(pattern: str, variant: int, size: int) -> np.ndarray:
    """Which shade lies where, uint8 (S, S); `variant` 0..7 changes direction and scale."""
    y, x = np.mgrid[0:size, 0:size] * (SIZE / size)
    turn = variant % 4 * math.pi / 4
    along = x * math.cos(turn) + y * math.sin(turn)
    step = 12 + 5 * (variant // 4)
    if pattern == "plain":
        field = np.full((size, size), 0.5)
    elif pattern == "gradient":
        field = (along - along.min()) / (along.max() - along.min())
        field = 1 - field if variant >= 4 else field
    elif pattern == "stripes":
        field = 0.25 + 0.5 * (along // step % 2)
    elif pattern == "checks":
        field = 0.25 + 0.5 * ((x // step + y // step) % 2)
    elif pattern == "dots":
        field = 0.3 + 0.55 * (np.hypot(x % (1.3 * step) - 0.65 * step, y % (1.3 * step) - 0.65 * step) < 0.35 * step)
    elif pattern == "noise":  # two octaves of smooth noise
        rng = np.random.default_rng([9, variant])
        coarse, fine = (
            Image.fromarray(rng.integers(0, 256, (n, n), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
            for n in (7, 22)
        )
        field = 0.6 * np.asarray(coarse) / 255 + 0.4 * np.asarray(fine) / 255
    else:
        raise ValueError(f"Unknown pattern {pattern!r}; choose from {', '.join(PATTERNS)}.")
    return (field * (SHADES - 1) + 0.5).astype(np.uint8)


def _background(color: str, pattern: str, size: int, draw: Draws) -> np.ndarray:
    """uint8 (S, S, 3): the pattern in shades of the colour, the colour itself jittered a little."""
    centre = np.array(COLORS[color]) + [draw.between(-9, 9) for _ in range(3)]
    shade = np.linspace(-26, 22, SHADES)[:, None]  # narrow enough for every shade to keep the colour's name
    lookup = np.clip(centre + shade, 0, 255).astype(np.uint8)  # (SHADES, 3)
    return lookup[_pattern(pattern, int(draw.between(0, 8)), size)]


# ---- The scene


@dataclass(frozen=True)
class Thing:
    """One object: its centre and size in px of the scene, `angle` in degrees, `light` a factor on its colours."""

    name: str
    x: float
    y: float
    size: int
    angle: int
    flip: bool
    light: float

    @property
    def sprite(self) -> Sprite:
        return sprite(self.name, self.size, self.angle, self.flip)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x1, y1, x2, y2) of what is visible (more than a tenth opaque), in px."""
        height, width = self.sprite.alpha.shape[:2]
        left, top = round(self.x - width / 2), round(self.y - height / 2)
        return left, top, left + width, top + height


@dataclass(frozen=True)
class Scene:
    seed: int
    size: int
    color: str
    pattern: str
    things: tuple[Thing, ...]

    def pixels(self) -> np.ndarray:
        """The picture, uint8 (S, S, 3); a function of the scene's fields alone."""
        canvas = _background(self.color, self.pattern, self.size, Draws(3, self.seed))
        for thing in self.things:
            _paste(canvas, thing)
        return canvas

    def render(self) -> Image.Image:
        return Image.fromarray(self.pixels())

    def boxes(self) -> list[tuple[str, Box]]:
        """Every thing's name and box, as fractions 0..1 of the picture's side, in painting order."""
        return [(thing.name, tuple(edge / self.size for edge in thing.box)) for thing in self.things]


def _paste(canvas: np.ndarray, thing: Thing) -> None:
    """out = light * sprite + (1 - alpha) * canvas, the sprite being premultiplied by alpha."""
    x1, y1, x2, y2 = thing.box
    rgb, alpha = thing.sprite
    lit = np.multiply(rgb, np.float32(thing.light), dtype=np.float32)
    np.minimum(lit, alpha, out=lit)  # light may whiten a colour, not exceed white
    lit += canvas[y1:y2, x1:x2] * ((255 - alpha) * np.float32(1 / 255))
    canvas[y1:y2, x1:x2] = (lit + np.float32(0.5)).astype(np.uint8)


# ---- Places and relations

PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
RELATIONS = ("to the left of", "to the right of", "above", "below")
OPPOSITE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}


def cell(thing: Thing, size: int = SIZE) -> tuple[int, int]:
    """(row, column) of the centre in the picture's 3x3 thirds."""
    return min(2, int(3 * thing.y / size)), min(2, int(3 * thing.x / size))


def where(thing: Thing, size: int = SIZE) -> str | None:
    """The thing's place in a scene of `size` px; None within 3.5% of a third's edge, where people would disagree."""
    for centre in (thing.x / size, thing.y / size):
        if min(abs(centre - 1 / 3), abs(centre - 2 / 3)) < 0.035:
            return None
    row, column = cell(thing, size)
    return PLACES[3 * row + column]


def relation(a: Thing, b: Thing, size: int = SIZE) -> str | None:
    """Where a is relative to b, by the dominant axis; None if they are nearly aligned with neither axis or too close."""
    dx, dy = a.x - b.x, a.y - b.y
    far, near = max(abs(dx), abs(dy)), min(abs(dx), abs(dy))
    if far < 0.15 * size or far < 1.4 * near:
        return None
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


# ---- Sampling


class Draws:
    """Uniform numbers drawn in blocks: a scalar costs 0.1 us instead of numpy's 1 to 10, and only `random()` fixes the
    stream.
    """

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._block: Iterator[float] = iter(())

    def random(self) -> float:
        """The next number in [0, 1)."""
        for value in self._block:
            return value
        self._block = iter(self._rng.random(64).tolist())
        return next(self._block)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def pick(self, items: Sequence):
        return items[int(self.random() * len(items))]

    def sample(self, items: Sequence, count: int) -> list:
        """`count` different items, in random order."""
        pool = list(items)
        return [pool.pop(int(self.random() * len(pool))) for _ in range(count)]


def _held_out_pairs() -> tuple[tuple[str, str], ...]:
    """2.1% of all pairs, three partners for each name: both neighbours on a shuffled ring, and one four steps away."""
    ring = Draws(4).sample(NAMES, len(NAMES))
    steps = [(i, i + 1) for i in range(len(ring))] + [(i, i + 4) for i in range(len(ring)) if i % 8 < 4]
    return tuple(sorted(tuple(sorted((ring[i], ring[j % len(ring)]))) for i, j in steps))


HELD_OUT_PAIRS = _held_out_pairs()  # never together in a train or val scene; one in every "pairs" scene
_PARTNERS = {name: frozenset(a if b == name else b for a, b in HELD_OUT_PAIRS if name in (a, b)) for name in NAMES}


def sample_scene(seed: int, split: str = "train", size: int = SIZE, max_objects: int = 5) -> Scene:
    """The scene that (seed, split, max_objects) determine, at `size` px; the splits' seeds never meet.

    split: "train" and "val" never hold a pair of HELD_OUT_PAIRS, every "pairs" scene holds exactly one and 2 to 4
    objects. Raises ValueError for an unknown split or fewer than 1 (pairs: 2) or more than 5 objects.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}; choose from {', '.join(SPLITS)}.")
    fewest = 2 if split == "pairs" else 1
    if not fewest <= max_objects <= 5:
        raise ValueError(f"max_objects is {max_objects}; a {split!r} scene takes {fewest} to 5.")
    draw = Draws(SPLITS[split], seed)
    if split == "pairs":
        names = _names(draw, 2 + int(draw.random() * (min(max_objects, 4) - 1)), list(draw.pick(HELD_OUT_PAIRS)))
    else:
        names = _names(draw, 1 + int(draw.random() * max_objects), [])
    color, pattern = draw.pick(COLOR_NAMES), draw.pick(PATTERNS)
    things = _placed(draw, names)
    if size != SIZE:
        scale = size / SIZE
        things = [
            inside(size, t.x * scale, t.y * scale, t.name, max(2, round(t.size * scale)), t.angle, t.flip, t.light)
            for t in things
        ]
    return Scene(seed, size, color, pattern, tuple(things))


def _names(draw: Draws, count: int, names: list[str]) -> list[str]:
    """`count` names beginning with the given ones, in random order; one is repeated in 35% of the scenes that have room
    for it.
    """
    room = count - max(1, len(names))
    copies = 1 + int(draw.random() * min(3, room)) if room and draw.chance(0.35) else 0
    while len(names) < count - copies:
        # a second of the first one's group: the hard negatives of questions
        hard = len(names) == 1 and draw.chance(0.5)
        name = draw.pick(GROUPS[GROUP_OF[names[0]]] if hard else NAMES)
        if name not in names and not any(name in _PARTNERS[other] for other in names):
            names.append(name)
    names += [draw.pick(names)] * copies
    return draw.sample(names, count)


_SIZE_RANGE = {1: (1, 6), 2: (1, 6), 3: (0, 5), 4: (0, 4), 5: (0, 3)}  # of THING_SIZES, by number of things


def _placed(draw: Draws, names: list[str]) -> list[Thing]:
    """One thing in each of as many of the 3x3 cells, moved about in it less and less until nothing touches much."""
    sizes = THING_SIZES[slice(*_SIZE_RANGE[len(names)])]
    looks = [
        (name, draw.pick(sizes), draw.pick(ANGLES), draw.chance(0.5), round(draw.between(0.8, 1.15), 3))
        for name in names
    ]
    # px about the cell's centre: most stay clear of the boundaries, some do not
    widest = 17 if draw.chance(0.2) else 13
    for spread in (widest, 10, 7, 4):
        cells = draw.sample(range(9), len(names))
        things = [_place(draw, look, place, spread) for look, place in zip(looks, cells)]
        if _apart(things):
            return things
    cells = draw.sample((0, 2, 4, 6, 8), len(names))  # corners and middle: the widest apart
    return [_place(draw, look, place, 0) for look, place in zip(looks, cells)]


def _place(draw: Draws, look: tuple, place: int, spread: float) -> Thing:
    """A thing near the centre of cell `place` (0..8), inside the picture, its centre rounded to tenths of a pixel."""
    x = SIZE * (place % 3 + 0.5) / 3 + draw.between(-spread, spread)
    y = SIZE * (place // 3 + 0.5) / 3 + draw.between(-spread, spread)
    return inside(SIZE, x, y, *look)


def inside(side: int, x: float, y: float, name: str, size: int, angle: int, flip: bool, light: float) -> Thing:
    height, width = sprite(name, size, angle, flip).alpha.shape[:2]
    x = min(max(x, width / 2 + 1), side - width / 2 - 1)
    y = min(max(y, height / 2 + 1), side - height / 2 - 1)
    return Thing(name, round(x, 1), round(y, 1), size, angle, flip, light)


def _apart(things: list[Thing]) -> bool:
    """Whether all centres and boxes keep their distance."""
    boxes = [thing.box for thing in things]
    for i, a in enumerate(things):
        for j in range(i):
            if math.hypot(a.x - things[j].x, a.y - things[j].y) < MIN_DISTANCE or iou(boxes[i], boxes[j]) > MAX_IOU:
                return False
    return True
