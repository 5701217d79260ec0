"""Checkpoints: what a training needs to go on exactly where it stopped, whole or absent.

    checkpoint.safetensors      the newest; checkpoint.1.safetensors is the one before it
    checkpoint, checkpoint.1    the same of several processes: folders with a file of each (shards.py)
    parameter.NAME     a trained parameter         state.KEY.NAME     what its optimizer remembers of it
    metadata: "step", how many are done; "settings", what makes the run the run it is; "sha256", of all the rest

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

from minillava.distributed import agree, is_first, sharded_like, world_size
from minillava.errors import UserError, say
from minillava.files import write_atomically
from minillava.training.shards import names_in, read_metadata, read_shards, write_shards

FILE = "checkpoint.safetensors"
Parameters = dict[str, Tensor]


def places(folder: Path, age: int) -> list[Path]:
    """Where the newest checkpoint (0) or the one before it (1) may be: its file, or its folder of several processes."""
    path = Path(folder) / (FILE if age == 0 else "checkpoint.1.safetensors")
    return [path, path.with_suffix("")]


def holds_run(folder: Path) -> bool:
    """Whether a training or a model lies in the folder."""
    checkpoints = (path for age in (0, 1) for path in places(folder, age))
    return any(path.exists() for path in (*checkpoints, folder / "metrics.jsonl", folder / "model.safetensors"))


# ------------------------------------------------------------ saving
def save_checkpoint(folder: Path, parameters: Parameters, optimizers: list, step: int, settings: dict) -> None:
    """Write the trained parameters and the state that each optimizer has for them; a parameter not yet updated has none.

    UserError where the disk is too full, before and while it is written; the old ones are whole then. Several processes
    must all call this.
    """
    tensors = {f"parameter.{name}": p.detach() for name, p in parameters.items()}
    for name, p in parameters.items():
        for optimizer in optimizers:
            tensors |= {f"state.{key}.{name}": value for key, value in optimizer.state.get(p, {}).items()}
    metadata = {"step": str(step), "settings": json.dumps(settings)}
    needed = sum(tensor.nbytes for tensor in tensors.values())
    advice = "make room, and the same command with --resume goes on from the checkpoint before"

    def check_room() -> None:
        free = shutil.disk_usage(folder).free
        if needed > free:
            sizes = f"needs {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB left"
            raise UserError(f"the checkpoint of step {step} {sizes}: {advice}")

    agree(check_room)
    try:
        (write_file if world_size() == 1 else write_folder)(Path(folder), tensors, metadata)
    except (OSError, SafetensorError) as error:
        why = " ".join(str(error).split())[:60]
        raise UserError(f"the checkpoint of step {step} could not be written to {folder} ({why}): {advice}") from None


def write_file(folder: Path, tensors: Parameters, metadata: dict[str, str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def save_and_make_way(path: Path) -> None:
        save_file(tensors, path, {**metadata, "sha256": checksum(tensors, metadata)})
        make_way(folder)  # `newest_whole` does without the first for a moment

    write_atomically(places(folder, 0)[0], save_and_make_way)


def write_folder(folder: Path, tensors: Parameters, metadata: dict[str, str]) -> None:
    """Each process writes its rows, into a folder that gets its name when all of them are there."""
    new, final = folder / "checkpoint.new", places(folder, 0)[1]

    def begin() -> None:
        if is_first():
            remove(new)
            new.mkdir()

    def end() -> None:
        if is_first():
            make_way(folder)
            os.replace(new, final)

    agree(begin)
    write_shards(new, tensors, metadata)
    agree(end)


def make_way(folder: Path) -> None:
    """Let the newest checkpoint become the one before it."""
    newest = [path for path in places(folder, 0) if path.exists()]
    for old in places(folder, 1) if newest else ():
        remove(old)
    for path in newest:
        os.replace(path, places(folder, 1)[places(folder, 0).index(path)])


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checksum(tensors: Parameters, metadata: dict[str, str]) -> str:
    """SHA-256 of the metadata, and of all names, types and numbers."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ------------------------------------------------------------ going on
def load_checkpoint(
    folder: Path, parameters: Parameters, optimizers: list, settings: dict, defaults: dict | None = None
) -> int:
    """Give every parameter and its optimizer state back; the number of steps done. UserError for a run with other
    settings.

    A setting that the file does not have is younger than the file, which was made as `defaults` say; "start" is only
    kept, since "frozen" tells what it holds. One process or
    several may have written it, and any number may read it.
    """
    path, metadata, tensors = newest_whole(folder)
    stored = {**(defaults or {}), **json.loads(metadata["settings"])}
    different = [name for name, value in settings.items() if stored.get(name) != value and name != "start"]
    if different == ["frozen"]:
        raise UserError(f"{folder} holds a run that was started from other weights: give it the same ones")
    if different:
        words = "; ".join(f"{name} {stored.get(name)!r}, not {settings[name]!r}" for name in different[:3])
        raise UserError(f"{folder} holds a run with {words}: resume it as it was begun, or choose another --out")
    if path.is_dir():
        tensors = from_shards(path, parameters)
    missing = [name for name in parameters if f"parameter.{name}" not in tensors]
    if missing:
        raise UserError(f"{path} is of another model: it lacks the parameter {missing[0]}; choose another --out")
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(sharded_like(tensors[f"parameter.{name}"], p))
    for name, tensor in tensors.items():
        kind, key, of = split_name(name)
        if kind == "state":
            p = parameters[of]
            # AdamW's step count stays on the CPU
            owner[p].state[p][key] = tensor if tensor.ndim == 0 else sharded_like(tensor, p)
    return int(metadata["step"])


def from_shards(path: Path, parameters: Parameters) -> Parameters:
    """The checkpoint's tensors, of which each process reads the rows that it holds of the parameter."""
    tensors = {}
    for name, shape in names_in(path).items():
        p = parameters.get(split_name(name)[2])
        if p is not None:
            tensors[name] = torch.zeros_like(p, requires_grad=False) if len(shape) else torch.zeros(())
    read_shards(path, tensors)
    return tensors


def split_name(name: str) -> tuple[str, str, str]:
    """("parameter", "", the parameter's name), or ("state", what its optimizer calls it, the parameter's name)."""
    kind, _, rest = name.partition(".")
    key, _, of = rest.partition(".") if kind == "state" else ("", "", rest)
    return kind, key, of


def newest_whole(folder: Path) -> tuple[Path, dict[str, str], Parameters]:
    """(path, metadata, tensors) of the newest checkpoint that can be read, saying so if it is not the newest; UserError
    if there is none.

    The tensors of a folder are not read yet.
    """
    present = [path for age in (0, 1) for path in places(folder, age) if path.exists()]
    if not present:
        raise UserError(f"there is nothing to go on from in {folder}: it has no {FILE}")
    damaged = None
    for path in present:
        try:
            metadata, tensors = read_checkpoint(path)
        except UserError as error:
            damaged = damaged or error
            continue
        if damaged and is_first():
            say(f"note: {present[0]} is damaged; going on from the one before it, of step {metadata['step']}.")
        return path, metadata, tensors
    raise damaged


def read_checkpoint(path: Path) -> tuple[dict[str, str], Parameters]:
    """(metadata, tensors) of one file, or (metadata, {}) of a folder. UserError if it cannot be read, or is not what
    was written.
    """
    try:
        if path.is_dir():
            return read_metadata(path), {}
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        if metadata.pop("sha256", None) != checksum(tensors, metadata):
            raise ValueError("its checksum is another one")
        return metadata, tensors
    except Exception as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({why}); remove it and start again") from None
