"""The weights in the repository: their size, their layout, what they answer."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import minillava
from minillava.data.answers import names_in, parse_answer
from minillava.data.facts import NUMBERS
from minillava.data.scenes import relation, sample_scene, where
from minillava.training.scoring import cases, score_pictures

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tiny", "tiny-stage1", "tiny-vision", "tiny-language")
CAT = ROOT / "lessons" / "images" / "cat.png"

SCENE = sample_scene(1602, "val", size=336, max_objects=4)  # what the picture shows: no training ever saw it

# question -> (kind of question, answer word for word)
GOLDEN = {
    "What is in the picture?": ("list", "There is a tulip, a canoe and a cat."),
    "Is there a cat?": ("existence", "Yes, there is a cat."),
    "Is there a dog?": ("existence", "No, there is no dog."),
    "How many objects are there?": ("count", "There are three objects."),
    "How many cats are there?": ("count_of", "There is one cat."),
    "What color is the background?": ("color", "The background is pink."),
    "Where is the cat?": ("where", "The cat is at the bottom."),
    "Where is the canoe?": ("where", "The canoe is at the bottom left."),
    "Where is the cat relative to the canoe?": ("relation", "The cat is to the right of the canoe."),
}


def truth(kind: str, question: str) -> str:
    """The right answer in the form that `parse_answer` gives, from the scene's things alone."""
    names = names_in(question)
    count = Counter(thing.name for thing in SCENE.things)
    thing = {thing.name: thing for thing in SCENE.things}
    if kind in ("list", "describe"):
        return ", ".join(sorted(count))
    return {
        "existence": lambda: "yes" if names[0] in count else "no",
        "count": lambda: NUMBERS[len(SCENE.things)],
        "count_of": lambda: NUMBERS[count[names[0]]],
        "color": lambda: SCENE.color,
        "where": lambda: where(thing[names[0]], SCENE.size),
        "relation": lambda: relation(thing[names[0]], thing[names[1]], SCENE.size),
    }[kind]()


@pytest.fixture(scope="module")
def tiny():
    return minillava.load(ROOT / "weights" / "tiny", device="cpu", dtype="float32")


def test_small_enough_to_ship(tiny):
    files = [
        path
        for folder in FOLDERS
        for path in (ROOT / "weights" / folder).iterdir()
        if path.name != "checkpoint.safetensors"
    ]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert sum(p.numel() for p in tiny[0].parameters()) < 12e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth")]


def test_names_are_llava_hfs():
    with safe_open(ROOT / "weights" / "tiny" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    prefixes = ("vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.")
    assert all(name.startswith(prefixes) for name in names) and all(
        any(n.startswith(p) for n in names) for p in prefixes
    )


def test_the_picture_is_the_scene():
    assert np.array_equal(np.asarray(Image.open(CAT)), SCENE.pixels())


@pytest.mark.parametrize("question", GOLDEN)
def test_golden_answers_are_true_and_then_the_same_word_for_word(tiny, question):
    kind, golden = GOLDEN[question]
    assert parse_answer(kind, golden) == truth(kind, question)
    assert minillava.answer(*tiny, CAT, question) == golden


def test_it_sees(tiny):
    """On scenes of the pictures' own split that no training saw; and a grey picture must not do."""
    asked = cases("val", 40)
    sees, blind = score_pictures(*tiny, asked), score_pictures(*tiny, asked, blind=True)
    assert sees["existence"] > 0.95 and sees["color"] > 0.95 and sees["list"] > 0.85 and sees["where"] > 0.6, sees
    assert 0.3 < blind["existence"] < 0.7 and blind["list"] < 0.2, blind


def test_stages_share_the_tower(tiny):
    """The tower stayed frozen from its pretraining to the end."""
    tower = minillava.load_vision_tower(ROOT / "weights" / "tiny-vision", device="cpu").state_dict()
    assert all(tensor.equal(tower[name]) for name, tensor in tiny[0].vision_tower.state_dict().items())


def test_transformers_says_the_same(tiny):
    """transformers loads the folder and generates the same text from the same picture."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder, question = ROOT / "weights" / "tiny", "What is in the picture?"
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=Image.open(CAT), text=f"USER: <image>\n{question} ASSISTANT:", return_tensors="pt")
    ids = theirs.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(ids, skip_special_tokens=True).strip() == minillava.answer(*tiny, CAT, question)
