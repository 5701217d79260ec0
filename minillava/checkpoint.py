"""Checkpoints: what a training needs to go on exactly where it stopped, in one safetensors file, whole or absent.

    parameter.NAME     a trained parameter         state.KEY.NAME     what its optimizer remembers of it
    metadata: "step", how many are done, and "settings", the settings that make the run the run it is
"""

import json
from pathlib import Path

import torch
from safetensors.torch import safe_open, save_file
from torch import Tensor

from minillava.errors import UserError
from minillava.files import write_atomically

FILE = "checkpoint.safetensors"


def save_checkpoint(folder: Path, parameters: dict[str, Tensor], optimizers: list, step: int, settings: dict) -> None:
    """Write the trained parameters and the state that each optimizer has for them; a parameter not yet updated has none."""
    tensors = {f"parameter.{name}": p.detach() for name, p in parameters.items()}
    for name, p in parameters.items():
        for optimizer in optimizers:
            tensors |= {f"state.{key}.{name}": value for key, value in optimizer.state.get(p, {}).items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"step": str(step), "settings": json.dumps(settings)}
    write_atomically(folder / FILE, lambda path: save_file(tensors, path, metadata))


def load_checkpoint(folder: Path, parameters: dict[str, Tensor], optimizers: list, settings: dict) -> int:
    """Give every parameter and its optimizer state back; the number of steps done. UserError for a run with other settings."""
    metadata, tensors = read_checkpoint(folder)
    stored = json.loads(metadata["settings"])
    different = [f"{name} {stored.get(name)!r}, not {value!r}" for name, value in settings.items() if stored.get(name) != value]
    if different:
        raise UserError(f"{folder} holds a run with {'; '.join(different[:3])}: resume it as it was begun, or choose another --out")
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"parameter.{name}"])
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "state":
            key, _, name = rest.partition(".")
            p = parameters[name]
            owner[p].state[p][key] = tensor if tensor.ndim == 0 else tensor.to(p.device)  # AdamW's step count stays on the CPU
    return int(metadata["step"])


def read_checkpoint(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors). UserError if there is none or it cannot be read."""
    path = Path(folder) / FILE
    if not path.exists():
        raise UserError(f"there is nothing to go on from in {folder}: it has no {FILE}")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); remove it and start again") from None
