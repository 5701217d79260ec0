"""The probe: it finds what is in the features, and does not find what is not."""

import torch

from minillava.data.scenes import NAMES
from minillava.pretrain.probe import probe, probe_scenes, table


def test_it_reads_what_is_there_and_nothing_else():
    scenes = probe_scenes(900)
    features = torch.randn(900, 49, 20, generator=torch.Generator().manual_seed(0))
    for index, scene in enumerate(scenes):
        for thing in scene.things:
            row, column = int(thing.y / 16), int(thing.x / 16)
            # the row is written into the features, name and column are not
            features[index, row * 7 + column, row] += 30.0
    figures = probe(features, scenes)
    assert figures["row"] > 98 and figures["column"] < 45 and figures["name"] < 15


def test_scenes_of_the_probe_are_those_of_no_training_and_the_table_is_markdown():
    assert all(scene.seed >= 1 << 33 for scene in probe_scenes(3)) and len(NAMES) == 144
    assert table({"tower": {"name": 1.0, "row": 2.0, "column": 3.0}}).splitlines()[2] == "| tower | 1.0 | 2.0 | 3.0 |"
