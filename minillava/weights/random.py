"""Random weights of an official size, to measure with: `python -m minillava.weights random --like llava-1.5-7b --out
DIR`.

The names, shapes, type and shards are those of llava-hf's files; only the numbers are noise. One shard is in memory at
a time."""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillava import weights
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.files import write_atomically, write_json
from minillava.model import Llava
from minillava.weights.hf_config import CLIP_L_336, read_config, write_config

SHARD = 5_000_000_000  # bytes at most, as in llava-hf's files
VICUNA = dict(max_position_embeddings=4096, rms_norm_eps=1e-5, vocab_size=32064)
LARGER = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
SIZES = {
    "llava-1.5-7b": {"model_type": "llava", "vision_config": CLIP_L_336, "text_config": VICUNA},
    "llava-1.5-13b": {"model_type": "llava", "vision_config": CLIP_L_336, "text_config": {**VICUNA, **LARGER}},
    "llava-v1.6-vicuna-7b": {"model_type": "llava_next", "vision_config": CLIP_L_336, "text_config": VICUNA},
}


def write_random(like: str, out: str | Path, seed: int = 0) -> None:
    """Write the folder `out`, in bfloat16, without a tokenizer: `load_model` reads it."""
    if Path(out).exists():
        raise UserError(f"{out} exists already: give a new folder with --out.")
    write_folder(read_config(SIZES[like]), Path(out), seed)


def write_folder(config: LlavaConfig, out: Path, seed: int, largest: int = SHARD) -> None:
    """A LLaVA of this config in shards of at most `largest` bytes, with their index; config.json last."""
    with torch.device("meta"):
        tensors = Llava(config).state_dict()
    back = [(ours, theirs) for theirs, ours in weights.LAYOUTS["llava-hf"]]
    groups = shards({weights.rename(name, back): tensor for name, tensor in tensors.items()}, largest)
    generator, places = torch.Generator().manual_seed(seed), {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_atomically(out / name, partial(_write_shard, group, generator))
        places |= dict.fromkeys(group, name)
    size = 2 * sum(tensor.numel() for tensor in tensors.values())
    write_json(out / weights.INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    write_json(out / "config.json", write_config(config))


def _write_shard(group: dict[str, Tensor], generator: torch.Generator, path: Path) -> None:
    save_file({name: noise(name, tensor, generator) for name, tensor in group.items()}, path, {"format": "pt"})


def shards(tensors: dict[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """The tensors in their order, in as few groups as hold at most `largest` bytes of bfloat16 each."""
    groups, room = [], 0
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        if size > room:
            groups.append({})
            room = largest
        groups[-1][name] = tensor
        room -= size
    return groups


def noise(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Small numbers around 0, around 1 for the weights of norms, so that the activations stay finite."""
    mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
    return torch.empty(like.shape, dtype=torch.bfloat16).normal_(mean, 0.02, generator=generator)
