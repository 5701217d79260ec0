"""Checkpoints: what a training needs to go on exactly where it stopped, in one safetensors file, whole or absent.

    checkpoint.safetensors      the newest; before it checkpoint.1.safetensors, checkpoint.2.safetensors, ...
    parameter.NAME     a trained parameter         state.KEY.NAME     what its optimizer remembers of it
    metadata: "step", how many are done; "settings", the settings that make the run the run it is; "sha256", of all tensors

A file that was torn or changed on the disk is noticed by its checksum, and the one before it is used.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file
from torch import Tensor

from minillava.errors import UserError, say
from minillava.files import write_atomically

FILE = "checkpoint.safetensors"
MOST_KEPT = 100


def numbered(folder: Path, age: int) -> Path:
    """The file of the newest checkpoint (0), of the one before it (1), ..."""
    return Path(folder) / (FILE if age == 0 else f"checkpoint.{age}.safetensors")


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all names, types and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(folder: Path, parameters: dict[str, Tensor], optimizers: list, step: int, settings: dict, keep: int = 2) -> None:
    """Write the trained parameters and the state that each optimizer has for them; a parameter not yet updated has none.

    The last `keep` checkpoints stay. UserError where the disk is too full, before and while it is written; the old ones are whole then.
    """
    tensors = {f"parameter.{name}": p.detach() for name, p in parameters.items()}
    for name, p in parameters.items():
        for optimizer in optimizers:
            tensors |= {f"state.{key}.{name}": value for key, value in optimizer.state.get(p, {}).items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"step": str(step), "settings": json.dumps(settings), "sha256": checksum(tensors)}
    needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(folder).free
    advice = "make room, and the same command with --resume goes on from the checkpoint before"
    if needed > free:
        raise UserError(f"the checkpoint of step {step} needs {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB left: {advice}")
    try:
        write_atomically(numbered(folder, 0), lambda path: rotate_and_save(folder, tensors, path, metadata, keep))
    except (OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint of step {step} could not be written to {folder} ({' '.join(str(error).split())[:60]}): {advice}") from None


def rotate_and_save(folder: Path, tensors: dict[str, Tensor], path: Path, metadata: dict, keep: int) -> None:
    """Write the new file under its temporary name, then give each old one the next number. `newest_whole` does without the first for a moment."""
    save_file(tensors, path, metadata)
    for age in range(keep - 1, 0, -1):
        if numbered(folder, age - 1).exists():
            os.replace(numbered(folder, age - 1), numbered(folder, age))


def load_checkpoint(folder: Path, parameters: dict[str, Tensor], optimizers: list, settings: dict, defaults: dict | None = None) -> int:
    """Give every parameter and its optimizer state back; the number of steps done. UserError for a run with other settings.

    A setting that the file does not have is younger than the file, which was made as `defaults` say.
    """
    metadata, tensors = newest_whole(folder)
    stored = {**(defaults or {}), **json.loads(metadata["settings"])}
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


def newest_whole(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of the newest checkpoint that can be read, saying so if it is not the newest; UserError if there is none."""
    present = [path for path in (numbered(folder, age) for age in range(MOST_KEPT)) if path.exists()]
    if not present:
        raise UserError(f"there is nothing to go on from in {folder}: it has no {FILE}")
    damaged = None
    for path in present:
        try:
            metadata, tensors = read_checkpoint(path)
        except UserError as error:
            damaged = damaged or error
            continue
        if damaged:
            say(f"note: {present[0]} is damaged; going on from the one before it, of step {metadata['step']}.")
        return metadata, tensors
    raise damaged


def read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of one file. UserError if it cannot be read, or is not what was written."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        if metadata.get("sha256", "") not in ("", checksum(tensors)):  # older files have none
            raise ValueError("its checksum is another one")
        return metadata, tensors
    except Exception as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); remove it and start again") from None
