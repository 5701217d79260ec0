"""Small random models of transformers, the oracle, and the same weights in ours."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

from minillava import weights

torch.set_num_threads(1)  # a busy machine with two threads is 20 times slower than with one

IMAGE, VOCABULARY = 61, 67
# P = 4
TOWER = dict(
    hidden_size=24, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, image_size=14, patch_size=7
)
TEXT = dict(
    hidden_size=36,
    intermediate_size=53,
    num_hidden_layers=2,
    num_attention_heads=3,
    vocab_size=VOCABULARY,
    max_position_embeddings=128,
)


def transformers_llava(vision: dict | None = None, text: dict | None = None, **options):
    """A small random Llava of transformers, its weights large enough to tell a mistake from noise."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**TOWER, **(vision or {})}),
        text_config=LlamaConfig(**{**TEXT, **(text or {})}, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_index=IMAGE,
        **options,
    )
    return shaken(LlavaForConditionalGeneration(config).eval())


def shaken(model):
    """Give every parameter, norms and biases too, a value of its own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2 / max(1, parameter.numel()) ** 0.125)
    return model


def llava_pair(folder, vision: dict | None = None, text: dict | None = None, **options):
    """(transformers' model, ours from its files)."""
    theirs = transformers_llava(vision, text, **options)
    theirs.save_pretrained(folder)
    return theirs, weights.load_model(folder, device="cpu", dtype="float32")


def prompt(text_ids=(5, 9, 13), pictures: int = 1, image_tokens: int = 4, size: int = 14, seed: int = 0) -> dict:
    """input_ids (1, T) with the placeholders after the first id, and pixel_values."""
    generator = torch.Generator().manual_seed(seed)
    ids = [1, *[IMAGE] * image_tokens * pictures, *text_ids]
    return {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(pictures, 3, size, size, generator=generator)}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    return llava_pair(tmp_path_factory.mktemp("pair"))
