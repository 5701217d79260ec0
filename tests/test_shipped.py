"""The weights in the repository: their size, their layout, what they answer."""

from pathlib import Path

import pytest
from safetensors import safe_open

import minillava

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tiny", "tiny-stage1", "tiny-vision", "tiny-language")
CAT = ROOT / "lessons" / "images" / "cat.png"

GOLDEN = {
    "What is in the picture?": "There is a hamburger, a hamburger, a hamburger, a hamburger and a hamburger.",
    "Is there a cat?": "Yes, there is a cat.",
    "Is there a dog?": "Yes, there is a dog.",
    "How many objects are there?": "There are five objects.",
    "What color is the background?": "The background is red.",
    "Where is the cat?": "The cat is at the top left.",
    "Where is the ambulance relative to the cat?": "The ambulance is to the right of the cat.",
    "What can you eat here?": "You can eat the egg.",
    "Describe the picture.": "There is a pretzel, a trophy, a trophy, a trophy and a trophy. The background is red. The trophy is at the top left.",
    "Hello!": "The fish is at the top left.",
}


@pytest.fixture(scope="module")
def tiny():
    return minillava.load(ROOT / "weights" / "tiny", device="cpu", dtype="float32")


def test_small_enough_to_ship(tiny):
    files = [path for folder in FOLDERS for path in (ROOT / "weights" / folder).iterdir() if path.name != "checkpoint.safetensors"]
    assert sum(path.stat().st_size for path in files) < 60e6
    assert sum(p.numel() for p in tiny[0].parameters()) < 12e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth")]


def test_names_are_llava_hfs():
    with safe_open(ROOT / "weights" / "tiny" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    prefixes = ("vision_tower.vision_model.", "multi_modal_projector.linear_", "language_model.model.")
    assert all(name.startswith(prefixes) for name in names) and all(any(n.startswith(p) for n in names) for p in prefixes)


@pytest.mark.parametrize("question", GOLDEN)
def test_golden_answers(tiny, question):
    assert minillava.answer(*tiny, CAT, question) == GOLDEN[question]


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
    assert processor.decode(ids, skip_special_tokens=True).strip() == GOLDEN[question]
