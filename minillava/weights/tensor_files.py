"""The safetensors files of a weights folder: which there are, what they hold, and what a model takes from them.

Of a file only the header is read here. It is strict: a tensor that is unknown, missing, there twice or of the wrong
shape is an error that names it. Nothing is ever unpickled, since a pickle can run any program.
"""

import math
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minillava.errors import UserError
from minillava.files import check_not_git_lfs, inside, kind_of, read_json
from minillava.weights.layouts import IGNORED, LAYOUTS, find_layout, rename

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_DTYPES = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F64": "float32",
}  # the types that are read, and as what


# ------------------------------------------------------------ files
def tensor_files(folder: Path) -> dict[str, Path]:
    """Where each tensor is: {name: file}, from model.safetensors or from the index of a model in several files."""
    single, index = folder / SINGLE, folder / INDEX
    for path in (single, index):
        check_link(path)
    if single.exists():
        return dict.fromkeys(tensor_names(single), single)
    if index.exists():
        return _read_index(index)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        what = f"{pickles[0]}, which is a pickle and could run any program"
        raise UserError(f"{folder} holds {what}; convert it to {SINGLE} first.")
    raise UserError(f"{folder} holds no weights: it has neither {SINGLE} nor {INDEX}.")


def check_link(path: Path) -> None:
    """UserError for a link whose file is gone, as in a cache that was cleaned."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to a file that is missing: download it again.")


def _read_index(index: Path) -> dict[str, Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index} must hold a weight_map from each tensor to its file.")
    paths = {file: inside(index.parent, file) for file in sorted(set(places.values()))}
    held = {}
    for file, path in paths.items():
        if not path.exists():
            raise UserError(f"{index} names {file}, which is missing.")
        held[file] = set(tensor_names(path))
    lost = [name for name, file in places.items() if name not in held[file]]
    if lost:
        raise UserError(f"{index} says that {lost[0]} is in {places[lost[0]]}, but it is not{_and_more(lost)}.")
    return {name: paths[file] for name, file in places.items()}


def tensor_names(path: Path) -> list[str]:
    with open_tensors(path) as file:
        return list(file.keys())


def open_tensors(path: Path, device: torch.device | str = "cpu"):
    """Map a safetensors file: safe_open, or a UserError."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {kind_of(path)}, not a file.")
    try:
        return safe_open(path, framework="pt", device=str(device))
    except Exception as error:  # the library has no one exception for the ways in which a file can be broken
        with suppress(OSError), open(path, "rb") as file:
            check_not_git_lfs(file.read(100), path)
        raise UserError(f"{path} is not a whole safetensors file: {' '.join(str(error).split())}.") from None


# ------------------------------------------------------------ what a model takes
def find_sources(folder: Path, wanted: dict[str, Tensor], tower: Path | None = None) -> dict[Path, dict[str, str]]:
    """{file: {name in the file: name here}} for just the wanted tensors; the vision tower's are in the folder `tower`
    where one is given.
    """
    if tower is not None:
        in_tower = {name: tensor for name, tensor in wanted.items() if name.startswith("vision_tower.")}
        rest = {name: tensor for name, tensor in wanted.items() if name not in in_tower}
        return find_sources(folder, rest) | find_sources(tower, in_tower)
    files, groups = tensor_files(folder), defaultdict(dict)
    for name, ours in _match(files, wanted, folder).items():
        groups[files[name]][name] = ours
    return dict(groups)


def _match(files: dict[str, Path], wanted: dict[str, Tensor], folder: Path) -> dict[str, str]:
    """{name in the file: name here} for just the wanted tensors; UserError for a tensor too many or too few."""
    names = [name for name in files if not IGNORED.search(name)]
    layout = find_layout(names, wanted)
    if layout is None:
        known = f", only such as {names[0]}" if names else ""
        raise UserError(f"{folder} holds no tensor of this model under a name that is known here{known}.")
    ours = {name: rename(name, LAYOUTS[layout]) for name in names}
    _check_missing(folder, wanted, set(ours.values()), layout)
    parts = {name.split(".")[0] for name in wanted}
    unknown = [name for name in names if ours[name] not in wanted and not _not_needed(ours[name], parts)]
    if unknown:
        more = _and_more(unknown)
        raise UserError(f"{folder} holds the tensor {unknown[0]}, which this model has no place for{more}.")
    taken = {name: ours[name] for name in names if ours[name] in wanted}
    if len(taken) > len(wanted):
        twice = Counter(taken.values()).most_common(1)[0][0]
        raise UserError(f"{folder} holds the tensor {twice} twice, under two names.")
    return taken


def _check_missing(folder: Path, wanted: dict[str, Tensor], held: set[str | None], layout: str) -> None:
    missing = [name for name in wanted if name not in held]
    if missing and missing == [name for name in wanted if name.startswith("vision_tower.")]:
        clip = "openai/clip-vit-large-patch14-336"
        raise UserError(f"{folder} holds no vision tower: name the folder of its CLIP ({clip}) with --vision.")
    if missing:
        name = rename(missing[0], [(ours, theirs) for theirs, ours in LAYOUTS[layout]]) or missing[0]
        raise UserError(f"{folder} lacks the tensor {name}{_and_more(missing)}.")


def _not_needed(name: str | None, parts: set[str]) -> bool:
    """Is this a known tensor of a part of LLaVA that was not asked for, or the copy of a tied head?"""
    return name is not None and (name.split(".")[0] not in parts or name == "language_model.lm_head.weight")


def check_shapes(file, wanted: dict[str, Tensor], path: Path) -> None:
    """Shapes and types from the header, before a byte of the tensors is read."""
    slices = {name: file.get_slice(name) for name in wanted}
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    wrong = [name for name, tensor in wanted.items() if shapes[name] != tuple(tensor.shape)]
    if wrong:
        shape, more = tuple(wanted[wrong[0]].shape), _and_more(wrong)
        raise UserError(f"{path}: the tensor {wrong[0]} is {shapes[wrong[0]]}, but config.json makes it {shape}{more}.")
    strange = [name for name, part in slices.items() if part.get_dtype() not in FILE_DTYPES]
    if strange:
        kind, more = slices[strange[0]].get_dtype(), _and_more(strange)
        raise UserError(f"{path}: the tensor {strange[0]} is of type {kind}, not F32, BF16 or F16{more}.")


def count_numbers(sources: dict[Path, dict[str, str]]) -> dict[str, int]:
    """How many numbers of each type the named tensors of these files hold; float64 counts as float32."""
    held = defaultdict(int)
    for path, tensors in sources.items():
        with open_tensors(path) as file:
            for part in map(file.get_slice, tensors):
                held[FILE_DTYPES.get(part.get_dtype(), "float32")] += math.prod(part.get_shape())
    return held


def _and_more(names: list) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
