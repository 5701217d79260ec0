"""Weights: every layout in, ours out; and what is wrong with a folder is said in one sentence."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from conftest import TEXT, TOWER, llava_pair, prompt, relative_error, shaken, transformers_llava
from safetensors.torch import load_file, save_file
from test_model import LLAMA3

from minillava import weights
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.generation import generate
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.training.precision import product_dtype
from minillava.weights import folders, loading, saving, tensor_files
from minillava.weights.__main__ import main as show
from minillava.weights.hf_config import read_config, write_config
from minillava.weights.processor_files import save_processor

CPU = {"device": "cpu", "dtype": "float32"}


def renamed(folder, change) -> None:
    path = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


def hub_name(name: str) -> str:
    """The Hub's name for transformers 5's."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def in_memory(name: str) -> str:
    return (
        "lm_head.weight" if "lm_head" in name else "model." + name.replace("language_model.model.", "language_model.")
    )


LAYOUTS = {
    "llava-hf": hub_name,
    "transformers 5": lambda name: name,
    "transformers 4.52": lambda name: in_memory(hub_name(name)),
    "transformers 5, in memory": lambda name: in_memory(name),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(transformers' model, the folder it was saved in)."""
    folder = tmp_path_factory.mktemp("saved")
    theirs = transformers_llava()
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to break."""
    shutil.copytree(saved[1], tmp_path / "weights")
    return tmp_path / "weights"


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(["a cat and a dog. USER: ASSISTANT: what is this?\n"] * 3, 400)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A whole LLaVA of ours with a processor, saved: (model, processor, folder)."""
    tokenizer, folder = tiny_tokenizer(), tmp_path_factory.mktemp("llava")
    theirs = transformers_llava(text={"vocab_size": tokenizer.vocab_size})
    theirs.config.image_token_index = theirs.config.image_token_id = tokenizer.image_id
    theirs.save_pretrained(folder)
    model = weights.load_model(folder, **CPU)
    processor = Processor.for_model(tokenizer, model.config)
    weights.save(model, processor, folder)
    return model, processor, folder


# ------------------------------------------------------------ layouts
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_llava(saved, folder, layout):
    theirs, _ = saved
    renamed(folder, LAYOUTS[layout])
    ours = weights.load_model(folder, **CPU)
    with torch.no_grad():
        assert relative_error(ours(**prompt()), theirs(**prompt()).logits) < 2e-5


def test_old_constants_are_ignored(folder):
    path = folder / "model.safetensors"
    extra = {
        "vision_tower.embeddings.position_ids": torch.arange(5)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
    }
    save_file({**load_file(path), **extra}, path)
    weights.load_model(folder, **CPU)


def test_layouts_of_the_parts(tmp_path):
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        CLIPVisionModelWithProjection,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    pixels, ids = torch.randn(2, 3, 14, 14), torch.arange(3, 20)[None]
    tower, text = (
        CLIPVisionConfig(**TOWER),
        dict(hidden_size=12, intermediate_size=8, num_attention_heads=3, num_hidden_layers=1, vocab_size=9),
    )
    for number, theirs in enumerate(
        (
            CLIPVisionModel(tower),
            CLIPVisionModelWithProjection(tower),
            CLIPModel(CLIPConfig(vision_config=TOWER, text_config=text)),
        )
    ):
        folder = tmp_path / f"clip{number}"
        shaken(theirs.eval()).save_pretrained(folder)
        ours = weights.load_vision_tower(folder, feature_layer=-1, keep_cls=True, **CPU)
        with torch.no_grad():
            expected = getattr(theirs, "vision_model", theirs)(pixels, output_hidden_states=True).hidden_states
            assert relative_error(ours(pixels), expected[-1]) < 2e-5
            assert relative_error(weights.load_vision_tower(folder, **CPU)(pixels), expected[-2][:, 1:]) < 2e-5
    for tied in (True, False):
        folder = tmp_path / f"llama{tied}"
        theirs = shaken(LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=tied)).eval())
        theirs.save_pretrained(folder)
        with torch.no_grad():
            assert relative_error(weights.load_language_model(folder, **CPU)(ids), theirs(ids).logits) < 2e-5


def test_the_parts_of_a_llava_load_alone(saved):
    _, folder = saved
    ids, pixels = torch.arange(3, 20)[None], prompt()["pixel_values"]
    whole = weights.load_model(folder, **CPU)
    with torch.no_grad():
        assert torch.equal(weights.load_language_model(folder, **CPU)(ids), whole(ids))
        assert torch.equal(weights.load_vision_tower(folder, **CPU)(pixels), whole.vision_tower(pixels))


def test_a_tied_head_that_is_also_in_the_file_is_ignored(tmp_path):
    llava_pair(tmp_path, text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert not any("lm_head" in name for name in tensors)
    save_file({**tensors, "language_model.lm_head.weight": torch.zeros(67, 36)}, path)
    weights.load_model(tmp_path, **CPU)


@pytest.mark.parametrize("top", [None, True, False])
@pytest.mark.parametrize("text", [None, True, False])
@pytest.mark.parametrize("head", ["another", "a copy", None])
def test_a_head_beside_tied_embeddings(folder, top, text, head):
    """As transformers: tied where either part of config.json says so, unless the file has another head."""
    from transformers import LlavaForConditionalGeneration

    def change(tensors):
        if head is None:
            del tensors["language_model.lm_head.weight"]
        elif head == "a copy":
            tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()

    rewrite(folder, change)
    config = json.loads((folder / "config.json").read_text())
    for part, tied in ((config, top), (config["text_config"], text)):
        part.pop("tie_word_embeddings", None)
        part |= {} if tied is None else {"tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    if head is None and not (top or text):  # transformers would make one up
        with pytest.raises(UserError, match=r"lacks the tensor language_model\.lm_head\.weight"):
            weights.load_model(folder, **CPU)
        return
    ours, ids = weights.load_model(folder, **CPU), torch.arange(3, 20)[None]
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(input_ids=ids).logits) < 2e-5
        assert torch.equal(weights.load_language_model(folder, **CPU)(ids), ours(ids))
    weights.save_module(ours, folder / "again", "llava-hf", write_config(ours.config))
    assert torch.equal(weights.load_model(folder / "again", **CPU)(ids), ours(ids))


def test_rules_are_inverted_exactly(saved):
    """Reading what was written gives the same names, for every layout."""
    names = {
        f"language_model.{n}"
        for n in ("embed_tokens.weight", "layers.0.mlp.up_proj.weight", "norm.weight", "lm_head.weight")
    }
    names |= {
        f"vision_tower.{n}"
        for n in (
            "embeddings.class_embedding",
            "layers.1.layer_norm1.bias",
            "pre_layrnorm.weight",
            "post_layernorm.bias",
        )
    }
    names |= {"projector.linear_1.weight", "projector.linear_2.bias"}
    for rules in weights.LAYOUTS.values():
        back = [(ours, theirs) for theirs, ours in rules]
        for name in names:
            written = weights.rename(name, back)
            assert written is None or weights.rename(written, rules) == name


def test_shards(folder, saved):
    shard(folder)
    with torch.no_grad():
        assert relative_error(weights.load_model(folder, **CPU)(**prompt()), saved[0](**prompt()).logits) < 2e-5


def shard(folder) -> None:
    """Split model.safetensors in two with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ------------------------------------------------------------ saving
def test_what_is_saved_is_what_is_loaded(llava):
    model, _, folder = llava
    again, processor = weights.load(folder, **CPU)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert processor("a cat")["input_ids"].tolist() == llava[1]("a cat")["input_ids"].tolist()


def test_transformers_loads_what_is_saved(llava):
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    model, processor, folder = llava
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    inputs = {**processor("what is this?"), "pixel_values": prompt()["pixel_values"]}
    ids = processor("what is this?")["input_ids"]
    inputs["input_ids"] = torch.cat([ids[:, :1], torch.full((1, 4), processor.image_token_id), ids[:, 1:]], 1)
    with torch.no_grad():
        assert relative_error(model(**inputs), theirs.eval()(**inputs).logits) < 2e-5
    assert AutoTokenizer.from_pretrained(folder).encode("a cat.") == [1, *processor.tokenizer.encode("a cat.")[0]]


def test_tied_and_linear_and_rope_survive_saving(tmp_path):
    text = {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "num_key_value_heads": 1}
    _, model = llava_pair(tmp_path / "a", text=text, tie_word_embeddings=True)
    weights.save_module(model, tmp_path / "b", "llava-hf", write_config(model.config))
    again = weights.load_model(tmp_path / "b", **CPU)
    assert again.config == model.config and torch.equal(again(**prompt()), model(**prompt()))
    assert not any("lm_head" in name for name in load_file(tmp_path / "b" / "model.safetensors"))


def test_linear_projector_is_saved_and_loaded(saved, tmp_path):
    from dataclasses import replace

    from minillava.model import Llava

    config = replace(weights.load_model(saved[1], **CPU).config, projector_type="linear")
    model = Llava(config)
    weights.save_module(model, tmp_path, "llava-hf", write_config(config))
    assert torch.equal(weights.load_model(tmp_path, **CPU).projector.linear_1.weight, model.projector.linear_1.weight)


def test_the_parts_are_saved_for_transformers(saved, tmp_path):
    from transformers import CLIPVisionModel, LlamaForCausalLM

    model = weights.load_model(saved[1], **CPU)
    weights.save_language_model(model.language_model, tiny_tokenizer(), tmp_path / "language")
    weights.save_vision_tower(model.vision_tower, tmp_path / "vision")
    ids, pixels = torch.arange(3, 20)[None], prompt()["pixel_values"]
    with torch.no_grad():
        assert (
            relative_error(LlamaForCausalLM.from_pretrained(tmp_path / "language").eval()(ids).logits, model(ids))
            < 2e-5
        )
        features = (
            CLIPVisionModel.from_pretrained(tmp_path / "vision")
            .eval()(pixels, output_hidden_states=True)
            .hidden_states[-2][:, 1:]
        )
        assert relative_error(features, model.vision_tower(pixels)) < 2e-5
        assert torch.equal(weights.load_language_model(tmp_path / "language", **CPU)(ids), model(ids))
        assert torch.equal(weights.load_vision_tower(tmp_path / "vision", **CPU)(pixels), model.vision_tower(pixels))


def test_an_interrupted_save_leaves_the_old_or_nothing(llava, tmp_path, monkeypatch):
    model, processor, _ = llava

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(saving, "save_file", fail)
        with pytest.raises(KeyboardInterrupt):
            weights.save(model, processor, tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists() and not list(tmp_path.rglob("*.safetensors*"))
    with pytest.raises(UserError, match=r"no config\.json"):
        weights.load(tmp_path / "new")


def test_saving_over_the_file_that_is_mapped(llava, tmp_path):
    model, processor, _ = llava
    weights.save(model, processor, tmp_path, dtype="bfloat16")
    mapped, processor = weights.load(tmp_path, device="cpu", dtype="bfloat16")
    weights.save(mapped, processor, tmp_path)
    again, _ = weights.load(tmp_path, device="cpu", dtype="bfloat16")
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), mapped.state_dict().values(), strict=True)
    )


def test_dtypes(llava, tmp_path, monkeypatch):
    model, processor, _ = llava
    weights.save(model, processor, tmp_path, dtype="bfloat16")
    assert weights.load_model(tmp_path).projector.linear_1.weight.dtype == (
        torch.bfloat16 if torch.cuda.is_available() else torch.float32
    )
    with monkeypatch.context() as patch:
        patch.setattr(loading, "SMALL", 0)  # large weights stay as they are
        assert weights.load_model(tmp_path).projector.linear_1.weight.dtype == torch.bfloat16
    assert weights.load_model(tmp_path, device="cpu", dtype="float16").projector.linear_1.weight.dtype == torch.float16
    assert (
        weights.load_model(tmp_path, device="cpu", dtype=torch.bfloat16).projector.linear_1.weight.dtype
        == torch.bfloat16
    )


def test_loading_can_be_trained(folder):
    model = weights.load_model(folder, **CPU)
    model(**prompt()).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # the mapped file must not change
    assert all(
        torch.equal(a + 1, b)
        for a, b in zip(weights.load_model(folder, **CPU).parameters(), model.parameters(), strict=True)
    )


# ------------------------------------------------------------ mistakes
def rewrite(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (values[section] if section else values)[name] = value
    path.write_text(json.dumps(values))


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def index(folder, **weight_map):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {k.replace("__", "."): v for k, v in weight_map.items()}})
    )


def huge_header(folder):
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99999999999]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


UP = "language_model.model.layers.1.mlp.up_proj.weight"
MISTAKES = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
    "foreign model": (lambda f: edit_config(f, model_type="bert"), "'bert' is not supported"),
    "foreign language model": (lambda f: edit_config(f, text_config__model_type="qwen2"), "'qwen2' is not supported"),
    "absurd width": (lambda f: edit_config(f, text_config__hidden_size=2**22 * 3), "config.json makes it"),
    "absurd vocabulary": (lambda f: edit_config(f, text_config__vocab_size=10**12), "vocab_size must be"),
    "absurd depth": (lambda f: edit_config(f, text_config__num_hidden_layers=10**9), "num_hidden_layers must be"),
    "absurd epsilon": (
        lambda f: edit_config(f, text_config__rms_norm_eps=10**30),
        "rms_norm_eps must be a positive number",
    ),
    "one layer more": (
        lambda f: edit_config(f, text_config__num_hidden_layers=3),
        r"lacks the tensor language_model.model.layers.2\S+ \(and 8 more\)",
    ),
    "one layer less": (lambda f: edit_config(f, text_config__num_hidden_layers=1), r"no place for \(and 8 more\)"),
    "heads": (lambda f: edit_config(f, text_config__num_key_value_heads=2), "does not divide"),
    "feature layer": (lambda f: edit_config(f, vision_feature_layer=-9), "feature layers"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "pickle": (only_pickle, "is a pickle"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a whole safetensors"),
    "not safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"PK" + bytes(1000)),
        "not a whole safetensors",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-7]),
        "not a whole safetensors",
    ),
    "lying header": (huge_header, "not a whole safetensors"),
    "folder for a file": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "is a folder, not a file",
    ),
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(UP)), f"lacks the tensor {UP}\\."),
    "unknown tensor": (
        lambda f: rewrite(f, lambda t: t.update({"language_model.model.adapter": torch.ones(1)})),
        "language_model.model.adapter, which",
    ),
    "unknown names": (lambda f: rewrite(f, lambda t: (t.clear(), t.update(a=torch.ones(1)))), "only such as a"),
    "no tensors": (lambda f: rewrite(f, dict.clear), "holds no tensor"),
    "misshaped tensor": (
        lambda f: rewrite(f, lambda t: t.update({UP: torch.ones(2, 3)})),
        r"up_proj.weight is \(2, 3\), but config.json makes it \(53, 36\)",
    ),
    "integer tensor": (lambda f: rewrite(f, lambda t: t.update({UP: t[UP].to(torch.int8)})), "is of type I8"),
    "broken index": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").write_text("{")),
        "not valid JSON",
    ),
    "index without a map": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").write_text("{}")),
        "weight_map",
    ),
    "missing shard": (lambda f: index(f, a="lost.safetensors"), "lost.safetensors, which is missing"),
    "shard outside": (lambda f: index(f, a="../part.safetensors"), "must not hold"),
    "absolute shard": (lambda f: index(f, a="/etc/passwd"), "must be relative"),
    "tensor not in its shard": (lambda f: index(f, a="part.safetensors"), "says that a is in part.safetensors"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(folder, name):
    spoil, said = MISTAKES[name]
    spoil(folder)
    with pytest.raises(UserError, match=said) as error:
        weights.load_model(folder, device="cpu")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 200


def test_the_hubs_cache(folder, saved, tmp_path):
    """snapshots/REVISION/name -> ../../blobs/HASH, in shards; the folder of the snapshot and that of the model both
    load.
    """
    shard(folder)
    cache = tmp_path / "models--llava-hf--some"
    snapshot = cache / "snapshots" / "0123abc"
    for kind in ("blobs", "refs", "snapshots/0123abc"):
        (cache / kind).mkdir(parents=True)
    for number, path in enumerate(folder.iterdir()):
        shutil.move(path, cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    expected = saved[0](**prompt()).logits
    with torch.no_grad():
        for path in (snapshot, cache):
            assert relative_error(weights.load_model(path, **CPU)(**prompt()), expected) < 2e-5
        (cache / "refs" / "main").write_text("0123abc\n")
        (cache / "snapshots" / "9999").mkdir()
        assert relative_error(weights.load_model(cache, **CPU)(**prompt()), expected) < 2e-5
    (cache / "refs" / "main").write_text("../../..")
    with pytest.raises(UserError, match="must not hold"):
        weights.load_model(cache)
    (cache / "refs" / "main").unlink()
    with pytest.raises(UserError, match="2 revisions"):
        weights.load_model(cache)
    (snapshot / "model.safetensors.index.json").resolve().unlink()
    with pytest.raises(UserError, match="link to a file that is missing"):
        weights.load_model(snapshot)


def test_links_into_other_folders_are_followed(folder, tmp_path):
    index(folder, a="link.safetensors")
    (folder / "part.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match="says that a is in link"):  # it was opened
        weights.load_model(folder)
    (tmp_path / "linked").symlink_to(folder)
    with pytest.raises(UserError, match="says that a is in link"):
        weights.load_model(tmp_path / "linked")


def test_a_pointer_of_git_lfs(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(UserError, match="git lfs pull"):
        weights.load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_named_pipe(folder, name):
    """Opening one would wait for ever."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="is a named pipe, not a file"):
        weights.load_model(folder)


def test_a_tensor_under_two_names(folder):
    rewrite(folder, lambda t: t.update({UP.replace("language_model.model", "model.language_model"): t[UP].clone()}))
    with pytest.raises(UserError, match="which this model has no place for"):
        weights.load_model(folder)
    found = {"model.mm_projector.weight": Path("a"), "model.mm_projector.0.weight": Path("a")}
    with pytest.raises(UserError, match=r"projector\.linear_1\.weight twice"):
        tensor_files._match(found, {"projector.linear_1.weight": torch.ones(1)}, folder)


def test_many_names_are_looked_up_one_by_one(folder):
    found = {f"model.layers.0.mlp.up_proj.{number}": Path("a") for number in range(20_000)}
    wanted = {f"language_model.layers.{number}.mlp.up_proj.weight": torch.ones(1) for number in range(15_000)}
    found |= {name.replace("language_model", "model"): Path("a") for name in wanted}
    began = time.process_time()
    with pytest.raises(UserError, match=r"no place for \(and 19999 more"):
        tensor_files._match(found, wanted, folder)
    assert time.process_time() - began < 1.5


def test_options_are_given_by_name():
    for read in (weights.load_vision_tower, weights.load_language_model):
        with pytest.raises(TypeError, match="positional"):
            read("weights/tiny", "cpu")


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_alone(folder, with_config):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')
    if not with_config:
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no weights folder llava-hf/llava-1\.5-7b-hf, and HF_HUB_OFFLINE forbids"):
        weights.load_model(folder)
    with pytest.raises(UserError, match=r"holds only an adapter \(LoRA\)"):
        weights.load_language_model(folder)


def test_a_byte_order_mark(folder):
    text = (folder / "config.json").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / "config.json").write_text(text, encoding=encoding)
        weights.load_model(folder, **CPU)


@pytest.mark.parametrize("ends", [2, [0, 2], [7]])
def test_the_end_tokens_of_generation_config(folder, ends, tmp_path):
    edit_config(folder, text_config__eos_token_id=0)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": ends, "temperature": 0.6, "do_sample": True})
    )
    for model in (weights.load_model(folder, **CPU), weights.load_language_model(folder, **CPU)):
        config = getattr(model.config, "text_config", model.config)
        assert config.eos_token_id == ends
        ids = torch.arange(3, 9)[None]
        said = list(generate(model, ids, max_new_tokens=20, eos_token_id=[]))
        for end in [ends] if isinstance(ends, int) else ends:
            if end in said:
                assert len(list(generate(model, ids, max_new_tokens=20))) < 20
    model = weights.load_model(folder, **CPU)
    weights.save_module(model, tmp_path / "b", "llava-hf", write_config(model.config))
    assert weights.load_model(tmp_path / "b", **CPU).config.text_config.eos_token_id == ends


def test_generation_stops_at_each_end_token(folder):
    model = weights.load_model(folder, **CPU)
    said = list(generate(model, torch.arange(3, 9)[None], max_new_tokens=8, eos_token_id=[]))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [66, said[3]]}))
    ended = list(generate(weights.load_model(folder, **CPU), torch.arange(3, 9)[None], max_new_tokens=8))
    assert ended == said[: said.index(said[3])]


@pytest.mark.parametrize("ends", ["2", [], [2, "a"], -1, True, {"a": 1}, 2.5])
def test_end_tokens_that_are_none(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UserError, match="eos_token_id must be"):
        weights.load_model(folder)


@pytest.mark.parametrize(
    "few, many", [("float16", "bfloat16"), ("float32", "float16"), ("float64", "bfloat16"), ("bfloat16", "float64")]
)
def test_mixed_types_become_one(folder, few, many, monkeypatch, capsys):
    """Also in a large file, whose type is kept: that of most of its numbers."""

    def mix(tensors):
        for name in tensors:
            tensors[name] = tensors[name].to(getattr(torch, few if "norm" in name or "patch" in name else many))

    rewrite(folder, mix)
    for small, expected in ((10**9, "float32"), (0, "float32" if many == "float64" else many)):
        monkeypatch.setattr(loading, "SMALL", small)
        model = weights.load_model(folder, device="cpu")
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, expected)}
        model(**prompt())
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and f"the model is {expected}" in line and "float16" in line and len(line) <= 201
        weights.load_model(folder, device="cpu", dtype="bfloat16")
        assert capsys.readouterr().err == ""


def test_show(llava, folder, capsys, tmp_path):
    shutil.copytree(llava[2], tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text(
        '{"eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9, "bos_token_id": 1}'
    )
    show(["show", str(tmp_path / "a")])
    shown = capsys.readouterr().out
    total = sum(parameter.numel() for parameter in llava[0].parameters())
    for words in (
        "llava-hf",
        f"{total:,}",
        "llava_hf",
        "[2, 5]",
        "float32",
    ):
        assert words in shown
    for said, arguments in (("no weights folder", ["show", "nowhere"]), ("invalid choice", ["hide", "a"])):
        with pytest.raises(UserError, match=said):
            show(arguments)


@pytest.mark.parametrize(
    "path, options, said",
    [
        ("nowhere", {}, "no weights folder nowhere"),
        ("llava-hf/llava-1.5-7b-hf", {}, "weights download llava-hf/llava-1.5-7b-hf"),
        (__file__, {}, "is a file"),
        (None, {"device": "gpu"}, "no device 'gpu'"),
        (None, {"device": "meta"}, "no device 'meta'"),
        (None, {"device": "cuda:99"}, "cuda:99 was asked for"),
        (None, {"dtype": "int7"}, "no dtype 'int7'"),
        (None, {"attention": "flash"}, "no attention 'flash'"),
    ],
)
def test_bad_arguments(folder, path, options, said):
    with pytest.raises(UserError, match=said):
        weights.load_model(path or folder, **options)


def test_load_needs_a_tokenizer_that_fits(llava, folder):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        weights.load(folder)
    config = read_config(json.loads((folder / "config.json").read_text()))
    large = Processor.for_model(
        tiny_tokenizer(),
        LlavaConfig(config.vision_config, config.text_config, image_token_id=tiny_tokenizer().image_id),
    )
    save_processor(large, folder)
    edit_config(folder, image_token_index=large.image_token_id, image_token_id=large.image_token_id)
    with pytest.raises(UserError, match="has only 67 embeddings"):
        weights.load(folder, **CPU)


def test_the_default_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "repository" / "weights" / "tiny").mkdir(parents=True)
    monkeypatch.setattr(folders, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    assert weights.find_folder("weights/tiny") == tmp_path / "repository" / "weights" / "tiny"


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_is_no_type_that_the_card_only_emulates(capability, chosen, monkeypatch):
    """A T4 has bfloat16 by slow emulation alone: neither the model nor the products of a training take it there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    cuda = torch.device("cuda")
    monkeypatch.setattr(loading, "count_numbers", lambda sources: {"bfloat16": 1 << 40})
    monkeypatch.setattr(loading, "SMALL", 0)
    assert loading._find_dtype("auto", cuda, {}, Path("folder")) == chosen
    assert product_dtype("auto", cuda) == (torch.bfloat16 if chosen == torch.bfloat16 else torch.float32)
