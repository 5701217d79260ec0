"""The names that tensors have in the files of each program, as pairs of prefixes: the file's and ours.

The parameters here have the last parts of Hugging Face's names, so that a few pairs are a whole layout; read from right
to left they are the export.
"""

import re
from collections.abc import Iterable

Rules = tuple[tuple[str, str], ...]  # (prefix in the file, prefix here); the first that fits is taken


def _tower(prefix: str) -> Rules:
    names = (
        ("encoder.layers.", "layers."),
        *((name, name) for name in ("embeddings.", "pre_layrnorm.", "post_layernorm.")),
    )
    return tuple((prefix + theirs, "vision_tower." + ours) for theirs, ours in names)


LAYOUTS: dict[str, Rules] = {
    "llava-hf": (  # the Hub's, and what is saved here
        ("language_model.lm_head.", "language_model.lm_head."),
        ("language_model.model.", "language_model."),
        ("multi_modal_projector.", "projector."),
        *_tower("vision_tower.vision_model."),
        ("image_newline", "image_newline"),  # LLaVA-NeXT's
    ),
    "transformers 5": (
        ("language_model.lm_head.", "language_model.lm_head."),
        ("language_model.model.", "language_model."),
        ("multi_modal_projector.", "projector."),
        *_tower("vision_tower."),
        ("image_newline", "image_newline"),  # LLaVA-NeXT's
    ),
    "transformers 4.52": (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model."),
        ("model.multi_modal_projector.", "projector."),
        *_tower("model.vision_tower.vision_model."),
        ("model.image_newline", "image_newline"),
    ),
    "transformers 5, in memory": (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model."),
        ("model.multi_modal_projector.", "projector."),
        *_tower("model.vision_tower."),
        ("model.image_newline", "image_newline"),
    ),
    "original": (  # haotian-liu/LLaVA's
        ("lm_head.", "language_model.lm_head."),
        ("model.mm_projector.0.", "projector.linear_1."),
        ("model.mm_projector.2.", "projector.linear_2."),
        ("model.mm_projector.", "projector.linear_1."),
        *_tower("model.vision_tower.vision_tower.vision_model."),
        ("model.image_newline", "image_newline"),
        ("model.", "language_model."),
    ),
    "llama": (("lm_head.", "language_model.lm_head."), ("model.", "language_model.")),
    "clip": _tower("vision_model."),
    "clip, transformers 5": _tower(""),
}

# Constants that old files hold, and the half of CLIP that reads text.
IGNORED = re.compile(
    r"\b(position_ids|rotary_emb\.inv_freq)$|^(text_model|text_projection|visual_projection|logit_scale)\b"
)


def rename(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """The tensor's other name, or None where no rule fits."""
    for old, new in rules:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def find_layout(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The layout that gives the most of `wanted`, and of those the one that knows the most names; None if no layout
    gives any.
    """
    names, wanted = list(names), set(wanted)
    renamed = {layout: [rename(name, rules) for name in names] for layout, rules in LAYOUTS.items()}
    score = {
        layout: (sum(name in wanted for name in ours), sum(name is not None for name in ours))
        for layout, ours in renamed.items()
    }
    best = max(score, key=score.get)
    return best if score[best][0] else None
