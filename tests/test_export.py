"""What is exported says the same in transformers, and comes back the same from the original's layout."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import relative_error
from safetensors.torch import load_file
from test_weights import CPU

from minillava import answer, weights
from minillava.errors import UserError
from minillava.weights.__main__ import main as command
from minillava.weights.hf_config import read_config, write_original_config

CAT, QUESTION = weights.ROOT / "lessons" / "images" / "cat.png", "Is there a cat?"


@pytest.fixture(scope="module")
def tiny():
    return weights.load("weights/tiny", **CPU)


def test_transformers_says_the_same_of_the_same_picture(tiny, tmp_path, capsys):
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = tmp_path / "exported"
    command(["export", "weights/tiny", "--layout", "llava-hf", "--out", str(folder)])
    assert capsys.readouterr().out == f"{folder}\n"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    processor, theirs = (
        AutoProcessor.from_pretrained(folder),
        LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval(),
    )
    for question in (QUESTION, "What color is the background?", "Describe the picture."):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=prompt, images=Image.open(CAT).convert("RGB"), return_tensors="pt")
        said = theirs.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert (
            processor.decode(said, skip_special_tokens=True).strip()
            == answer(*tiny, CAT, question, max_new_tokens=40).strip()
            != ""
        )


def test_the_originals_layout_comes_back(tiny, tmp_path):
    model, processor = tiny
    folder = tmp_path / "exported"
    command(["export", "weights/tiny", "--layout", "original", "--out", str(folder)])
    names = set(load_file(folder / "model.safetensors"))
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.mm_projector.0.weight",
        "model.mm_projector.2.bias",
    } <= names
    assert not any("vision" in name for name in names)
    again, its_processor = weights.load(folder, vision=folder / "vision_tower", **CPU)
    rows = again.config.text_config.vocab_size
    assert rows == again.config.image_token_id == processor.image_token_id
    inputs = processor(QUESTION, CAT)
    assert its_processor(QUESTION, CAT)["input_ids"].tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        assert relative_error(again(**inputs), model(**inputs)[..., :rows]) < 2e-5
    assert answer(again, its_processor, CAT, QUESTION) == answer(model, processor, CAT, QUESTION)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("pinpoints", [(), ((672, 336), (336, 1008))])
def test_the_originals_config_is_read_as_it_was_written(scaling, pinpoints):
    config = read_config({"model_type": "llava", "vision_feature_layer": -1, "projector_type": "linear"})
    config = replace(
        config,
        text_config=replace(config.text_config, rope_scaling=scaling, rope_theta=3e5),
        image_grid_pinpoints=pinpoints,
    )
    values = json.loads(json.dumps(write_original_config(config, "openai/clip-vit-large-patch14-336", pad=True)))
    assert read_config(values) == config
    assert values["rope_scaling"] == (None if scaling is None else {"type": "linear", "factor": 2.0})


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        command(["export", "weights/tiny", "--layout", "llava-hf", "--out", str(tmp_path)])
