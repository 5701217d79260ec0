"""config.json, read, checked and written.

    read_config(values)           -> LlavaConfig      write_config(config)         -> values
    read_vision_config(values)    -> VisionConfig     write_vision_config(config)  -> values, a CLIPVisionModel's
    read_text_config(values)      -> TextConfig       write_text_config(config)    -> values, a LLaMA's
    read_any(values)              -> whichever of the three it is

`values` is the object in the file: Hugging Face's (llava-hf, transformers 4 and 5) or the original's
(haotian-liu/LLaVA). A config is a data file from elsewhere and not to be trusted: whatever this project does not
support, or a number out of range, is a UserError that names it.
"""

from dataclasses import asdict, fields, replace

from minillava.config import LlavaConfig, TextConfig, VisionConfig
from minillava.errors import UserError

# What transformers takes where a LLaVA's config has no vision_config at all, and the pinpoints of LLaVA-NeXT where it
# has none.
CLIP_L_336 = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
CLIP_L_336 |= dict(image_size=336, patch_size=14, projection_dim=768)
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
TOWERS = ("clip_vision_model", "clip")

# Far beyond any model: a broken file must not fill the memory.
MAX_VALUE, MAX_LAYERS, MAX_TILES = 2**24, 1000, 64
# whole-number fields so named are at least 1
POSITIVE = ("hidden", "inter", "num", "image_size", "patch", "vocab", "head", "max", "projection")
ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


# ------------------------------------------------------------ reading
def read_config(values: dict, tower: VisionConfig | None = None) -> LlavaConfig:
    """A LLaVA's config, Hugging Face's or the original's.

    `tower` is that of another folder, whose tower the model is to have.
    """
    if is_original(values):
        return _read_original(values, tower)
    _expect(values, "model_type", ("llava", "llava_next"), "model")
    _expect(values, "projector_hidden_act", ("gelu",), "projector activation")
    _expect(values, "vision_feature_select_strategy", ("default", "full"), "vision_feature_select_strategy")
    _expect(values, "projector_type", ("linear", "mlp2x_gelu"), "projector_type")
    vision = _read_tower(_section(values, "vision_config") or CLIP_L_336)
    text = _section(values, "text_config")
    tied = values.get("tie_word_embeddings") or text.get("tie_word_embeddings")  # as transformers: either ties
    text = _read_llama({**text, "tie_word_embeddings": tied})
    parts = {
        "vision_config": vision,
        "text_config": text,
        "image_token_id": values.get("image_token_id", values.get("image_token_index")),
        "image_grid_pinpoints": (),
    }
    if values.get("model_type") == "llava_next":
        strategy = "vision_feature_select_strategy"
        _expect(values, strategy, ("default",), f"LLaVA-NeXT with {strategy}")
        pinpoints = values.get("image_grid_pinpoints", PINPOINTS)
        parts["image_grid_pinpoints"] = _read_pinpoints(pinpoints, vision.image_size)
    return _build(LlavaConfig, {**values, **parts})


def read_vision_config(values: dict) -> VisionConfig:
    """The vision tower's config: a CLIP tower's own, a whole CLIP's, or a LLaVA's."""
    if _is_llava(values):
        return read_config(values).vision_config
    return _read_tower(_section(values, "vision_config") or values)


def read_text_config(values: dict) -> TextConfig:
    """The language model's config: a plain LLaMA's, or a LLaVA's."""
    if is_original(values):
        return _read_llama({**values, "model_type": "llama"})
    return read_config(values).text_config if _is_llava(values) else _read_llama(values)


def read_any(values: dict) -> LlavaConfig | TextConfig | VisionConfig:
    """The config of whatever model this is."""
    if _is_llava(values):
        return read_config(values)
    return read_vision_config(values) if values.get("model_type") in TOWERS else read_text_config(values)


def _is_llava(values: dict) -> bool:
    return values.get("model_type") in ("llava", "llava_next") or is_original(values)


def is_original(values: dict) -> bool:
    return "text_config" not in values and ("mm_projector_type" in values or "mm_vision_tower" in values)


def _read_original(values: dict, tower: VisionConfig | None) -> LlavaConfig:
    """haotian-liu/LLaVA's config.json: a LLaMA's, with `mm_` keys for the rest; of the tower it gives the name alone."""
    _expect(values, "model_type", ("llava", "llava_llama"), "model")
    _expect(values, "mm_projector_type", ("linear", "mlp2x_gelu"), "mm_projector_type")
    _expect(values, "mm_use_im_start_end", (False,), "LLaVA v0, with mm_use_im_start_end")
    _expect(values, "mm_vision_select_feature", ("patch", "cls_patch"), "mm_vision_select_feature")
    vision = _original_tower(last_part(values.get("mm_vision_tower")), tower)
    text, has_cls = read_text_config(values), values.get("mm_vision_select_feature") == "cls_patch"
    parts = {
        "vision_config": vision,
        "text_config": text,
        "image_token_id": text.vocab_size,  # the first id without an embedding: the original marks pictures by -200
        "vision_feature_layer": values.get("mm_vision_select_layer"),
        "vision_feature_select_strategy": "full" if has_cls else "default",
        "projector_type": values.get("mm_projector_type", "linear"),
    }
    if values.get("image_aspect_ratio") == "anyres":  # LLaVA-NeXT
        _expect(values, "mm_patch_merge_type", ("spatial_unpad",), "mm_patch_merge_type")
        _expect(values, "mm_vision_select_feature", ("patch",), "LLaVA-NeXT with mm_vision_select_feature")
        pinpoints = _read_pinpoints(values.get("image_grid_pinpoints"), vision.image_size)
        # the original says (width, height)
        parts["image_grid_pinpoints"] = tuple((height, width) for width, height in pinpoints)
    return _build(LlavaConfig, parts)


def last_part(name) -> str:
    """The part of a tower's name or path, in the original's config.json, that says which tower it is."""
    return str(name).rstrip("/.").rsplit("/", 1)[-1]


def _original_tower(name: str, given: VisionConfig | None) -> VisionConfig:
    """The config of the tower by its name, or of one that is not known by name, that of the folder given for it."""
    known = {"clip-vit-large-patch14-336": CLIP_L_336, "clip-vit-large-patch14": {**CLIP_L_336, "image_size": 224}}
    if name not in known:
        if given is None:
            said = f"vision tower {name!r} is not supported by its name alone"
            raise UserError(f"config.json: {said}: give its folder with --vision")
        return given
    tower = _read_tower(known[name])
    if given and replace(given, projection_dim=tower.projection_dim) != tower:
        raise UserError(f"The folder of the vision tower is not that of {name}, which config.json names.")
    return tower


def _read_tower(values: dict) -> VisionConfig:
    _expect(values, "model_type", TOWERS, "vision tower")
    _expect(values, "hidden_act", ("quick_gelu", "gelu"), "vision activation")
    return _build(VisionConfig, values)


def _read_llama(values: dict) -> TextConfig:
    _expect(values, "model_type", ("llama",), "language model")
    _expect(values, "hidden_act", ("silu",), "language model activation")
    for bias in ("attention_bias", "mlp_bias"):
        _expect(values, bias, (False,), f"language model with {bias}")
    theta, scaling = _read_rope(values)
    return _build(TextConfig, {**values, "rope_theta": theta, "rope_scaling": scaling})


def _read_rope(values: dict) -> tuple[float | None, dict | None]:
    """RoPE's theta and scaling, as transformers 5 takes them: rope_scaling, transformers 4's, before rope_parameters."""
    older, newer = _section(values, "rope_scaling"), _section(values, "rope_parameters")
    rope = dict(older or newer)
    theta = rope.pop("rope_theta", values.get("rope_theta"))
    if older and newer.get("rope_theta") not in (None, theta or TextConfig.rope_theta):
        raise UserError("config.json: rope_scaling and rope_parameters mean different rope_theta: leave out one")
    longest = values.get("max_position_embeddings") or TextConfig.max_position_embeddings
    rope = {"rope_type": rope.get("type"), "original_max_position_embeddings": longest, **rope}
    _expect(rope, "rope_type", tuple(ROPE_NUMBERS), "RoPE scaling")
    _expect({**values, **rope}, "partial_rotary_factor", (1,), "language model with partial_rotary_factor")
    kind = rope.pop("rope_type") or "default"
    for key in ROPE_NUMBERS[kind]:
        _expect_number(f"RoPE scaling's {key}", rope.get(key))
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise UserError("config.json: RoPE scaling's high_freq_factor must be above low_freq_factor")
    rope = {"rope_type": kind, **{key: rope[key] for key in ROPE_NUMBERS[kind]}}
    return theta, None if kind == "default" else rope


def _read_pinpoints(pairs, image_size: int) -> tuple[tuple[int, int], ...]:
    """Pairs of edges in pixels, each a whole number of tiles, and not too many."""

    def fits(pair) -> bool:
        if not isinstance(pair, list | tuple) or [type(edge) for edge in pair] != [int, int]:
            return False
        whole = all(edge >= image_size and edge % image_size == 0 for edge in pair)
        return whole and pair[0] * pair[1] <= MAX_TILES * image_size**2

    if not isinstance(pairs, list) or not pairs or not all(map(fits, pairs)):
        known = f"a list of (height, width), each a few times {image_size}"
        raise UserError(f"config.json: image_grid_pinpoints must be {known}, not {str(pairs)[:80]}")
    return tuple(map(tuple, pairs))


# ------------------------------------------------------------ checking
def _build(cls, values: dict):
    """The fields that `cls` has, each checked; what is absent or null takes the default."""
    known = {item.name: values[item.name] for item in fields(cls) if values.get(item.name) is not None}
    for item in fields(cls):
        if item.name in known:
            _check(item, known[item.name])
    return cls(**known)


def _check(item, value) -> None:
    if item.type in (int, int | None):
        least = 1 if item.name.startswith(POSITIVE) else -MAX_VALUE
        most = MAX_LAYERS if item.name == "num_hidden_layers" else MAX_VALUE
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            kind = f"a {'positive ' * (least == 1)}whole number of at most {most}"
            raise UserError(f"config.json: {item.name} must be {kind}, not {value!r}")
    elif item.type is float:
        _expect_number(item.name, value)
    elif item.type is bool and not isinstance(value, bool):
        raise UserError(f"config.json: {item.name} must be true or false, not {value!r}")
    elif item.type == int | list[int]:
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int) for number in numbers):
            raise UserError(f"config.json: {item.name} must be a whole number or a list of them, not {value!r}")


def _expect(values: dict, key: str, allowed: tuple, what: str) -> None:
    value = values.get(key)
    if value is not None and value not in allowed:
        known = " and ".join(map(repr, allowed))
        raise UserError(f"config.json: {what} {value!r} is not supported; this project knows {known}")


def _expect_number(name: str, value) -> None:
    # beyond, an int does not fit
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        raise UserError(f"config.json: {name} must be a positive number, not {value!r}")


def _section(values: dict, key: str) -> dict:
    """A part of a config, empty where there is none."""
    section = values.get(key) or {}
    if not isinstance(section, dict):
        raise UserError(f"config.json: {key} must be an object, not {section!r}")
    return section


# ------------------------------------------------------------ writing
def write_config(config: LlavaConfig) -> dict:
    """llava-hf's config.json, of LlavaForConditionalGeneration or LlavaNextForConditionalGeneration."""
    anyres = bool(config.image_grid_pinpoints)
    return {
        "architectures": ["LlavaNextForConditionalGeneration" if anyres else "LlavaForConditionalGeneration"],
        "model_type": "llava_next" if anyres else "llava",
        **({"image_grid_pinpoints": [list(pair) for pair in config.image_grid_pinpoints]} if anyres else {}),
        "vision_config": _tower_values(config.vision_config),
        "text_config": _llama_values(config.text_config),
        "image_token_index": config.image_token_id,
        "image_seq_length": config.num_image_tokens,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "projector_type": config.projector_type,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": config.text_config.tie_word_embeddings,
    }


def write_original_config(config: LlavaConfig, tower: str, pad: bool) -> dict:
    """haotian-liu/LLaVA's config.json; `tower` is the path or name of the CLIP, `pad` says that pictures are padded to
    squares.
    """
    text = config.text_config
    old = {key: value for key, value in (text.rope_scaling or {}).items() if key != "rope_type"}
    values = {
        "architectures": ["LlavaLlamaForCausalLM"],
        **_llama_values(text),
        "model_type": "llava",
        "rope_scaling": {"type": text.rope_scaling["rope_type"], **old} if text.rope_scaling else None,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": config.projector_type,
        "mm_vision_tower": tower,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "cls_patch" if config.vision_feature_select_strategy == "full" else "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad" if pad else "square",
    }
    del values["rope_parameters"]  # transformers 5's, which the original does not know
    if config.image_grid_pinpoints:
        pinpoints = [[width, height] for height, width in config.image_grid_pinpoints]
        values |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        values["image_grid_pinpoints"] = pinpoints
    return values


def write_vision_config(config: VisionConfig) -> dict:
    return {"architectures": ["CLIPVisionModel"], **_tower_values(config)}


def write_text_config(config: TextConfig) -> dict:
    return {"architectures": ["LlamaForCausalLM"], **_llama_values(config)}


def _tower_values(config: VisionConfig) -> dict:
    return {"model_type": "clip_vision_model", **asdict(config)}


def _llama_values(config: TextConfig) -> dict:
    rope = {"rope_theta": config.rope_theta, "rope_type": "default", **(config.rope_scaling or {})}
    return {"model_type": "llama", "hidden_act": "silu", "rope_parameters": rope, **asdict(config)}
