"""The models to measure with: the official shapes, and two smaller ones."""

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.weights.hf_config import CLIP_L_336, read_config
from minillava.weights.random import SIZES

# a tower of 59M parameters and a language model of 36M: what a laptop trains
SMALL = LlavaConfig(
    VisionConfig(640, 2560, 12, 10, image_size=336, patch_size=14),
    TextConfig(32000, 512, 1408, 6, 8, 8, max_position_embeddings=2048, tie_word_embeddings=True),
    image_token_id=31999,
)
# CLIP's tower of 304M parameters and a language model of 836M: a training of it fills one card
BILLION = {
    "model_type": "llava",
    "vision_config": CLIP_L_336,
    "text_config": dict(
        vocab_size=32064,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=4,
    ),
}
# LLaVA-NeXT has several views a picture
LIKES = ("100m", "1b", *(name for name, values in SIZES.items() if values["model_type"] == "llava"))


def config_like(name: str) -> LlavaConfig:
    """The shapes of one of LIKES."""
    return SMALL if name == "100m" else read_config(BILLION if name == "1b" else SIZES[name])
