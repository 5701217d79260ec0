"""Hugging Face's generation_config.json: which ids end an answer, and how the model's makers sample.

The end tokens count, and override config.json's, as in transformers. The sampling defaults are shown (`python -m
minillava.weights show FOLDER`) and not used: here what is not asked for is greedy."""

from dataclasses import replace
from pathlib import Path

from minillava.config import TextConfig
from minillava.errors import UserError
from minillava.files import read_json

FILE = "generation_config.json"
SAMPLING = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_length",
    "max_new_tokens",
    "num_beams",
)


def read_generation_config(folder: Path) -> dict:
    """The file's object, its end tokens checked; empty where there is no such file."""
    path = Path(folder) / FILE
    values = read_json(path) if path.is_file() else {}
    ends = values.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if ends == [] or not all(
        isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0 for token_id in ids
    ):
        raise UserError(f"{path}: eos_token_id must be a token id or a list of them, not {ends!r}.")
    return values


def with_end_tokens(config: TextConfig, folder: Path) -> TextConfig:
    """`config` with the end tokens of the folder's generation_config.json, where that names any."""
    ends = read_generation_config(folder).get("eos_token_id")
    return config if ends is None else replace(config, eos_token_id=ends)


def sampling_defaults(folder: Path) -> dict:
    """How the model's makers sample, as far as the file says."""
    return {
        name: value for name, value in read_generation_config(folder).items() if name in SAMPLING and value is not None
    }
