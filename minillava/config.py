"""The shapes of a model: three frozen dataclasses, named as in Hugging Face's config.json, which hf_config.py reads and
writes.

LLaVA: arXiv 2304.08485, section 4.1; LLaVA-1.5: arXiv 2310.03744, section 3. The defaults are those of transformers'
CLIPVisionConfig and LlamaConfig, since a config.json leaves out what equals them.
"""

from dataclasses import dataclass, field

from minillava.errors import UserError


def _expect_divides(part: int, whole: int, part_name: str, whole_name: str) -> None:
    if whole % part:
        raise UserError(f"config.json: {part_name} {part} does not divide {whole_name} {whole}")


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's vision tower (arXiv 2103.00020); the defaults are ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"  # or "gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    def __post_init__(self):
        heads = "the vision tower's num_attention_heads"
        _expect_divides(self.num_attention_heads, self.hidden_size, heads, "hidden_size")

    @property
    def num_patches(self) -> int:
        """P."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """LLaMA (arXiv 2302.13971) and its kin: Vicuna, TinyLlama, SmolLM2; the defaults are LLaMA-7B."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # {"rope_type": "linear" | "llama3", "factor": ...}
    tie_word_embeddings: bool = False
    bos_token_id: int = 1
    eos_token_id: int | list[int] = 2

    def __post_init__(self):
        object.__setattr__(self, "num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)
        query_heads, key_value_heads = self.num_attention_heads, self.num_key_value_heads
        _expect_divides(key_value_heads, query_heads, "num_key_value_heads", "num_attention_heads")
        _expect_divides(2, self.head_dim, "RoPE turns pairs:", "head_dim")


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA: vision tower, projector, language model, and how they meet."""

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: TextConfig = field(default_factory=TextConfig)
    image_token_id: int = 32000
    vision_feature_layer: int = -2  # hidden_states[-2]: the output of the last block but one
    vision_feature_select_strategy: str = "default"  # "default" drops CLS, "full" keeps it
    projector_type: str = "mlp2x_gelu"  # "linear" is LLaVA v1, "mlp2x_gelu" LLaVA-1.5
    image_grid_pinpoints: tuple = ()  # LLaVA-NeXT: the (height, width) that pictures are fitted into; empty for LLaVA

    @property
    def num_image_tokens(self) -> int:
        """How many embeddings one picture becomes, in LLaVA-NeXT one view of it: P, and one more where CLS is kept."""
        return self.vision_config.num_patches + (self.vision_feature_select_strategy == "full")
