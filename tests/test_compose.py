"""A LLaVA of official parts: a whole CLIP and a Vicuna as the Hub has them, and a new projector between."""

import itertools
import json
import sys

import pytest
import torch
from conftest import TOWER, relative_error, shaken
from PIL import Image
from test_tokenizer import build

import train as command
from minillava import weights
from minillava.errors import run
from minillava.inputs.tokenizer import Tokenizer
from minillava.training import TrainConfig, starting_point

LLAMA = dict(
    hidden_size=36, intermediate_size=53, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=512
)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def parts(request, tmp_path_factory):
    """(transformers' LLaMA, the folders of a CLIP with its text tower and of that LLaMA, whose tokenizer knows no
    `<image>`).
    """
    from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    clip, vicuna = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("vicuna")
    text = dict(hidden_size=12, intermediate_size=8, num_attention_heads=3, num_hidden_layers=1, vocab_size=9)
    shaken(CLIPModel(CLIPConfig(vision_config=TOWER, text_config=text)).eval()).save_pretrained(clip)
    spec = build("prepend").spec
    spec = {
        **spec,
        "added_tokens": [token for token in spec["added_tokens"] if token["content"] not in ("<image>", "<pad>")],
    }
    tokenizer = Tokenizer(spec)
    llama = shaken(
        LlamaForCausalLM(
            LlamaConfig(**LLAMA, vocab_size=tokenizer.vocab_size, tie_word_embeddings=request.param)
        ).eval()
    )
    llama.save_pretrained(vicuna)
    tokenizer.save(vicuna / "tokenizer.json")
    return llama, clip, vicuna


def test_a_llava_of_official_parts(parts, tmp_path):
    """`<image>` is the first id after the language model's, its rows end at a multiple of 64, and transformers loads
    what is saved.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    llama, clip, vicuna = parts
    model, processor = starting_point(TrainConfig(stage=1, vision=str(clip), language=str(vicuna), device="cpu"))
    old = llama.config.vocab_size
    assert processor.image_token_id == old == model.config.image_token_id and processor.tokenizer.pad_id == old + 1
    assert model.config.text_config.vocab_size == -(-(old + 2) // 64) * 64
    mean = llama.get_input_embeddings().weight.mean(0)
    assert torch.allclose(
        model.language_model.embed_tokens.weight[old:], mean.expand(model.config.text_config.vocab_size - old, -1)
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert relative_error(model(ids)[..., :old], llama(ids).logits) < 2e-5
    weights.save(model.eval(), processor, tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    picture = Image.effect_noise((23, 31), 90).convert("RGB")
    inputs = processor("what is this ?", picture)
    official = AutoProcessor.from_pretrained(tmp_path)(
        text="USER: <image>\nwhat is this ? ASSISTANT:", images=picture, return_tensors="pt"
    )
    assert inputs["input_ids"].tolist() == official["input_ids"].tolist()
    with torch.no_grad():
        assert relative_error(model(**inputs), theirs(**official).logits) < 2e-5


def test_rows_that_are_there_stay():
    tiny = weights.load_language_model("weights/tiny-language", device="cpu")
    model, _ = starting_point(TrainConfig(stage=1, device="cpu"))
    assert model.language_model.config == tiny.config


def test_both_stages_by_the_papers_recipe(parts, tmp_path, monkeypatch, capsys):
    """From the folders of a CLIP and a Vicuna to a LLaVA: what each stage trains changes, and nothing else."""
    llama, clip, vicuna = parts
    recipe = "v1.5" if llama.config.tie_word_embeddings else "v1"
    records = []
    for number in range(6):
        Image.effect_noise((23, 31), 90).convert("RGB").save(tmp_path / f"{number}.png")
        turns = [("human", "<image>\nwhat is this ?"), ("gpt", "a cat" if number % 2 else "a dog on the bus")]
        records.append(
            {
                "id": str(number),
                "image": f"{number}.png",
                "conversations": [{"from": who, "value": text} for who, text in turns],
            }
        )
    (tmp_path / "data.json").write_text(json.dumps(records))
    common = [
        "--recipe",
        recipe,
        "--data",
        tmp_path / "data.json",
        "--images",
        tmp_path,
        "--batch-size",
        "3",
        "--micro-batch-size",
        "2",
    ]
    common += ["--dtype", "float32", "--device", "cpu"]
    for arguments in (
        ["--stage", "1", "--vision", clip, "--language", vicuna, "--out", tmp_path / "1", *common],
        ["--stage", "2", "--weights", tmp_path / "1", "--out", tmp_path / "2", *common],
    ):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        assert run(command.main, "train.py") == 0, capsys.readouterr().err
    begun, _ = starting_point(
        TrainConfig(
            stage=1, vision=str(clip), language=str(vicuna), projector={"v1": "linear"}.get(recipe, ""), device="cpu"
        )
    )
    models = [begun, *(weights.load_model(tmp_path / stage, device="cpu", dtype="float32") for stage in "12")]
    states = [{name: p.bfloat16() for name, p in model.state_dict().items()} for model in models]
    changed = [
        {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])} for a, b in itertools.pairwise(states)
    ]
    assert changed[0] == {"projector"} and changed[1] <= {"projector", "language_model"}
    steps = [
        len([line for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines() if '"loss"' in line])
        for stage in "12"
    ]
    assert steps == [2, {"v1": 6, "v1.5": 2}[recipe]]  # 6 records, 3 a step, 1 or 3 epochs


def test_a_new_projectors_numbers_follow_from_the_seed():
    models = [starting_point(TrainConfig(stage=1, device="cpu", seed=seed))[0] for seed in (3, 3, 4)]
    first, again, other = (model.projector.linear_1.weight for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not any(parameter.is_meta for parameter in models[0].parameters())
