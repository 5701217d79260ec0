"""What the model eats is what transformers' LlavaProcessor makes of the same folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import minillava.inputs.processor
from minillava.errors import UserError
from minillava.inputs import image
from minillava.inputs.conversation import TEMPLATES, render
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.weights.hf_config import read_config
from minillava.weights.processor_files import load_processor, save_processor

QUESTION = "What is this?"
TURNS = [("user", "What is this?"), ("assistant", "A cat."), ("user", "What colour?")]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["USER: What is this? ASSISTANT: A cat.\nWhat colour is the cat? grey 12"] * 4, 400)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8))


def config(tokenizer, strategy="default", image_size=28):
    return read_config(
        {
            "vision_config": {"image_size": image_size, "patch_size": 14},
            "vision_feature_select_strategy": strategy,
            "image_token_index": tokenizer.image_id,
        }
    )


# ------------------------------------------------------------ the call
def test_a_question_and_a_picture(tokenizer, picture, tmp_path):
    processor = Processor(tokenizer, 28, 14)
    inputs = processor(QUESTION, picture)
    assert set(inputs) == {"input_ids", "pixel_values"}
    assert inputs["input_ids"].dtype == torch.int64 and inputs["input_ids"].shape[0] == 1
    assert inputs["pixel_values"].dtype == torch.float32 and inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == processor.count_image_tokens(picture) == 4
    picture.save(tmp_path / "picture.png")
    for path in (tmp_path / "picture.png", str(tmp_path / "picture.png")):
        assert torch.equal(processor(QUESTION, path)["pixel_values"], inputs["pixel_values"])
    assert torch.equal(processor([("user", QUESTION)], picture)["input_ids"], inputs["input_ids"])


@pytest.mark.parametrize("pinpoints", [(), ((28, 56), (56, 28))])
def test_a_picture_is_opened_once_for_a_question(tokenizer, picture, tmp_path, monkeypatch, pinpoints):
    opened, reads = [], image.open_image
    for module in (image, minillava.inputs.processor):
        monkeypatch.setattr(module, "open_image", lambda source: opened.append(source) or reads(source))
    picture.save(tmp_path / "picture.png")
    inputs = Processor(tokenizer, 28, 14, image_grid_pinpoints=pinpoints)(QUESTION, tmp_path / "picture.png")
    assert opened == [tmp_path / "picture.png"] and len(inputs["pixel_values"]) == (3 if pinpoints else 1)


def test_without_a_picture(tokenizer):
    inputs = Processor(tokenizer, 28, 14)("Is <image> a word?")
    assert set(inputs) == {"input_ids"} and tokenizer.image_id not in inputs["input_ids"]
    assert tokenizer.decode(inputs["input_ids"][0]) == "USER: Is <image> a word? ASSISTANT:"


def test_the_picture_stands_before_the_first_question(tokenizer, picture):
    processor = Processor(tokenizer, 28, 14)
    ids = processor(TURNS, picture)["input_ids"][0]
    text = tokenizer.decode(ids, skip_special=False)
    assert text == "<s> USER: " + "<image>" * 4 + "\nWhat is this? ASSISTANT: A cat.</s>USER: What colour? ASSISTANT:"
    shorter = processor(TURNS[:2], picture, add_generation_prompt=False)["input_ids"][0]
    assert torch.equal(ids[: len(shorter)], shorter)


def test_mistakes(tokenizer, picture):
    with pytest.raises(UserError, match="v9"):
        Processor(tokenizer, 28, 14, template="v9")
    with pytest.raises(UserError, match="already an answer"):
        Processor(tokenizer, 28, 14)(TURNS[:2], picture)
    with pytest.raises(UserError, match="cannot be read"):
        Processor(tokenizer, 28, 14)(QUESTION, "absent.png")


# ------------------------------------------------------------ against transformers
@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("pad", [False, True])
def test_auto_processor_reads_what_we_save(tokenizer, picture, tmp_path, strategy, pad):
    ours = Processor(tokenizer, 28, 14, strategy, pad=pad)
    save_processor(ours, tmp_path)
    official = AutoProcessor.from_pretrained(tmp_path)
    assert type(official).__name__ == "LlavaProcessor"
    assert (official.patch_size, official.vision_feature_select_strategy) == (14, strategy)
    assert (official.image_token, official.image_token_id) == ("<image>", tokenizer.image_id)
    assert official.tokenizer.pad_token_id == tokenizer.pad_id and official.tokenizer.eos_token_id == tokenizer.eos_id
    expected = official(text="USER: <image>\nWhat is this? ASSISTANT:", images=picture, return_tensors="pt")
    inputs = ours(QUESTION, picture)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("by_transformers", [False, True])
@pytest.mark.parametrize("template", ["llava_hf", "v1", "plain"])
def test_a_folder_comes_back(tokenizer, picture, tmp_path, by_transformers, template):
    """Also when transformers 5 wrote it, which nests the picture settings in processor_config.json."""
    ours = Processor(tokenizer, 28, 14, "full", template, True, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    folder = tmp_path / "ours"
    save_processor(ours, folder)
    if by_transformers:
        official = AutoProcessor.from_pretrained(folder)
        folder = tmp_path / "theirs"
        official.save_pretrained(folder)
        assert not (folder / "preprocessor_config.json").exists()
    again = load_processor(folder, config(tokenizer, "full"))
    assert (again.template, again.pad, again.mean, again.std) == (template, True, ours.mean, ours.std)
    first, second = ours(QUESTION, picture), again(QUESTION, picture)
    assert all(torch.equal(first[key], second[key]) for key in ("input_ids", "pixel_values"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_says_the_same(tokenizer, tmp_path, name):
    save_processor(Processor(tokenizer, 28, 14, template=name), tmp_path)
    official = AutoProcessor.from_pretrained(tmp_path)
    turns = TURNS[:1] if name == "plain" else TURNS
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    plain = [{"role": role, "content": text} for role, text in turns]
    assert official.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True) == render(
        name, turns, add_generation_prompt=True
    )
    messages[0]["content"].insert(0, {"type": "image"})
    assert official.apply_chat_template(messages, add_generation_prompt=True) == render(name, turns, True, True)


# ------------------------------------------------------------ folders
def test_the_default_template(tokenizer, tmp_path, capsys):
    """llava-hf's folders, which name none, mean their own; the original's, without a processor, mean v1, and say
    whether to pad.
    """
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"image_aspect_ratio": "pad"}')
    original = load_processor(tmp_path, config(tokenizer))
    assert (original.template, original.pad) == ("v1", True)
    assert "names no chat template: v1 is used; --template" in capsys.readouterr().err
    hub = {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}, "resample": 3, "do_pad": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(hub))
    ours = load_processor(tmp_path, config(tokenizer))
    assert (ours.template, ours.pad) == ("llava_hf", False)
    assert load_processor(tmp_path, config(tokenizer), template="llava_v1").template == "llava_v1"


def test_a_tokenizer_without_image_gets_one(tokenizer, tmp_path):
    """As the original LLaVA's: Vicuna's 32000 ids, then <image> and <pad>."""
    bare = Tokenizer({**tokenizer.spec, "added_tokens": tokenizer.spec["added_tokens"][:3]})
    bare.save(tmp_path / "tokenizer.json")
    processor = load_processor(tmp_path, config(tokenizer))
    assert (processor.image_token_id, processor.tokenizer.pad_id) == (tokenizer.image_id, tokenizer.pad_id)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"crop_size": {"height": 336, "width": 336}}, "28 x 28"),
        ({"crop_size": 224}, "28 x 28"),
        ({"size": {"shortest_edge": 336}}, "shortest edge"),
        ({"size": {"height": 28, "width": 14}}, "height and width of 28"),
        ({"size": {"longest_edge": 28}}, "size"),
        ({"size": {"shortest_edge": 28, "longest_edge": 56}}, "size"),
        ({"size": 32}, "size"),
        ({"crop_size": {"height": 28, "width": 14}}, "28 x 28"),
        ({"resample": 9}, "resample"),
        ({"resample": "bicubic"}, "resample"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"do_resize": False}, "do_resize"),
        ({"do_resize": 0}, "do_resize"),
        ({"do_rescale": "no"}, "do_rescale"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"rescale_factor": float("nan")}, "rescale_factor"),
        ({"do_pad": True, "do_normalize": False}, "pads with the mean colour"),
        ({"do_pad": True, "pad_size": {"height": 99, "width": 99}}, "pad_size"),
        ({"image_mean": [1, 2, None]}, "image_mean"),
        ({"image_std": 0}, "image_std"),
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type"),
        ({"image_mean": [1, 2]}, "image_mean"),
        ({"image_std": [1, 0, 1]}, "image_std"),
        ({"conversation_template": ["v1"]}, "template"),
    ],
)
def test_settings_that_we_do_not_follow_are_an_error(tokenizer, tmp_path, setting, says):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(setting))
    with pytest.raises(UserError, match=says) as error:
        load_processor(tmp_path, config(tokenizer), "v1" if "conversation_template" not in setting else None)
    assert len(str(error.value)) <= 200


SETTINGS = [
    {"size": 28},
    {"size": {"height": 28, "width": 28}},
    {"size": {"height": 28, "width": 28}, "do_center_crop": False},
    {"size": {"height": 28, "width": 28}, "crop_size": 28, "resample": 2},
    *({"resample": number} for number in range(6)),
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    {"rescale_factor": 1 / 256},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"image_mean": 0.5, "image_std": 0.25},
    {"do_convert_rgb": True, "do_pad": True},
    {"do_pad": True, "image_processor_type": "LlavaImageProcessorFast"},
    {"do_pad": True, "image_processor_type": "LlavaImageProcessor", "resample": 2},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_settings_that_change_pixels_are_followed(tokenizer, picture, tmp_path, setting):
    """The same pixels as transformers' for the same file, and again after saving."""
    kind = setting.get("image_processor_type", "CLIPImageProcessor")
    values = {
        "image_processor_type": kind,
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        **setting,
    }
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    official = (LlavaImageProcessorPil if "Llava" in kind else CLIPImageProcessorPil)(**values)
    expected = official(picture, return_tensors="pt")["pixel_values"]
    ours = load_processor(tmp_path, config(tokenizer), "v1")
    save_processor(ours, tmp_path / "again")
    for processor in (ours, load_processor(tmp_path / "again", config(tokenizer))):
        torch.testing.assert_close(
            processor.image_inputs(picture)["pixel_values"], expected.float(), rtol=1e-5, atol=2e-6
        )


def test_the_originals_way_with_pictures(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"image_aspect_ratio": "anyres_max_9"}')
    with pytest.raises(UserError, match="anyres_max_9"):
        load_processor(tmp_path, config(tokenizer))


def test_an_image_id_that_does_not_fit_the_model(tokenizer, tmp_path):
    save_processor(Processor(tokenizer, 28, 14), tmp_path)
    with pytest.raises(UserError, match="32000"):
        load_processor(tmp_path, read_config({"vision_config": {"image_size": 28, "patch_size": 14}}))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_processor(tmp_path / "nowhere", config(tokenizer))
