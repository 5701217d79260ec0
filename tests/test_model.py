"""The model against transformers, on small random models of odd sizes."""

import pytest
import torch
import torch.nn.functional as F
from conftest import IMAGE, VOCABULARY, llava_pair, prompt, relative_error

from minillava.config import LlavaConfig, TextConfig
from minillava.generation import collate_prompts, new_cache
from minillava.language_model import rms_norm, rope_frequencies
from minillava.training import loss
from minillava.training.tensors import sample_starts
from minillava.weights.hf_config import read_config

TOLERANCE = 2e-5
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
    rope_theta=500000.0,
)
VARIANTS = {
    "v1.5": {},
    "grouped queries": {"text": {"num_attention_heads": 6, "num_key_value_heads": 2}},
    "one key/value head": {"text": {"num_attention_heads": 6, "num_key_value_heads": 1}},
    "wide heads": {"text": {"head_dim": 20}},
    "tied head": {"text": {"tie_word_embeddings": True}, "tie_word_embeddings": True},
    "last layer, with CLS": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    "counted from the front": {"vision_feature_layer": 2},
    "llama3 rope": {"text": {"rope_parameters": LLAMA3}},
    "linear rope": {"text": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}},
    "plain gelu": {"vision": {"hidden_act": "gelu"}},
    "other epsilons": {"vision": {"layer_norm_eps": 1e-2}, "text": {"rms_norm_eps": 1e-2}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name, tmp_path):
    theirs, ours = llava_pair(tmp_path, **VARIANTS[name])
    inputs = prompt(range(3, 40), image_tokens=ours.config.num_image_tokens)
    with torch.no_grad():
        assert relative_error(ours(**inputs), theirs(**inputs).logits) < TOLERANCE


def test_two_pictures_fill_their_own_places(pair):
    theirs, ours = pair
    inputs = prompt(pictures=2)
    with torch.no_grad():
        assert relative_error(ours(**inputs), theirs(**inputs).logits) < TOLERANCE
        swapped = ours(inputs["input_ids"], inputs["pixel_values"].flip(0))
    assert relative_error(swapped, ours(**inputs)) > 0.01


def test_embed_image_gives_one_row_for_each_placeholder(pair):
    _, ours = pair
    inputs = prompt(pictures=2)
    with torch.no_grad():
        rows = ours.embed_image(inputs["pixel_values"])
        assert rows.shape == (2 * ours.config.num_image_tokens, ours.config.text_config.hidden_size)
        merged = ours.merge(inputs["input_ids"], rows)
    is_image = inputs["input_ids"] == IMAGE
    assert torch.equal(merged[is_image], rows)
    assert torch.equal(merged[~is_image], ours.embed_text(inputs["input_ids"])[~is_image])


def test_text_alone(pair):
    theirs, ours = pair
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(ids).logits) < TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_left_padded_batch_equals_one_by_one(pair, attention, monkeypatch):
    theirs, ours = pair
    rows = [prompt(range(3, 3 + length), seed=length) for length in (11, 4, 7)]
    batch = collate_prompts(rows)
    monkeypatch.setattr(ours.language_model, "attention", attention)
    with torch.no_grad():
        together = ours(**batch)
        for index, row in enumerate(rows):
            T = row["input_ids"].shape[1]
            assert relative_error(together[index, -T:], ours(**row)[0]) < TOLERANCE
            assert relative_error(together[index, -T:], theirs(**row).logits[0]) < TOLERANCE
    assert together.isfinite().all()


def test_padding_on_the_right_changes_nothing_before_it(pair):
    _, ours = pair
    row = prompt(range(3, 9))
    ids = torch.cat([row["input_ids"], torch.zeros(1, 5, dtype=torch.int64)], 1)
    mask = (torch.arange(ids.shape[1]) < row["input_ids"].shape[1]).long()[None]
    with torch.no_grad():
        assert relative_error(ours(ids, row["pixel_values"], mask)[:, :-5], ours(**row)) < TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", [(0, 0), (3, 0), (0, 4), (2, 5)], ids=str)
def test_packed_samples_equal_one_by_one(pair, attention, padding, monkeypatch):
    """With padding before or after them, too."""
    _, ours = pair
    rows = [prompt(range(3, 3 + length), seed=length) for length in (11, 4, 7)]
    ids = F.pad(torch.cat([row["input_ids"] for row in rows], 1), padding)
    lengths = [row["input_ids"].shape[1] for row in rows]
    numbers = F.pad(torch.repeat_interleave(torch.tensor([1, 2, 3]), torch.tensor(lengths)), padding)[None]
    monkeypatch.setattr(ours.language_model, "attention", attention)
    with torch.no_grad():
        embeds = ours.embed(ids, torch.cat([row["pixel_values"] for row in rows]))
        hidden = ours.language_model.hidden_states(embeds, start=sample_starts(numbers))
        parts = ours.language_model.logits(hidden).split([padding[0], *lengths, padding[1]], 1)
        for part, row in zip(parts[1:-1], rows, strict=True):
            assert relative_error(part, ours(**row)) < TOLERANCE


@pytest.mark.parametrize("padding", [(2, 0), (0, 3), (4, 1)], ids=str)
def test_padding_changes_no_loss_of_packed_samples(pair, padding):
    _, ours = pair
    ids = torch.arange(3, 15)[None]
    labels = ids.masked_fill((ids == 3) | (ids == 8), -100)  # the first of each sample
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.tensor([[1] * 5 + [2] * 7])}
    values = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    padded = {name: F.pad(tensor, padding, value=values[name]) for name, tensor in batch.items()}
    with torch.no_grad():
        assert abs(loss(ours, padded).item() - loss(ours, batch).item()) < 1e-5


def test_where_samples_begin_is_asked_of_the_device_once(pair, monkeypatch):
    """Not in every layer: on a GPU each answer waits for all that was begun before."""
    _, ours = pair
    rows, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: rows.append(tensor) or tolist(tensor))
    start = torch.tensor([[0, 0, 2, 2, 2]])
    with torch.no_grad():
        ours.language_model.hidden_states(torch.randn(1, 5, 36), start)
        first = len(rows)
        ours.language_model.hidden_states(torch.randn(1, 5, 36), start)
    assert 0 < first == len(rows) <= 2, "the two layers of this model, and the second run, ask again"


def test_a_mask_that_is_no_mask_is_an_error(pair):
    _, ours = pair
    for model in (ours, ours.language_model):
        with pytest.raises(ValueError, match="1 for a token and 0 for padding"):
            model(torch.tensor([[5, 6, 7, 8]]), attention_mask=torch.tensor([[1, 1, 2, 2]]))


@pytest.mark.parametrize("steps", [[1] * 14, [6, 8], [6, 1, 1, 4, 2]], ids=["one by one", "prefix and rest", "uneven"])
def test_decoding_by_steps_equals_the_whole_prompt(pair, steps):
    _, ours = pair
    ids = torch.arange(3, 17)[None]
    cache = new_cache(ours, 1, 14)
    with torch.no_grad():
        pieces = [ours(part, cache=cache) for part in ids.split(steps, 1)]
        assert relative_error(torch.cat(pieces, 1), ours(ids)) < TOLERANCE
    assert cache.length == 14


def test_gradients_of_eager_and_sdpa_agree_with_transformers(pair, monkeypatch):
    theirs, ours = pair
    batch = collate_prompts([prompt(range(3, 12), seed=1), prompt(range(20, 25), seed=2)])
    labels = batch["input_ids"].masked_fill((batch["input_ids"] == IMAGE) | (batch["attention_mask"] == 0), -100)
    expected = theirs(**batch, labels=labels).loss
    expected.backward()
    for attention in ("eager", "sdpa"):
        ours.zero_grad()
        for part in (ours.language_model, ours.vision_tower):
            monkeypatch.setattr(part, "attention", attention)
        value = loss(ours, {**batch, "labels": labels})
        value.backward()
        assert abs(value.item() - expected.item()) < 1e-5
        for mine, other in [
            (ours.projector.linear_1.weight, theirs.model.multi_modal_projector.linear_1.weight),
            (
                ours.language_model.layers[0].self_attn.q_proj.weight,
                theirs.model.language_model.layers[0].self_attn.q_proj.weight,
            ),
            (ours.vision_tower.layers[0].mlp.fc1.weight, theirs.model.vision_tower.encoder.layers[0].mlp.fc1.weight),
        ]:
            assert relative_error(mine.grad, other.grad) < 1e-4
    theirs.zero_grad()
    ours.zero_grad()


def test_a_picture_too_many_or_too_few_is_an_error(pair):
    _, ours = pair
    one, two = prompt(), prompt(pictures=2)
    for inputs in (
        {**one, "pixel_values": two["pixel_values"]},
        {**two, "pixel_values": one["pixel_values"]},
        {"input_ids": one["input_ids"]},
    ):
        with pytest.raises(ValueError, match="image tokens"):
            ours(**inputs)


def test_the_image_token_needs_no_embedding(tmp_path):
    """A Vicuna with 32000 rows takes `<image>` = 32000: the row is never looked up."""
    _, ours = llava_pair(tmp_path)
    ours.config = LlavaConfig(ours.config.vision_config, ours.config.text_config, image_token_id=VOCABULARY)
    inputs = prompt()
    inputs["input_ids"][inputs["input_ids"] == IMAGE] = VOCABULARY
    with torch.no_grad():
        assert ours(**inputs).isfinite().all()


def test_linear_projector_is_one_matrix():
    from minillava.projector import Projector

    projector = Projector(LlavaConfig(projector_type="linear"))
    assert sum(p.numel() for p in projector.parameters()) == 768 * 4096 + 4096


def test_official_parameter_counts():
    """LLaVA-1.5-7B in llava-hf's files has 7,063,427,072 parameters, and 13B 13,351,494,656."""
    from minillava.model import Llava

    vision = dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    texts = {
        7_063_427_072: {},
        13_351_494_656: dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40),
    }
    for parameters, text in texts.items():
        config = read_config(
            {"model_type": "llava", "vision_config": vision, "text_config": {"vocab_size": 32064, **text}}
        )
        with torch.device("meta"):
            assert sum(p.numel() for p in Llava(config).parameters()) == parameters


def test_rms_norm_casts_before_its_weight():
    x, weight = torch.randn(4, 8, dtype=torch.bfloat16), torch.randn(8, dtype=torch.bfloat16)
    wide = x.float()
    expected = weight * (wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).to(torch.bfloat16)
    assert torch.equal(rms_norm(x, weight, 1e-6), expected)


def test_rope_frequencies_by_hand():
    assert torch.allclose(rope_frequencies(TextConfig(hidden_size=8, num_attention_heads=2)), torch.tensor([1.0, 0.01]))
