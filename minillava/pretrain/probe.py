"""What a linear probe reads off the features at an object's centre: its name, and the row and column of its patch.

A probe (arXiv 1610.01644) is one linear layer trained on frozen features. What it cannot find, a language model that
reads these features will hardly find either; what it finds is there to be learnt. Four fifths of the objects train the
probe, the rest test it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.data.scenes import NAMES, Scene, sample_scene
from minillava.inputs.image import preprocess

FIRST = 1 << 33  # scenes that no training reaches


def probe_scenes(count: int) -> list[Scene]:
    return [sample_scene(FIRST + index) for index in range(count)]


@torch.inference_mode()
def patch_features(vision_tower, scenes: list[Scene], projector=None, feature_layer: int = -2) -> Tensor:
    """The features of the scenes' patches in one layer of the tower, projected where a projector is given: (scenes, P,
    C).
    """
    before, vision_tower.feature_layer = vision_tower.feature_layer, feature_layer
    parts = []
    for first in range(0, len(scenes), 128):
        pictures = [
            preprocess(scene.render(), image_size=vision_tower.config.image_size)
            for scene in scenes[first : first + 128]
        ]
        features = vision_tower(torch.stack(pictures))
        parts.append(features if projector is None else projector(features))
    vision_tower.feature_layer = before
    return torch.cat(parts)


def probe(features: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Percent of the held-out objects whose name, row and column a linear layer reads off the patch at their centre."""
    side = round(features.shape[1] ** 0.5)
    inputs, targets = [], []
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            row, column = (int(centre / scene.size * side) for centre in (thing.y, thing.x))
            inputs.append(features[index, row * side + column])
            targets.append((NAMES.index(thing.name), row, column))
    inputs, targets = torch.stack(inputs).float().clone(), torch.tensor(targets)  # (objects, C), (objects, 3)
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-6)
    train = len(inputs) * 4 // 5
    choices = {"name": len(NAMES), "row": side, "column": side}
    return {what: _accuracy(inputs, targets[:, i], n, train) for i, (what, n) in enumerate(choices.items())}


def _accuracy(inputs: Tensor, targets: Tensor, choices: int, train: int) -> float:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(inputs.shape[1], choices)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(25):
        for rows in torch.randperm(train, generator=generator).split(256):
            loss = F.cross_entropy(linear(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return round(100 * (linear(inputs[train:]).argmax(-1) == targets[train:]).float().mean().item(), 1)


def probe_tower(vision_tower, projector=None, count: int = 1536) -> dict[str, float]:
    scenes = probe_scenes(count)
    return probe(patch_features(vision_tower, scenes, projector), scenes)


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| features after | name | row | column |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {name} | {row['name']} | {row['row']} | {row['column']} |" for name, row in rows.items()]
    )
