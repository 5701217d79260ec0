"""The shapes of a model, read from and written to Hugging Face's `config.json`.

Frozen, nested dataclasses. A sub-config on the Hub is often partial; what it leaves out takes the default of transformers' class for that part
(CLIPVisionConfig, LlamaConfig), which are the defaults below. LLaVA: arXiv 2304.08485, section 4.1; LLaVA-1.5: arXiv 2310.03744, section 3.
"""

from dataclasses import asdict, dataclass, field, fields

from minillava.errors import UserError


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's vision tower (arXiv 2103.00020). The defaults are CLIPVisionConfig's: ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 512

    def __post_init__(self):
        _divides(self.num_attention_heads, self.hidden_size, "the vision tower's num_attention_heads", "hidden_size")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_hf(cls, values: dict) -> "VisionConfig":
        _expect(values, "model_type", ("clip_vision_model", "clip"), "vision tower")
        _expect(values, "hidden_act", ("quick_gelu", "gelu"), "vision activation")
        return _build(cls, values)

    def to_hf(self) -> dict:
        return {"model_type": "clip_vision_model", **asdict(self)}


ROPE_NUMBERS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class TextConfig:
    """LLaMA (arXiv 2302.13971) and its kin: Vicuna, TinyLlama, SmolLM2. The defaults are LlamaConfig's."""

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
        _divides(self.num_key_value_heads, self.num_attention_heads, "num_key_value_heads", "num_attention_heads")
        _divides(2, self.head_dim, "RoPE turns pairs:", "head_dim")

    @classmethod
    def from_hf(cls, values: dict) -> "TextConfig":
        _expect(values, "model_type", ("llama",), "language model")
        _expect(values, "hidden_act", ("silu",), "language model activation")
        for bias in ("attention_bias", "mlp_bias"):
            _expect(values, bias, (False,), f"language model with {bias}")
        rope = section(values, "rope_parameters") or section(values, "rope_scaling")  # transformers 5 | 4
        rope = {("rope_type" if key == "type" else key): value for key, value in rope.items()}
        kind = rope.get("rope_type", "default")
        _expect({"rope_type": kind}, "rope_type", ("default", "linear", "llama3"), "RoPE scaling")
        for key in ROPE_NUMBERS.get(kind, ()):
            _expect_number(f"RoPE scaling's {key}", rope.get(key))
        theta = rope.pop("rope_theta", values.get("rope_theta", cls.rope_theta))
        return _build(cls, {**values, "rope_theta": theta, "rope_scaling": None if kind == "default" else rope})

    def to_hf(self) -> dict:
        rope = {"rope_theta": self.rope_theta, "rope_type": "default", **(self.rope_scaling or {})}
        return {"model_type": "llama", "hidden_act": "silu", "rope_parameters": rope, **asdict(self)}


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA: tower, projector, language model, and how they meet."""

    vision_config: VisionConfig = field(default_factory=VisionConfig)
    text_config: TextConfig = field(default_factory=TextConfig)
    image_token_id: int = 32000
    vision_feature_layer: int = -2  # hidden_states[-2]: the output of the last block but one
    vision_feature_select_strategy: str = "default"  # "default" drops CLS, "full" keeps it
    projector_type: str = "mlp2x_gelu"  # "linear" is LLaVA v1, "mlp2x_gelu" LLaVA-1.5
    image_grid_pinpoints: tuple = ()  # LLaVA-NeXT: the (height, width) that pictures are fitted into; none for LLaVA

    @property
    def image_tokens(self) -> int:
        """P: how many embeddings one picture becomes."""
        return self.vision_config.num_patches + (self.vision_feature_select_strategy == "full")

    @classmethod
    def from_hf(cls, values: dict) -> "LlavaConfig":
        if "text_config" not in values and ("mm_projector_type" in values or "mm_vision_tower" in values):
            return cls.from_original(values)
        _expect(values, "model_type", ("llava", "llava_next"), "model")
        _expect(values, "projector_hidden_act", ("gelu",), "projector activation")
        _expect(values, "vision_feature_select_strategy", ("default", "full"), "vision_feature_select_strategy")
        _expect(values, "projector_type", ("linear", "mlp2x_gelu"), "projector_type")
        vision, text = section(values, "vision_config") or CLIP_L_336, section(values, "text_config")
        text.setdefault("tie_word_embeddings", values.get("tie_word_embeddings", False))
        image_token_id = values.get("image_token_id", values.get("image_token_index", 32000))
        parts = {"vision_config": VisionConfig.from_hf(vision), "text_config": TextConfig.from_hf(text)}
        pinpoints = values.get("image_grid_pinpoints", PINPOINTS) if values.get("model_type") == "llava_next" else []
        parts["image_grid_pinpoints"] = _pinpoints(pinpoints, parts["vision_config"].image_size)
        return _build(cls, {**values, **parts, "image_token_id": image_token_id})

    @classmethod
    def from_original(cls, values: dict) -> "LlavaConfig":
        """The config.json of haotian-liu/LLaVA: a LLaMA's, with `mm_` keys; the tower is known by its name alone."""
        _expect(values, "model_type", ("llava", "llava_llama"), "model")
        _expect(values, "mm_projector_type", ("linear", "mlp2x_gelu"), "mm_projector_type")
        _expect(values, "mm_use_im_start_end", (False,), "LLaVA v0, with mm_use_im_start_end")
        _expect(values, "mm_vision_select_feature", ("patch", "cls_patch"), "mm_vision_select_feature")
        tower = str(values.get("mm_vision_tower", "")).rstrip("/").rsplit("/", 1)[-1]
        _expect({"tower": tower}, "tower", ("clip-vit-large-patch14-336", "clip-vit-large-patch14"), "vision tower")
        vision = CLIP_L_336 if tower.endswith("336") else {**CLIP_L_336, "image_size": 224}
        anyres = values.get("image_aspect_ratio") == "anyres"
        if anyres:
            _expect(values, "mm_patch_merge_type", ("spatial_unpad",), "mm_patch_merge_type")
        pinpoints = values.get("image_grid_pinpoints", []) if anyres else []
        turned = [pair[::-1] if isinstance(pair, list) else pair for pair in pinpoints] if isinstance(pinpoints, list) else pinpoints
        text = TextConfig.from_hf({**values, "model_type": "llama"})
        parts = {
            "vision_config": VisionConfig.from_hf(vision),
            "text_config": text,
            "image_token_id": text.vocab_size,  # never embedded: the original's is -200
            "vision_feature_layer": values.get("mm_vision_select_layer", -2),
            "vision_feature_select_strategy": "full" if values.get("mm_vision_select_feature") == "cls_patch" else "default",
            "projector_type": values.get("mm_projector_type", "linear"),
            "image_grid_pinpoints": _pinpoints(turned, vision["image_size"]),  # the original says (width, height)
        }
        return _build(cls, parts)

    def to_hf(self) -> dict:
        anyres = bool(self.image_grid_pinpoints)
        return {
            "architectures": ["LlavaNextForConditionalGeneration" if anyres else "LlavaForConditionalGeneration"],
            "model_type": "llava_next" if anyres else "llava",
            **({"image_grid_pinpoints": [list(pair) for pair in self.image_grid_pinpoints]} if anyres else {}),
            "vision_config": self.vision_config.to_hf(),
            "text_config": self.text_config.to_hf(),
            "image_token_index": self.image_token_id,
            "image_seq_length": self.image_tokens,
            "vision_feature_layer": self.vision_feature_layer,
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "projector_type": self.projector_type,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": self.text_config.tie_word_embeddings,
        }


# What transformers takes where a LLaVA's config has no vision_config at all, and the pinpoints of LLaVA-NeXT.
CLIP_L_336 = dict(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768
)
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MOST_TILES = 64


def _pinpoints(pairs, image_size: int) -> tuple[tuple[int, int], ...]:
    """Checked: whole tiles, and not too many."""

    def fits(pair) -> bool:
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(edge, int) and edge >= image_size for edge in pair)
        return whole and not any(edge % image_size for edge in pair) and pair[0] * pair[1] <= MOST_TILES * image_size**2

    if not isinstance(pairs, list) or not all(map(fits, pairs)):
        raise UserError(f"config.json: image_grid_pinpoints must be a list of (height, width), each a few times {image_size}, not {str(pairs)[:80]}")
    return tuple(map(tuple, pairs))


def _expect(values: dict, key: str, allowed: tuple, what: str) -> None:
    value = values.get(key)
    if value is not None and value not in allowed:
        raise UserError(f"config.json: {what} {value!r} is not supported; this project knows {' and '.join(map(repr, allowed))}")


def _expect_number(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:  # beyond, an int does not fit
        raise UserError(f"config.json: {name} must be a positive number, not {value!r}")


def section(values: dict, key: str) -> dict:
    """A part of a config, empty where there is none."""
    section = values.get(key) or {}
    if not isinstance(section, dict):
        raise UserError(f"config.json: {key} must be an object, not {section!r}")
    return dict(section)


def _divides(part: int, whole: int, part_name: str, whole_name: str) -> None:
    if whole % part:
        raise UserError(f"config.json: {part_name} {part} does not divide {whole_name} {whole}")


SIZES = ("hidden", "inter", "num", "image_size", "patch", "vocab", "head", "max")  # fields that begin so are at least 1
LARGEST, MOST_LAYERS = 2**24, 1000  # far beyond any model: a broken file must not fill the memory


def _build(cls, values: dict):
    """Keep the fields that `cls` knows and check their types: a config is a data file, and not to be trusted."""
    known = {item.name: values[item.name] for item in fields(cls) if values.get(item.name) is not None}
    for item in fields(cls):
        if item.name in known:
            _check(item, known[item.name])
    return cls(**known)


def _check(item, value) -> None:
    if item.type in (int, int | None):
        least = 1 if item.name.startswith(SIZES) else -LARGEST
        most = MOST_LAYERS if item.name == "num_hidden_layers" else LARGEST
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise UserError(f"config.json: {item.name} must be a {'positive ' if least == 1 else ''}whole number of at most {most}, not {value!r}")
    elif item.type is float:
        _expect_number(item.name, value)
    elif item.type == int | list[int]:
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int) for number in numbers):
            raise UserError(f"config.json: {item.name} must be a whole number or a list of them, not {value!r}")
