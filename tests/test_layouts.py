"""Each family of files that people have, as small random models, is the same function as transformers makes of it."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import IMAGE, TOWER, VOCABULARY, prompt, relative_error, shaken, transformers_llava
from safetensors.torch import load_file, save_file
from test_anyres import for_transformers, inputs_for
from test_anyres import pair as next_pair  # noqa: F401  (a fixture)
from test_weights import CPU, LAYOUTS, renamed

from minillava import weights
from minillava.errors import UserError
from minillava.generation import generate
from minillava.kv_cache import KVCache
from minillava.language_model import LanguageModel
from minillava.model import Llava
from minillava.projector import Projector
from minillava.vision import VisionTransformer
from minillava.weights import hf_config
from minillava.weights.hf_config import read_config, read_text_config

LLAMA = dict(hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=3, vocab_size=VOCABULARY)
ORIGINAL = {
    **LLAMA,
    "model_type": "llava",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "somewhere/small-clip",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
}


def original_name(name: str) -> str:
    """The original's name for transformers 5's."""
    for theirs, original in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("image_newline", "model.image_newline"),
    ):
        if name.startswith(theirs):
            return original + name.removeprefix(theirs)
    raise KeyError(name)


def write_config(folder, values: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.fixture
def v15(tmp_path):
    """transformers' model; the same as liuhaotian/llava-v1.5-7b has it, without the tower, and the whole CLIP that has
    the tower.
    """
    from transformers import CLIPConfig, CLIPModel

    theirs = transformers_llava()
    theirs.save_pretrained(tmp_path / "llava")
    path = tmp_path / "llava" / "model.safetensors"
    save_file(
        {
            original_name(name): tensor
            for name, tensor in load_file(path).items()
            if not name.startswith("vision_tower.")
        },
        path,
    )
    write_config(tmp_path / "llava", ORIGINAL)
    text = dict(hidden_size=12, intermediate_size=8, num_attention_heads=3, num_hidden_layers=1, vocab_size=9)
    clip = shaken(CLIPModel(CLIPConfig(vision_config=TOWER, text_config=text)).eval())
    clip.vision_model.load_state_dict(theirs.model.vision_tower.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    return theirs, tmp_path / "llava", tmp_path / "clip"


# ------------------------------------------------------------ LLaVA
def test_the_original_without_a_tower_takes_that_of_a_clip(v15):
    theirs, folder, clip = v15
    ours = weights.load_model(folder, vision=clip, **CPU)
    inputs = prompt()
    expected = theirs(**inputs).logits
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, ours.config.image_token_id)
    with torch.no_grad():
        assert relative_error(ours(**inputs), expected) < 2e-5


def test_the_original_needs_its_own_tower(v15, monkeypatch):
    _, folder, clip = v15
    with pytest.raises(UserError, match="vision tower 'small-clip' is not supported"):
        weights.load_model(folder, **CPU)
    write_config(folder, {**ORIGINAL, "mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    with pytest.raises(UserError, match="is not that of clip-vit-large-patch14-336"):
        weights.load_model(folder, vision=clip, **CPU)
    monkeypatch.setattr(hf_config, "CLIP_L_336", {**TOWER, "projection_dim": 768})  # of which the tower makes no use
    weights.load_model(folder, vision=clip, **CPU)
    with pytest.raises(UserError, match=r"holds no vision tower: .* with --vision"):
        weights.load_model(folder, **CPU)


def test_a_tower_too_many(v15):
    theirs, _, clip = v15
    folder = clip.parent / "whole"
    theirs.save_pretrained(folder)
    with pytest.raises(UserError, match="leave out --vision"):
        weights.load_model(folder, vision=clip, **CPU)


def test_the_originals_tokenizer_model_is_named(v15):
    _, folder, clip = v15
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer\.json: copy that of"):
        weights.load(folder, vision=clip, **CPU)


def test_the_original_of_v1_6_has_tower_and_newline(next_pair, tmp_path, monkeypatch):  # noqa: F811
    theirs, _ = next_pair
    theirs.save_pretrained(tmp_path)
    renamed(tmp_path, original_name)
    pinpoints = [[width, height] for height, width in theirs.config.image_grid_pinpoints]
    anyres = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": pinpoints}
    write_config(tmp_path, {**ORIGINAL, **anyres, "mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    monkeypatch.setattr(hf_config, "CLIP_L_336", TOWER)
    ours = weights.load_model(tmp_path, **CPU)
    for size in ((40, 31), (9, 83)):
        inputs = inputs_for(size)
        expected = theirs(**for_transformers(inputs)).logits
        inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, ours.config.image_token_id)
        with torch.no_grad():
            assert relative_error(ours(**inputs), expected) < 2e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_next(next_pair, tmp_path, layout):  # noqa: F811
    theirs, _ = next_pair
    theirs.save_pretrained(tmp_path)
    renamed(
        tmp_path,
        lambda name: (
            ("model." if "model" in LAYOUTS[layout]("x") else "") + name
            if name == "image_newline"
            else LAYOUTS[layout](name)
        ),
    )
    inputs = inputs_for((40, 31))
    with torch.no_grad():
        assert (
            relative_error(weights.load_model(tmp_path, **CPU)(**inputs), theirs(**for_transformers(inputs)).logits)
            < 2e-5
        )


# ------------------------------------------------------------ CLIP and LLaMA
@pytest.mark.parametrize("patch_size", [32, 16])
@pytest.mark.parametrize("whole", [True, False])
def test_clip_of_base_width_from_a_partial_config(tmp_path, patch_size, whole):
    """ViT-B's width and heads, of which config.json says only what differs from transformers' defaults; old files hold
    position_ids.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    differs = {"num_hidden_layers": 2, "patch_size": patch_size, "image_size": 64}
    theirs = CLIPVisionModel(CLIPVisionConfig(**differs)).eval()
    tensors = {
        f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in theirs.state_dict().items()
    }
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    if whole:
        tensors |= {
            "text_model.final_layer_norm.weight": torch.ones(3),
            "text_projection.weight": torch.ones(2, 2),
            "logit_scale": torch.ones(()),
        }
        tensors |= {
            "visual_projection.weight": torch.ones(2, 2),
            "text_model.embeddings.position_ids": torch.arange(3)[None],
        }
    write_config(
        tmp_path,
        {"model_type": "clip", "vision_config": differs} if whole else {"model_type": "clip_vision_model", **differs},
    )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert relative_error(weights.load_vision_tower(tmp_path, **CPU)(pixels), expected) < 2e-5


# config.json as the Hub has it, with the widths made small: what tells one from another is kept.
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}
FAMILY = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "vicuna v1.1": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "pad_token_id": 0},
    "vicuna v1.5": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "pretraining_tp": 1, "rope_scaling": None},
    "vicuna v1.5 16k": {
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
    },
    "tinyllama": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "rope_theta": 10000.0,
    },
    "smollm2": {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "rope_theta": 100000,
        "rope_interleaved": False,
    },
    "llama 3.2": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3,
    },
}


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_of_llama(tmp_path, name):
    """Logits of a long text, and 24 greedy ids with the cache; both read the same config.json and the same file."""
    from transformers import AutoConfig, LlamaForCausalLM

    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **LLAMA,
        **FAMILY[name],
    }
    values["hidden_size"] = 36 if values["num_attention_heads"] != 6 else 48
    write_config(tmp_path, values)
    torch.manual_seed(0)
    theirs = shaken(LlamaForCausalLM(AutoConfig.from_pretrained(tmp_path)).eval())
    tensors = {
        key: tensor
        for key, tensor in theirs.state_dict().items()
        if key != "lm_head.weight" or not values.get("tie_word_embeddings")
    }
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    ours, ids = weights.load_language_model(tmp_path, **CPU), torch.arange(3, 60)[None]
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(ids).logits) < 2e-5
        words = theirs.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, ids.shape[1] :
        ]
    assert list(generate(ours, ids, max_new_tokens=24, eos_token_id=[])) == words.tolist()


# ------------------------------------------------------------ configs of the Hub
CLIP_L_336 = dict(
    hidden_size=1024,
    image_size=336,
    intermediate_size=4096,
    model_type="clip_vision_model",
    num_attention_heads=16,
    num_hidden_layers=24,
    patch_size=14,
)
HUB = {
    "llava-1.5-7b-hf": {
        "model_type": "llava",
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
        "vision_config": {**CLIP_L_336, "projection_dim": 768, "vocab_size": 32000},
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
    "tiny-llava-v1-hf": {
        "model_type": "llava",
        "image_token_index": 32000,
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "model_type": "llama",
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
        "vision_config": CLIP_L_336,
    },
    "a tower of base size": {
        "model_type": "llava",
        "text_config": {"num_hidden_layers": 2},
        "vision_config": {"model_type": "clip_vision_model"},
    },
    "no sub-configs": {"model_type": "llava"},
    "llava-v1.6-vicuna-7b-hf": {
        "model_type": "llava_next",
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "text_config": {
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
        "use_image_newline_parameter": True,
        "vision_config": {**CLIP_L_336, "projection_dim": 768},
    },
}


@pytest.mark.parametrize("name", HUB)
def test_configs_of_the_hub_have_the_shapes_of_transformers(name):
    """Shapes alone, on the meta device: a partial sub-config takes transformers' class defaults."""
    from transformers import (
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
    )

    values = dict(HUB[name])
    kind = values["model_type"]
    build, config = {
        "llava": (LlavaForConditionalGeneration, LlavaConfig),
        "llava_next": (LlavaNextForConditionalGeneration, LlavaNextConfig),
    }[kind]
    with torch.device("meta"):
        theirs, ours = build(config.from_dict(dict(values))), Llava(read_config(values))
    mine, expected = (sorted(tuple(parameter.shape) for parameter in model.parameters()) for model in (ours, theirs))
    assert mine == expected
    text, expected = ours.config.text_config, theirs.config.text_config
    assert (text.rms_norm_eps, text.max_position_embeddings) == (
        expected.rms_norm_eps,
        expected.max_position_embeddings,
    )
    assert ours.config.vision_feature_layer == theirs.config.vision_feature_layer


def test_the_known_counts():
    """The official models' parameters and cache, on the meta device."""

    def count(build) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build().parameters())

    big = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
    seven, thirteen = (
        read_config(HUB["llava-1.5-7b-hf"]),
        read_config({**HUB["llava-1.5-7b-hf"], "text_config": {**big, "vocab_size": 32064}}),
    )
    small = read_config({**HUB["llava-1.5-7b-hf"], "vision_config": {**CLIP_L_336, "image_size": 224}}).vision_config
    assert (
        count(lambda: VisionTransformer(seven.vision_config))
        == 303_507_456
        == count(lambda: VisionTransformer(small)) + 327_680
    )
    assert count(lambda: VisionTransformer(seven.vision_config).layers[0]) == 12_596_224
    for config, two_layers, one in ((seven, 20_979_712, 4_198_400), (thirteen, 31_467_520, 5_248_000)):
        assert count(lambda config=config: Projector(config)) == two_layers
        assert (
            count(
                lambda config=config: Projector(
                    read_config({**hf_config.write_config(config), "projector_type": "linear"})
                )
            )
            == one
        )
    assert count(lambda: LanguageModel(read_text_config({"model_type": "llama"}))) == 6_738_415_616
    assert count(lambda: LanguageModel(read_text_config({"model_type": "llama", **big}))) == 13_015_864_320
    assert count(lambda: Llava(seven)) == 7_063_427_072 and count(lambda: Llava(thirteen)) == 13_351_494_656
    assert small.num_patches == 256 and seven.num_image_tokens == 576


@pytest.mark.parametrize(
    "config, mebibytes", [({}, 288), ({"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40}, 450)]
)
def test_a_pictures_keys_and_values(config, mebibytes):
    """576 tokens in fp16: 0.5 MiB each in 7B, 0.78 MiB in 13B."""
    cache = KVCache(read_text_config({"model_type": "llama", **config}), 1, 576, torch.float16, "meta")
    assert sum(tensor.nbytes for tensor in (cache.keys, cache.values)) == mebibytes * 2**20


FOREIGN = {
    "a SigLIP tower": (
        {"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}},
        "vision tower 'siglip_vision_model'",
    ),
    "a Qwen": ({"model_type": "llava", "text_config": {"model_type": "qwen2"}}, "language model 'qwen2'"),
    "a Mistral": ({"model_type": "llava_next", "text_config": {"model_type": "mistral"}}, "language model 'mistral'"),
    "OneVision": ({"model_type": "llava_onevision"}, "model 'llava_onevision'"),
    "the original with a Qwen": ({**ORIGINAL, "model_type": "llava_qwen"}, "model 'llava_qwen'"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_supported_is_named(tmp_path, name):
    values, said = FOREIGN[name]
    write_config(tmp_path, values)
    with pytest.raises(UserError, match=f"{said} is not supported") as error:
        weights.load(tmp_path)
    assert len(str(error.value)) <= 180 and "\n" not in str(error.value)


def test_loading_imports_no_compiler():
    """On the meta device some operations import torch._dynamo or sympy, a second at each start."""
    code = "import sys, minillava; minillava.load('weights/tiny'); sys.exit(bool({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=weights.ROOT, check=False).returncode == 0
