"""From a name to a folder of weights: the same rules wherever a name is read, be it typed, in a program or in a file.

"weights/tiny", "~/llava"      a folder, seen from the working folder or from the repository
"llava-hf/llava-1.5-7b-hf"     a model of the Hub: downloaded into weights/ before, or in the Hub's cache, or fetched
                               now (with HF_HUB_OFFLINE=1 never)
"""

import os
import re
from pathlib import Path

from minillava.distributed import world_size
from minillava.errors import UserError
from minillava.files import given_path, inside, read_file, read_json
from minillava.weights.download import (
    ADAPTER,
    ADAPTER_TENSORS,
    NAME,
    ROOT,
    check_no_pickle,
    download,
    downloaded_name,
    home_of,
)
from minillava.weights.tensor_files import INDEX, SINGLE, check_link


def find_folder(name: str | Path) -> Path:
    """The absolute path of the folder that a name of weights means; nothing is loaded. UserError if there is none."""
    if found := find_here(name):
        return found
    if os.path.exists(name):
        raise UserError(f"{name} is a file; give the folder with config.json and model.safetensors that it lies in.")
    if not NAME.fullmatch(str(name)):
        raise UserError(f"There is no weights folder {name}.")
    if world_size() > 1:
        raise UserError(f"{name} is not here: first run `python -m minillava.weights download {name}`, in one process.")
    return download(str(name))


def find_here(name: str | Path) -> Path | None:
    """The same for what is on this machine already; None where it is not."""
    path = given_path(name) if isinstance(name, str) else name
    for folder in (Path(path), ROOT / path):
        if os.path.isdir(folder):
            return _snapshot(folder.absolute())
    return _find_model(str(name)) if NAME.fullmatch(str(name)) else None


def _find_model(name: str) -> Path | None:
    """A model of the Hub in weights/, or in the Hub's own cache (HF_HUB_CACHE, HF_HOME) if that has its tensors."""
    folder = home_of(name)
    if downloaded_name(folder) == name:
        return folder
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    snapshot = _snapshot(folder) if folder.is_dir() else folder
    return snapshot if any((snapshot / file).exists() for file in (SINGLE, INDEX, ADAPTER_TENSORS)) else None


def _snapshot(folder: Path) -> Path:
    """In the Hub's cache, `models--owner--name`, the files are in `snapshots/REVISION`."""
    if (folder / "config.json").exists() or not (folder / "snapshots").is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        return inside(folder / "snapshots", read_file(main).decode(errors="replace").strip())
    revisions = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if len(revisions) != 1:
        raise UserError(f"{folder} holds {len(revisions)} revisions: give the folder of one, in its snapshots.")
    return revisions[0]


def name_of(folder: str | Path) -> str:
    """The name by which `find_folder` finds this folder from everywhere, if it can on another machine, too."""
    folder = Path(folder)
    cached = re.fullmatch(r"models--(.+)--(.+)/snapshots/.*", "/".join(folder.parts[-3:]))
    if cached and find_here("/".join(cached.groups())) == folder:
        return "/".join(cached.groups())
    return downloaded_name(folder) or str(folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder)


def base_folder(folder: Path) -> Path:
    """The folder of the model that the adapter (LoRA) in `folder` is for; `folder` itself if it holds a whole model."""
    if not is_adapter(folder):
        return folder
    check_no_pickle(folder, os.listdir(folder))
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / ADAPTER} does not name the model that it is for, as base_model_name_or_path.")
    return find_folder(base)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; UserError where it holds a whole model, too, since one of them is left over."""
    if not (folder / ADAPTER).exists():
        return False
    if any((folder / name).exists() for name in (SINGLE, INDEX)):
        raise UserError(f"{folder} holds an adapter (LoRA) and a whole model: move one of them to another folder.")
    return True


def read_config_json(folder: Path) -> dict:
    """The object in the folder's config.json, which names a kind of model."""
    path = folder / "config.json"
    if is_adapter(folder):
        raise UserError(f"{folder} holds only an adapter (LoRA): give the folder of a whole model.")
    check_link(path)
    if not path.exists():
        raise UserError(f"{folder} is not a weights folder: it has no config.json.")
    values = read_json(path)
    if not isinstance(values.get("model_type"), str):
        raise UserError(f"{path} is not a model's: it names no model_type.")
    return values
