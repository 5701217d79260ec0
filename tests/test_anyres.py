"""LLaVA-NeXT's tiles: the known token counts, and transformers' picture, features, logits and words."""

import numpy as np
import pytest
import torch
from conftest import IMAGE, TEXT, TOWER, relative_error, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minillava import weights
from minillava.anyres import Tiling, best_pinpoint, cut_views
from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.generation import collate_prompts, generate, generate_batch, new_cache
from minillava.inputs.image import CLIP_MEAN, CLIP_STD, preprocess
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.model import Llava
from minillava.weights.hf_config import PINPOINTS, read_config, write_config

SMALL = [[14, 28], [28, 14], [28, 28], [42, 14], [14, 42]]  # the official pinpoints, with tiles of 14 px


@pytest.mark.parametrize(
    ("size", "pinpoint", "grid", "tokens", "count"),
    [
        ((336, 336), (336, 672), (24, 24), 1176, 3),
        ((640, 480), (672, 672), (36, 48), 2340, 5),
        ((480, 640), (672, 672), (48, 36), 2352, 5),
        ((1024, 1024), (672, 672), (48, 48), 2928, 5),
        ((1920, 1080), (672, 672), (28, 48), 1948, 5),
        ((1000, 300), (336, 1008), (22, 72), 2182, 4),
        ((300, 1000), (1008, 336), (72, 22), 2232, 4),
    ],
)
def test_the_known_token_counts(size, pinpoint, grid, tokens, count):
    tiling = Tiling.of(size, PINPOINTS, 336, 14)
    assert best_pinpoint(size, PINPOINTS) == pinpoint
    assert ((tiling.height, tiling.width), tiling.num_tokens, tiling.num_views) == (grid, tokens, count)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000))
def test_counts_and_pinpoints_are_transformers(width, height):
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    rows, columns = (edge // 336 for edge in select_best_resolution((height, width), PINPOINTS))
    tiling = Tiling.of((width, height), PINPOINTS, 336, 14)
    assert (tiling.rows, tiling.columns) == (rows, columns)
    assert tiling.num_tokens == 576 + sum(
        LlavaNextProcessor._get_unpadded_features(None, height, width, 24, 24, rows, columns)
    )


@pytest.mark.parametrize("size", [(14, 14), (40, 31), (31, 40), (97, 11), (9, 83), (500, 333)])
def test_pixels_are_transformers(size):
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    options = dict(image_mean=CLIP_MEAN, image_std=CLIP_STD, image_grid_pinpoints=SMALL)
    shape = dict(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
    theirs = LlavaNextImageProcessorPil(**options, **shape)(picture, return_tensors="pt")["pixel_values"][0]
    ours = torch.stack([preprocess(view, 14) for view in cut_views(picture, SMALL, 14)])
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' NeXT, ours from its files)."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_grid_pinpoints=SMALL,
        image_token_index=IMAGE,
    )
    theirs = shaken(LlavaNextForConditionalGeneration(config).eval())
    folder = tmp_path_factory.mktemp("next")
    theirs.save_pretrained(folder)
    return theirs, weights.load_model(folder, device="cpu", dtype="float32")


def inputs_for(size, text=(5, 9, 13)) -> dict:
    """A random picture of that size in views of 14 px, and its placeholders before some words."""
    tiling = Tiling.of(size, SMALL, 14, 7)
    generator = torch.Generator().manual_seed(sum(size))
    pixel_values = torch.randn(tiling.num_views, 3, 14, 14, generator=generator)
    ids = torch.tensor([[1, *[IMAGE] * tiling.num_tokens, *text]])
    return {"input_ids": ids, "pixel_values": pixel_values, "image_sizes": torch.tensor([size])}


def for_transformers(inputs: dict) -> dict:
    """They say (height, width) and one more dimension."""
    return {**inputs, "pixel_values": inputs["pixel_values"][None], "image_sizes": inputs["image_sizes"].flip(-1)}


@pytest.mark.parametrize("size", [(14, 14), (40, 31), (31, 40), (97, 11), (9, 83), (500, 333)])
def test_logits_and_words_are_transformers(pair, size):
    theirs, ours = pair
    inputs = inputs_for(size)
    with torch.inference_mode():
        assert relative_error(ours(**inputs), theirs(**for_transformers(inputs)).logits) < 2e-5
        words = theirs.generate(
            **for_transformers(inputs), max_new_tokens=24, do_sample=False, eos_token_id=None, suppress_tokens=[IMAGE]
        )
    assert (
        list(generate(ours, **inputs, max_new_tokens=24, eos_token_id=[]))
        == words[0, inputs["input_ids"].shape[1] :].tolist()
    )


def test_rows_of_embed_image(pair):
    """(R, C), picture after picture; sizes that do not fit the views are an error."""
    _, ours = pair
    one, other = inputs_for((97, 11)), inputs_for((31, 40))
    both = (
        torch.cat([one["pixel_values"], other["pixel_values"]]),
        torch.cat([one["image_sizes"], other["image_sizes"]]),
    )
    with torch.inference_mode():
        rows = ours.embed_image(*both)
        alone = [ours.embed_image(inputs["pixel_values"], inputs["image_sizes"]) for inputs in (one, other)]
    counts = [Tiling.of(size, SMALL, 14, 7).num_tokens for size in ((97, 11), (31, 40))]
    assert rows.shape == (sum(counts), TEXT["hidden_size"]) and [len(part) for part in alone] == counts
    assert torch.allclose(rows, torch.cat(alone), atol=1e-6)
    for sizes in (None, other["image_sizes"][:0], torch.tensor([[31, 40]] * 2)):
        with pytest.raises(ValueError, match="image_sizes"):
            ours.embed_image(both[0], sizes)


def test_a_kept_cache_does_not_look_at_the_picture_again(pair, monkeypatch):
    _, ours = pair
    inputs, options = inputs_for((40, 31)), dict(max_new_tokens=5, eos_token_id=[])
    cache = new_cache(ours, 1, 100)
    first = list(generate(ours, **inputs, cache=cache, **options))
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([[*first, 7]])], 1)}
    expected = list(generate(ours, **longer, **options))
    monkeypatch.setattr(ours, "embed_image", lambda *_: pytest.fail("the cache holds the picture"))
    assert list(generate(ours, **longer, cache=cache, **options)) == expected


def test_the_parts_of_a_next_load_alone(pair, tmp_path):
    theirs, ours = pair
    theirs.save_pretrained(tmp_path)
    ids, pixel_values = torch.arange(3, 20)[None], torch.randn(2, 3, 14, 14)
    with torch.inference_mode():
        language_model = weights.load_language_model(tmp_path, device="cpu", dtype="float32")
        assert (
            torch.equal(language_model(ids), ours(ids))
            and relative_error(language_model(ids), theirs(ids).logits) < 2e-5
        )
        assert torch.equal(
            weights.load_vision_tower(tmp_path, device="cpu", dtype="float32")(pixel_values),
            ours.vision_tower(pixel_values),
        )


@pytest.mark.parametrize("size", [(14, 14), (40, 31), (97, 11)])
def test_transformers_reads_the_folder_that_is_saved(size, tmp_path):
    """AutoProcessor gives the same ids and pixels from our files, and its model the same logits."""
    from transformers import AutoProcessor, LlavaNextForConditionalGeneration

    tokenizer = Tokenizer.train(["USER: What is this? ASSISTANT: A cat.\n"] * 4, 400)
    text = TextConfig(**{**TEXT, "vocab_size": tokenizer.vocab_size})
    config = LlavaConfig(VisionConfig(**TOWER), text, tokenizer.image_id, image_grid_pinpoints=tuple(map(tuple, SMALL)))
    torch.manual_seed(1)
    model, processor = shaken(Llava(config)).eval(), Processor.for_model(tokenizer, config)
    weights.save(model, processor, tmp_path)
    assert weights.load(tmp_path, device="cpu")[1].image_grid_pinpoints == config.image_grid_pinpoints

    official = AutoProcessor.from_pretrained(tmp_path)
    assert type(official).__name__ == "LlavaNextProcessor"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = official(text="USER: <image>\nWhat is this? ASSISTANT:", images=picture, return_tensors="pt")
    inputs = processor("What is this?", picture)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["image_sizes"].flip(-1), expected["image_sizes"])
    torch.testing.assert_close(inputs["pixel_values"][None], expected["pixel_values"], rtol=0, atol=1e-5)
    theirs = LlavaNextForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert relative_error(model(**inputs), theirs(**expected).logits) < 2e-5


def test_pictures_of_different_shapes_side_by_side(pair):
    _, ours = pair
    one, other = inputs_for((97, 11)), inputs_for((31, 40), text=(4, 8, 15, 16))
    alone = [list(generate(ours, **inputs, max_new_tokens=7)) for inputs in (one, other)]
    assert generate_batch(ours, **collate_prompts([one, other]), max_new_tokens=7) == alone


def test_what_is_saved_is_what_was_loaded(pair, tmp_path):
    _, ours = pair
    assert read_config(write_config(ours.config)) == ours.config
    weights.save_module(ours, tmp_path, "llava-hf", write_config(ours.config))
    again = weights.load_model(tmp_path, device="cpu", dtype="float32")
    inputs = inputs_for((40, 31))
    with torch.inference_mode():
        assert torch.equal(again(**inputs), ours(**inputs))


@pytest.mark.parametrize(
    "pinpoints", [7, [[336]], [[336, 100]], [[-336, 336]], [["336", 336]], [[336 * 100, 336]], [336, 672]]
)
def test_pinpoints_are_checked(pinpoints):
    with pytest.raises(UserError, match="image_grid_pinpoints must be"):
        read_config({"model_type": "llava_next", "image_grid_pinpoints": pinpoints})
