"""Hugging Face's generation_config.json: which ids end an answer. They override config.json's, as in transformers. Its
makers' way to sample is not followed: here what is not asked for is greedy.
"""

from dataclasses import replace
from pathlib import Path

from minillava.config import TextConfig
from minillava.errors import UserError
from minillava.files import read_json


def with_end_tokens(config: TextConfig, folder: Path) -> TextConfig:
    """`config` with the end tokens of the folder's generation_config.json, where that names any."""
    path = folder / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.exists() else None
    if ends is None:
        return config
    ids = ends if isinstance(ends, list) else [ends]
    if not ids or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise UserError(f"{path}: eos_token_id must be a token id or a list of them, not {str(ends)[:80]}.")
    return replace(config, eos_token_id=ends)
