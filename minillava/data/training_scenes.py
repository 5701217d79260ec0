"""The scenes that a training sees: those of the tiny world, and now and then a single large thing."""

from dataclasses import replace

from minillava.data.scenes import Scene, inside, sample_scene

LARGE_SIZES = (56, 68, 80)  # of things that are alone, in some scenes of a training


def training_scene(index: int) -> Scene:
    """What a training sees: scene `index` of "train", but one in sixteen is a single large thing."""
    if index % 16:
        return sample_scene(index)
    return enlarged(sample_scene(index, max_objects=1), LARGE_SIZES[index // 16 % len(LARGE_SIZES)])


def enlarged(scene: Scene, size: int) -> Scene:
    """The scene with its only thing `size` px large."""
    [t] = scene.things
    return replace(scene, things=(inside(scene.size, t.x, t.y, t.name, size, t.angle, t.flip, t.light),))
