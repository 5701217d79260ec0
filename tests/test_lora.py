"""LoRA against PEFT: the layer, its gradients, the folder of an adapter; and a training whose base stays as it was."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import llava_pair, prompt, relative_error, transformers_llava
from safetensors.torch import load_file, save_file
from test_training import config, losses, parts, stage1, tokenizer  # noqa: F401 (fixtures)

from minillava import weights
from minillava.errors import UserError
from minillava.lora import LoRALinear, add_lora, merged_state
from minillava.training import run as loop
from minillava.training import train
from minillava.weights.adapter import ALLOWED, FREE, save_adapter

LORA = dict(lora_r=3, lora_alpha=10.0, lora_dropout=0.25)


@pytest.fixture
def adapted(tmp_path):
    """(folder of a base, our model with random LoRA layers that began as the base)."""
    transformers_llava().save_pretrained(tmp_path / "base")
    model = weights.load_model(tmp_path / "base", device="cpu", dtype="float32")
    model.requires_grad_(False)
    add_lora(model.language_model, 3, 10.0, 0.0, seed=0)
    with torch.no_grad():
        for child in model.modules():
            if isinstance(child, LoRALinear):
                child.lora_B.normal_(0, 0.3)
    model.projector.requires_grad_(True)
    return tmp_path / "base", model


def test_it_begins_as_the_model_it_was_and_only_the_changes_learn(tmp_path):
    _, model = llava_pair(tmp_path)
    inputs = prompt()
    before = model(**inputs)
    add_lora(model.language_model, 5, 10.0, 0.0, seed=0)
    assert torch.equal(model(**inputs), before)
    learns = [name for name, p in model.language_model.named_parameters() if p.requires_grad]
    assert len(learns) == 2 * 7 * model.config.text_config.num_hidden_layers and all("lora_" in name for name in learns)
    assert not isinstance(model.language_model.lm_head, LoRALinear)


def test_the_layer_against_float64():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(19, 23, bias=False), 5, 8.0)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(7, 19)
    expected = (layer.weight.double() + 8 / 5 * layer.lora_B.double() @ layer.lora_A.double()) @ x.double().T
    assert relative_error(layer(x).double(), expected.T) < 1e-6
    assert relative_error(x.double() @ layer.merged().double().T, expected.T) < 1e-6
    # dropout is on LoRA's inputs alone, keeps their mean, and is off when the model answers
    layer.scale, layer.dropout = 1.0, 0.5
    torch.manual_seed(1)
    dropped = torch.stack([layer.train()(x) for _ in range(4000)]).mean(0)
    assert relative_error(dropped, layer.eval()(x)) < 0.1


def test_an_adapters_folder_is_pefts(adapted, tmp_path):
    """PEFT adds the folder to transformers' model: the same logits and the same gradients of A and B; and `load` merges
    it into the same.
    """
    from peft import PeftModel

    base, model = adapted
    save_adapter(model, base, 3, 10.0, 0.0, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(transformers_llava(), tmp_path / "adapter", is_trainable=True)
    inputs = prompt()
    ours, official = model(**inputs), theirs(**inputs).logits
    assert relative_error(ours, official) < 2e-5
    ours.square().mean().backward()
    official.square().mean().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, p in model.language_model.named_parameters():
        if p.requires_grad:
            path = f"base_model.model.model.language_model.{name}.default.weight"
            assert relative_error(p.grad, gradients[path]) < 1e-4, name
    merged = weights.load_model(tmp_path / "adapter", device="cpu", dtype="float32")
    assert relative_error(merged(**inputs), official) < 2e-5
    assert {name for name, _ in merged_state(model)} == set(merged.state_dict())


def test_an_adapter_of_peft_is_read(adapted, tmp_path):
    """One that PEFT made and saved, with its own defaults."""
    from peft import LoraConfig, get_peft_model

    base, _ = adapted
    torch.manual_seed(4)
    options = dict(target_modules=r".*language_model.*\.(q_proj|down_proj)", init_lora_weights=False)
    theirs = get_peft_model(transformers_llava(), LoraConfig(r=5, lora_alpha=7, **options)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    rewrite_settings(tmp_path / "adapter", base_model_name_or_path=str(base))
    ours = weights.load_model(tmp_path / "adapter", device="cpu", dtype="float32")
    assert relative_error(ours(**prompt()), theirs(**prompt()).logits) < 2e-5


def of_transformers_4_57(name: str) -> str:
    """The name that transformers 4.52 to 4.57 gave to a tensor of the adapter."""
    return name.replace("vision_tower.encoder", "vision_tower.vision_model.encoder")


def of_transformers_4_51(name: str) -> str:
    name = of_transformers_4_57(name).replace("base_model.model.model.", "base_model.model.")
    head = "base_model.model.lm_head"
    return name.replace("language_model.layers", "language_model.model.layers").replace(
        head, head.replace("lm_head", "language_model.lm_head")
    )


@pytest.mark.parametrize("named", [str, of_transformers_4_57, of_transformers_4_51])
@pytest.mark.parametrize("init", [False, "gaussian", "orthogonal"])
def test_an_adapter_of_every_transformers_is_read(adapted, tmp_path, named, init):
    """By short names of layers, which the tower has as well, with the projector and the head saved whole."""
    from peft import LoraConfig, get_peft_model

    base, _ = adapted
    torch.manual_seed(4)
    targets, whole = ["q_proj", "k_proj", "up_proj"], ["multi_modal_projector", "lm_head"]
    lora = LoraConfig(r=4, lora_alpha=7, target_modules=targets, modules_to_save=whole, init_lora_weights=init)
    theirs = get_peft_model(transformers_llava(), lora).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "adapter"
    theirs.save_pretrained(folder)
    rewrite_settings(folder, base_model_name_or_path=str(base))
    tensors = load_file(folder / "adapter_model.safetensors")
    assert any("vision_tower" in name for name in tensors) and any("lm_head" in name for name in tensors)
    save_file({named(name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    ours = weights.load_model(folder, device="cpu", dtype="float32")
    assert relative_error(ours(**prompt()), theirs(**prompt()).logits) < 2e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(({"init_lora_weights": how}, f"init_lora_weights '{how}'") for how in ("pissa", "pissa_niter_4", "olora")),
        *(({"init_lora_weights": how}, f"init_lora_weights '{how}'") for how in ("loftq", "corda", "lora_ga", "new")),
        ({"use_qalora": True}, "use_qalora is not known"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow '3'"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 2}, "the rank of .* is 3, but adapter_config.json says r = 2"),
    ],
    ids=str,
)
def test_settings_that_would_add_it_in_another_way_are_refused(adapted, tmp_path, settings, words):
    base, model = adapted
    save_adapter(model, base, 3, 10.0, 0.0, tmp_path / "adapter")
    rewrite_settings(tmp_path / "adapter", **settings)
    with pytest.raises(UserError, match=words):
        weights.load_model(tmp_path / "adapter", device="cpu")


def test_pefts_own_defaults_are_known():
    """A setting that a new PEFT writes by itself must not make every adapter strange."""
    from peft import LoraConfig

    for name, value in LoraConfig(target_modules=["q_proj"]).to_dict().items():
        assert name in FREE or value in ALLOWED.get(name, (None, False, [], {}, "")), name


def rewrite_settings(folder, **settings) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_a_training_leaves_the_merged_model_and_the_adapter_alone(stage1, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    train(config(out, 2, weights=str(stage1), projector_learning_rate=1e-3, **LORA))
    start, whole = (weights.load_model(folder, dtype="float32") for folder in (stage1, out))
    changed = {
        name
        for (name, a), b in zip(start.state_dict().items(), whole.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {
        name
        for name in start.state_dict()
        if name.startswith("projector.") or ("_proj." in name and "language_model" in name)
    }
    again, processor = weights.load(out / "adapter", dtype="float32")
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b.bfloat16().float()), name
    assert processor.image_token_id == whole.config.image_token_id
    assert set(load_file(out / "adapter" / "adapter_model.safetensors")) == {
        f"base_model.model.model.{name}"
        for name in [f"multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
        + [
            f"language_model.layers.{i}.{part}_proj.lora_{kind}.weight"
            for i in range(2)
            for part in (*(f"self_attn.{x}" for x in "qkvo"), *(f"mlp.{x}" for x in ("gate", "up", "down")))
            for kind in "AB"
        ]
    }


def test_killed_and_resumed_drops_the_same_inputs(stage1, tmp_path, monkeypatch):  # noqa: F811
    settings = dict(weights=str(stage1), save_every=4, micro_batch_size=2, checkpoint_activations=True, **LORA)
    train(config(tmp_path / "whole", 2, **settings))
    rate = loop.learning_rate

    def die(step: int, of):
        if step == 5:
            raise SystemExit("killed")
        return rate(step, of)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", die)
        with pytest.raises(SystemExit):
            train(config(tmp_path / "broken", 2, **settings))
    train(config(tmp_path / "broken", 2, resume=True, **settings))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("broken", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    train(replace(config(tmp_path / "none", 2, **settings), lora_dropout=0.0, save_every=6))
    assert losses(tmp_path / "none") != losses(tmp_path / "whole")


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda f: rewrite(f, lambda t: t.pop(next(name for name in t if "lora_A" in name))),
            "an adapter for another model",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({next(n for n in t if "lora_B" in n): torch.ones(2, 3)})),
            "an adapter for another model",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({next(n for n in t if "lora_B" in n): torch.ones(36, 9)})),
            "an adapter for another model",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({"base_model.model.model.extra": torch.ones(2)})),
            "its tensor .*extra has no place",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text(
                '{"base_model_name_or_path": "BASE", "r": 0, "lora_alpha": 1}'
            ),
            "must name r and lora_alpha",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text(
                '{"base_model_name_or_path": "BASE", "r": 1, "use_dora": true}'
            ),
            "use_dora is not known",
        ),
        (lambda f: (f / "adapter_config.json").write_text('{"r": 1}'), "does not name the model"),
        (
            lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere"}'),
            "no weights folder nowhere",
        ),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"{}"), "not a whole safetensors file"),
        (lambda f: (f / "non_lora_trainables.bin").write_bytes(b""), "a pickle, which is never read"),
        (lambda f: rewrite_base(f.parent / "base"), "is not the model that the adapter .* was trained on"),
    ],
)
def test_adapters_that_do_not_fit_are_told_in_one_sentence(adapted, tmp_path, harm, words):
    base, model = adapted
    save_adapter(model, base, 3, 10.0, 0.0, tmp_path / "adapter")
    harm(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace("BASE", str(base)))
    with pytest.raises(UserError, match=words):
        weights.load_model(tmp_path / "adapter", device="cpu")


def rewrite_base(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    save_file({**tensors, name: tensors[name] + 0.5}, path, {"format": "pt"})


def test_the_base_may_move_with_its_adapter(adapted, tmp_path, monkeypatch):
    """A relative name of the base is looked for from the working folder, as everywhere."""
    _, model = adapted
    monkeypatch.chdir(tmp_path)
    save_adapter(model, "base", 3, 10.0, 0.0, tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "adapter"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    with pytest.raises(UserError, match="no weights folder base"):
        weights.load_model("elsewhere/adapter")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert weights.load_model("adapter", device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(stage=1, lora_r=3), "--lora-r is for stage 2"),
        (dict(stage=2, lora_r=-1), "--lora-r must be 0 or more"),
        (dict(stage=2, lora_dropout=0.5), "--lora-dropout is for LoRA"),
        (dict(stage=2, lora_r=3, lora_dropout=1.0), "--lora-dropout must be from 0"),
        (dict(stage=2, lora_r=3, lora_alpha=0.0), "--lora-alpha must be above 0"),
    ],
)
def test_mistakes(changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        config(tmp_path, **changes)
