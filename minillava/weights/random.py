"""Random weights of an official size, `python -m minillava.weights random --like llava-1.5-7b --out DIR`, and what
loading them costs, `python -m minillava.weights measure DIR`, in time and in memory, on the CPU.

The names, shapes, type and shards are those of llava-hf's files; only the numbers are noise. One shard is in memory at
a time.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillava import weights
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.files import write_atomically, write_json
from minillava.generation import generate
from minillava.model import Llava
from minillava.weights.hf_config import CLIP_L_336, read_config, write_config
from minillava.weights.tensor_files import INDEX, tensor_files

SHARD = 5_000_000_000  # bytes at most, as in llava-hf's files
WORDS, SPOKEN = 8, 4  # ids of text that `measure` reads, and how many it decodes
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
    write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
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


# ------------------------------------------------------------ measuring
def measure(path: str | Path) -> list[tuple[str, str]]:
    """(name, value) pairs to print: seconds to build a LLaVA from its mapped files, for a picture through its tower,
    and for text through the rest.

    Picture and text go apart: 576 rows of a picture through 7 billion numbers would take a CPU without bfloat16
    instructions 20 minutes. The memory is the most that this process has had resident, with Python, PyTorch and all
    that it has read of the mapped files.
    """
    folder = weights.find_folder(path)
    began = time.perf_counter()
    model = weights.load_model(folder, device="cpu", dtype="stored")
    built = time.perf_counter() - began
    size = sum(file.stat().st_size for file in set(tensor_files(folder).values()))
    side = model.config.vision_config.image_size
    with torch.inference_mode():
        began = time.perf_counter()
        model.embed_image(torch.zeros(1, 3, side, side), torch.tensor([[side, side]]))
        picture = time.perf_counter() - began
        began = time.perf_counter()
        said = list(generate(model, torch.arange(3, 3 + WORDS)[None], max_new_tokens=SPOKEN, eos_token_id=[]))
        text = time.perf_counter() - began
    peak = peak_memory()
    return [
        ("files", f"{size:,} bytes"),
        ("built in", f"{built:.2f} s"),
        ("a picture", f"{picture:.1f} s through tower and projector"),
        ("text", f"{text:.1f} s for {WORDS} tokens in and {len(said)} out"),
        ("resident", f"{peak:,} bytes at most, {peak / size:.3f} of the files"),
    ]


def peak_memory() -> int:
    """The most bytes that this process has had resident."""
    try:
        import resource
    except ImportError:
        raise UserError("This system does not tell how much memory a process has used.") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
