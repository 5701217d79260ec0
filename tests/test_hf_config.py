"""config.json: Hugging Face's and the original's, and what is wrong with one said in one sentence."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TEXT, TOWER

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError
from minillava.language_model import rope_frequencies
from minillava.weights.hf_config import (
    PINPOINTS,
    read_config,
    read_text_config,
    read_vision_config,
    write_config,
    write_text_config,
    write_vision_config,
)

# config.json of liuhaotian/llava-v1.5-7b and of liuhaotian/llava-v1.6-vicuna-13b, without the keys that are of no use
# here.
V15 = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "intermediate_size": 11008,
    "max_length": 4096,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}
V16 = {
    **V15,
    "hidden_size": 5120,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "intermediate_size": 13824,
    "mm_patch_merge_type": "spatial_unpad",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}
CLIP_L = VisionConfig(1024, 4096, 24, 16, 336, 14, projection_dim=768)
VICUNA_7B = TextConfig(max_position_embeddings=4096, rms_norm_eps=1e-5)


# ------------------------------------------------------------ the original's
def test_the_original_of_v1_5():
    assert read_config(V15) == LlavaConfig(
        CLIP_L, VICUNA_7B, image_token_id=32000, vision_feature_layer=-2, projector_type="mlp2x_gelu"
    )
    assert read_config(V15).num_image_tokens == 576


def test_the_original_of_v1_6():
    text = replace(
        VICUNA_7B,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
    )
    turned = ((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336))  # the original says (width, height)
    assert read_config(V16) == LlavaConfig(CLIP_L, text, image_grid_pinpoints=turned)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mm_vision_select_layer": -1}, {"vision_feature_layer": -1}),
        ({"mm_vision_select_feature": "cls_patch"}, {"vision_feature_select_strategy": "full"}),
        ({"mm_projector_type": "linear"}, {"projector_type": "linear"}),
        ({"mm_projector_type": None}, {"projector_type": "mlp2x_gelu"}),
        ({"mm_vision_tower": "/models/clip-vit-large-patch14/"}, {"vision_config": replace(CLIP_L, image_size=224)}),
        ({"model_type": "llava_llama"}, {}),
        ({"vocab_size": 32003}, {"text_config": replace(VICUNA_7B, vocab_size=32003), "image_token_id": 32003}),
        ({"rope_theta": 5e5}, {"text_config": replace(VICUNA_7B, rope_theta=5e5)}),
    ],
)
def test_the_originals_settings(change, expected):
    assert read_config({**V15, **change}) == replace(read_config(V15), **expected)


def test_the_first_llava_had_one_matrix():
    """LLaVA v1 names no projector."""
    assert (
        read_config({key: value for key, value in V15.items() if key != "mm_projector_type"}).projector_type == "linear"
    )


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        (V15, {"model_type": "llava_mpt"}, "model 'llava_mpt' is not supported"),
        (V15, {"mm_projector_type": "mlp3x_gelu"}, "'mlp3x_gelu' is not supported"),
        (V15, {"mm_use_im_start_end": True}, "mm_use_im_start_end True is not supported"),
        (V15, {"mm_vision_select_feature": "cls"}, "'cls' is not supported"),
        (
            V15,
            {"mm_vision_tower": "google/siglip-so400m-patch14-384"},
            "vision tower 'siglip-so400m-patch14-384' is not supported",
        ),
        (V15, {"mm_vision_tower": None}, "vision tower 'None' is not supported"),
        (V15, {"mm_vision_select_layer": "last"}, "vision_feature_layer must be a whole number"),
        (V15, {"hidden_size": -1}, "hidden_size must be a positive"),
        (V16, {"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat' is not supported"),
        (V16, {"mm_vision_select_feature": "cls_patch"}, "'cls_patch' is not supported"),
        (V16, {"image_grid_pinpoints": None}, "image_grid_pinpoints must be"),
        (V16, {"image_grid_pinpoints": [[336]]}, "image_grid_pinpoints must be"),
        (V16, {"image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints must be"),
    ],
)
def test_an_original_config_that_cannot_be_is_a_sentence(base, change, said):
    with pytest.raises(UserError, match=said):
        read_config({**base, **change})


# ------------------------------------------------------------ the parts
def test_the_parts_of_every_kind_of_llava():
    for values in (
        V15,
        V16,
        write_config(read_config(V15)),
        write_config(read_config(V16)),
        {"model_type": "llava_next", "text_config": {}},
    ):
        assert read_text_config(values) == read_config(values).text_config
        assert read_vision_config(values) == read_config(values).vision_config == CLIP_L
    assert read_vision_config({"model_type": "clip", "text_config": {}, "vision_config": TOWER}) == VisionConfig(
        **TOWER
    )


def test_what_is_written_is_what_is_read():
    text = TextConfig(
        **TEXT,
        num_key_value_heads=1,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        rope_theta=3e4,
        eos_token_id=[2, 5],
    )
    vision = VisionConfig(**TOWER, hidden_act="gelu")
    assert read_text_config(write_text_config(text)) == text
    assert read_vision_config(write_vision_config(vision)) == vision
    llava = LlavaConfig(vision, replace(text, tie_word_embeddings=True), 61, -1, "full", "linear")
    assert read_config(write_config(llava)) == llava
    following = LlavaConfig(VisionConfig(), text, image_grid_pinpoints=((224, 448),))
    assert read_config(write_config(following)) == following


def test_a_next_takes_transformers_defaults():
    config = read_config({"model_type": "llava_next", "text_config": {}})
    assert config.image_grid_pinpoints == tuple(map(tuple, PINPOINTS)) and config.image_token_id == 32000
    with pytest.raises(UserError, match="'full' is not supported"):
        read_config({"model_type": "llava_next", "text_config": {}, "vision_feature_select_strategy": "full"})


LINEAR, LLAMA3 = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 5e5},
        {"rope_scaling": LINEAR, "rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
        {"rope_scaling": {**LLAMA3, "rope_theta": 5e5}, "rope_theta": 1e4},
        {"rope_scaling": {**LLAMA3, "type": "default"}},
        {"rope_scaling": None, "rope_parameters": {**LINEAR, "rope_theta": 3e4}, "rope_theta": 1e4},
        {"rope_scaling": {}, "rope_parameters": {**LLAMA3, "rope_theta": 3e4}},
        {"rope_scaling": {k: v for k, v in LLAMA3.items() if "original" not in k}, "max_position_embeddings": 256},
        {"rope_theta": 2e4},
    ],
    ids=str,
)
def test_rope_is_read_as_transformers_reads_it(values):
    """From transformers 4's key, from transformers 5's, and from both."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    ours = read_text_config({"model_type": "llama", **TEXT, **values})
    theirs = LlamaRotaryEmbedding(LlamaConfig(**{**TEXT, **json.loads(json.dumps(values))}))
    torch.testing.assert_close(rope_frequencies(ours), theirs.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 5e5}}, "mean different rope_theta"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must be above low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_a_rope_that_is_not_followed_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        read_text_config({"model_type": "llama", **values})


# ------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "bert"}, "'bert' is not supported"),
        ({"text_config": {"model_type": "mistral"}}, "'mistral' is not supported"),
        ({"text_config": {"hidden_size": 0}}, "hidden_size must be a positive"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "at most 1000"),
        ({"text_config": {"hidden_size": 10**15}}, "at most"),
        ({"text_config": {"num_attention_heads": 7, "num_key_value_heads": 2}}, "does not divide"),
        ({"text_config": {"rms_norm_eps": "small"}}, "rms_norm_eps must be a positive number"),
        ({"text_config": {"rope_scaling": {"type": "yarn"}}}, "'yarn' is not supported"),
        ({"text_config": {"rope_scaling": {"type": "linear"}}}, "factor must be a positive number"),
        ({"text_config": {"rope_scaling": "linear"}}, "must be an object"),
        ({"text_config": {"eos_token_id": "</s>"}}, "eos_token_id"),
        ({"text_config": [1]}, "must be an object"),
        ({"vision_config": {"num_attention_heads": 7}}, "does not divide"),
        ({"vision_config": {"hidden_act": "relu"}}, "'relu' is not supported"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer must be a whole number"),
        ({"vision_feature_select_strategy": "cls"}, "'cls' is not supported"),
    ],
)
def test_a_config_that_cannot_be_is_a_sentence(change, said):
    with pytest.raises(UserError, match=said):
        read_config({"model_type": "llava", **change})
