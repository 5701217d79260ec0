"""Weights: from a folder of safetensors to a model and back, whatever names the file gives its tensors.

    load("weights/tiny")                -> model, processor        save(model, processor, folder)
    load_language_model("vicuna-7b")    -> LanguageModel           save_language_model(model, tokenizer, folder)
    load_vision_tower("clip-vit-l-336") -> VisionTransformer       save_vision_tower(model, folder)

layouts.py knows the names. Loading is strict: a tensor that is unknown, missing or of the wrong shape is an error that
names it. The model is built on the meta device, where it takes no memory, the file is mapped, and its tensors become
the parameters. Nothing is ever unpickled, since a pickle can run any program."""

import importlib.util
import math
import os
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minillava.attention import implementations
from minillava.config import LlavaConfig
from minillava.distributed import is_first
from minillava.errors import UserError, say
from minillava.files import check_not_git_lfs, given_path, inside, read_file, read_json, write_atomically, write_json
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import LanguageModel
from minillava.lora import merged_state
from minillava.model import Llava
from minillava.vision import VisionTransformer
from minillava.weights.generation_config import with_end_tokens
from minillava.weights.hf_config import (
    read_config,
    read_text_config,
    read_vision_config,
    write_config,
    write_text_config,
    write_vision_config,
)
from minillava.weights.layouts import IGNORED, LAYOUTS, find_layout, rename

SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILE_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SMALL = 1_000_000_000  # bytes: on a CPU, weights up to this size are computed with in float32


# ------------------------------------------------------------ loading
def load(
    path: str | Path = "weights/tiny",
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    template: str | None = None,
    vision: str | Path | None = None,
) -> tuple[Llava, Processor]:
    """A LLaVA and its processor from a weights folder in any known layout; UserError in one sentence for whatever is
    wrong with it.

    The folder of an adapter (LoRA) gives the LLaVA that it is for, with the adapter added. device: auto (CUDA where
    there is one), cpu, cuda, cuda:1, mps. dtype: float32, bfloat16, float16 or auto, which is the file's, but float32
    for small files on a CPU; stored is the file's always; mapped leaves every tensor in the file, in its own type,
    until it is read. attention: auto, eager, sdpa, triton. template: how turns are written (plain, v0, v1, llava_v1,
    llava_hf, llama_2, chatml); None is the folder's own. vision: the folder of the CLIP whose tower is taken, for the
    original LLaVA-1.5, whose files hold none."""
    folder = base_folder(find_folder(path))
    processor = Processor.from_folder(folder, _read_config(folder, vision), template)
    model = load_model(path, device, dtype, attention, vision)
    _check_vocabulary(processor, model.config, folder)
    return model, processor


def load_model(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    vision: str | Path | None = None,
) -> Llava:
    """The LLaVA without its processor, from a folder that needs no tokenizer.json; options and errors as `load`."""
    given = find_folder(path)
    folder = base_folder(given)
    config = _read_config(folder, vision)
    config = replace(config, text_config=with_end_tokens(config.text_config, folder))
    model = _load(partial(Llava, config), "", folder, device, dtype, attention, vision)
    if given != folder:
        from minillava.weights.adapter import merge_adapter  # here, because that file needs this one

        merge_adapter(model, given, folder)
    return model


def _read_config(folder: Path, vision: str | Path | None) -> LlavaConfig:
    tower = read_vision_config(_config_values(find_folder(vision))) if vision else None
    return read_config(_config_values(folder), tower)


def load_language_model(
    path: str | Path, device: str = "auto", dtype: str = "auto", attention: str = "auto"
) -> LanguageModel:
    """A plain LLaMA (Vicuna, TinyLlama, SmolLM2), or the language model of a LLaVA or LLaVA-NeXT; options and errors as
    `load`.
    """
    folder = find_folder(path)
    config = with_end_tokens(read_text_config(_config_values(folder)), folder)
    return _load(partial(LanguageModel, config), "language_model.", folder, device, dtype, attention)


def load_vision_tower(
    path: str | Path,
    feature_layer: int = -2,
    keep_cls: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
) -> VisionTransformer:
    """CLIP's vision tower, from a whole CLIP, a tower saved alone, or a LLaVA.

    It gives the features of `feature_layer`, counted as in `VisionTransformer`, with CLS if `keep_cls`. Other options
    and errors as `load`."""
    folder = find_folder(path)
    config = read_vision_config(_config_values(folder))
    return _load(
        partial(VisionTransformer, config, feature_layer, keep_cls), "vision_tower.", folder, device, dtype, attention
    )


def find_folder(path: str | Path) -> Path:
    """The weights folder `path`, relative to the working folder or to the repository's root; UserError if there is
    none.
    """
    path = given_path(path) if isinstance(path, str) else path
    for folder in (Path(path), ROOT / path):
        if folder.is_dir():
            return _snapshot(folder)
    if Path(path).exists():
        raise UserError(f"{path} is a file; give the folder with config.json and model.safetensors that it lies in.")
    hub = (
        f"; to get it from the Hub: python -m minillava.weights download {path}"
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))
        else ""
    )
    raise UserError(f"There is no weights folder {path}{hub}.")


def _snapshot(folder: Path) -> Path:
    """In the Hub's cache, `models--owner--name`, the files are in `snapshots/REVISION`."""
    if (folder / "config.json").exists() or not (folder / "snapshots").is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        return inside(folder / "snapshots", read_file(main).decode(errors="replace").strip())
    revisions = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if len(revisions) != 1:
        raise UserError(
            f"{folder} holds {len(revisions)} revisions: give the folder of one, in {folder / 'snapshots'}."
        )
    return revisions[0]


def _config_values(folder: Path) -> dict:
    """The object in the folder's config.json."""
    path = folder / "config.json"
    _check_not_adapter(folder)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to a file that is missing: download it again.")
    if not path.is_file():
        raise UserError(f"{folder} is not a weights folder: it has no config.json.")
    values = read_json(path)
    if not isinstance(values.get("model_type"), str):
        raise UserError(f"{path} is not a model's: it names no model_type.")
    return values


def _load(build, prefix: str, folder: Path, device: str, dtype: str, attention: str, vision: str | Path | None = None):
    """Build on the meta device, then take the file's tensors as parameters.

    `prefix` is the module's name in a LLaVA.
    """
    target = find_device(device)
    with torch.device("meta"):
        module = build(attention=find_attention(attention, target))
    wanted = {prefix + name: parameter for name, parameter in module.state_dict().items()}
    sources = find_sources(folder, wanted, vision)
    torch_dtype = _find_dtype(dtype, target, sources, folder)
    tensors = {}
    for path, names in sources.items():
        with _open(path, target) as file:
            _check_shapes(file, {name: wanted[ours] for name, ours in names.items()}, path)
            tensors |= {
                ours.removeprefix(prefix): file.get_tensor(name).to(dtype=torch_dtype) for name, ours in names.items()
            }
    module.load_state_dict(tensors, assign=True)
    return module.eval()


def find_sources(
    folder: Path, wanted: dict[str, Tensor], vision: str | Path | None = None
) -> dict[Path, dict[str, str]]:
    """{file: {name in the file: name here}} for just the wanted tensors; the tower's are in the folder `vision` where
    one is given.
    """
    files = tensor_files(folder)
    if vision is None:
        return _by_file(files, _match(files, wanted, folder))
    tower = {name: tensor for name, tensor in wanted.items() if name.startswith("vision_tower.")}
    if find_layout(files, tower):
        raise UserError(f"{folder} has a vision tower of its own: leave out --vision.")
    rest = {name: tensor for name, tensor in wanted.items() if name not in tower}
    return find_sources(folder, rest) | find_sources(find_folder(vision), tower)


def find_device(device: str) -> torch.device:
    """The device by its name; UserError if this machine does not have it."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"There is no device {str(device)!r}; give auto, cpu, cuda, cuda:1 or mps.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[found.type]
    if (found.index or 0) >= count:
        raise UserError(
            f"The device {device} was asked for, but this machine has {count} devices of that kind that PyTorch can use."
        )
    return found


def find_attention(attention: str, device: torch.device) -> str:
    """The attention by its name; "auto" is our kernels on an NVIDIA GPU and PyTorch's elsewhere.

    UserError for one that cannot run here.
    """
    has_triton = importlib.util.find_spec("triton") is not None
    if attention == "auto":
        return "triton" if has_triton and device.type == "cuda" else "sdpa"
    if attention not in implementations():
        raise UserError(f"There is no attention {attention!r}; there are auto, {', '.join(implementations())}.")
    if attention == "triton" and not has_triton:
        raise UserError(
            "The attention triton needs the package triton, which comes with PyTorch for CUDA: install it, or choose sdpa."
        )
    if attention == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            f"The attention triton runs on CUDA, not on {device}: choose sdpa, or set TRITON_INTERPRET=1 to watch it run slowly."
        )
    return attention


def _find_dtype(
    dtype: str, device: torch.device, names: dict[Path, dict[str, str]], folder: Path
) -> torch.dtype | None:
    """The one type of all parameters. "auto": the file's; of several the one with most numbers, which is said; small
    files float32 on a CPU.

    None for "mapped": each tensor keeps its own, and so stays in the file until it is read.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "mapped":
        return None
    if name in ("auto", "stored"):
        held = _dtypes(names)
        small = name == "auto" and sum(path.stat().st_size for path in names) < SMALL
        name = "float32" if small and device.type == "cpu" else max(held, key=held.get)
        if len(held) > 1:
            say(
                f"note: {folder} holds {' and '.join(sorted(held))} tensors; the model is {name} (dtype chooses another)."
            )
    if name not in DTYPES:
        raise UserError(f"There is no dtype {name!r}; give auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _dtypes(names: dict[Path, dict[str, str]]) -> dict[str, int]:
    """How many numbers of each type the named tensors of these files hold; float64 counts as float32."""
    held = defaultdict(int)
    for path, tensors in names.items():
        with _open(path) as file:
            for part in map(file.get_slice, tensors):
                held[FILE_DTYPES.get(part.get_dtype(), "float32")] += math.prod(part.get_shape())
    return held


# ------------------------------------------------------------ files
def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).exists() and not any((folder / name).exists() for name in (SINGLE, INDEX))


def base_folder(folder: Path) -> Path:
    """The folder of the model that the adapter (LoRA) in `folder` is for; `folder` itself where it holds a whole model."""
    if not _is_adapter(folder):
        return folder
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER} does not name the model that the adapter is for, as base_model_name_or_path."
        )
    return find_folder(base)


def _check_not_adapter(folder: Path) -> None:
    """A LoRA is no model without the one that it was made for; `load` and `load_model` alone put the two together."""
    if _is_adapter(folder):
        raise UserError(
            f"{folder} holds only an adapter (LoRA): give the folder of a whole model, such as the one that the adapter is for."
        )


def tensor_files(folder: Path) -> dict[str, Path]:
    """Where each tensor is: {name: file}, from model.safetensors or from the index of a model in several files."""
    single, index = folder / SINGLE, folder / INDEX
    for path in (single, index):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to a file that is missing: download it again.")
    if single.exists():
        return dict.fromkeys(_names(single), single)
    if index.exists():
        return _read_index(index)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds {pickles[0]}, which is a pickle and could run any program; convert it to model.safetensors first."
        )
    raise UserError(f"{folder} holds no weights: it has neither model.safetensors nor model.safetensors.index.json.")


def _read_index(index: Path) -> dict[str, Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{index} must hold a weight_map from each tensor to its file.")
    paths = {file: inside(index.parent, file) for file in sorted(set(places.values()))}
    held = {}
    for file, path in paths.items():
        if not path.is_file():
            raise UserError(f"{index} names {file}, which is missing.")
        held[file] = set(_names(path))
    lost = [name for name, file in places.items() if name not in held[file]]
    if lost:
        raise UserError(f"{index} says that {lost[0]} is in {places[lost[0]]}, but it is not{_and_more(lost)}.")
    return {name: paths[file] for name, file in places.items()}


def _names(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.keys())


def _open(path: Path, device: torch.device | str = "cpu"):
    """Map a safetensors file. Only its header is read."""
    try:
        return safe_open(path, framework="pt", device=str(device))
    except Exception as error:  # the library has no one exception for the ways in which a file can be broken
        _check_pointer(path)
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole safetensors file: {reason}.") from None


def _check_pointer(path: Path) -> None:
    with suppress(OSError), open(path, "rb") as file:
        check_not_git_lfs(file.read(100), path)


def _by_file(files: dict[str, Path], sources: dict[str, str]) -> dict[Path, dict[str, str]]:
    groups = defaultdict(dict)
    for name, ours in sources.items():
        groups[files[name]][name] = ours
    return dict(groups)


# ------------------------------------------------------------ strictness
def _match(files: dict[str, Path], wanted: dict[str, Tensor], folder: Path) -> dict[str, str]:
    """{name in the file: name here} for just the wanted tensors; UserError for a tensor too many or too few."""
    names = [name for name in files if not IGNORED.search(name)]
    layout = find_layout(names, wanted)
    if layout is None:
        raise UserError(
            f"{folder} holds no tensor of this model under a name that is known here{f', only such as {names[0]}' if names else ''}."
        )
    ours = {name: rename(name, LAYOUTS[layout]) for name in names}
    missing = [name for name in wanted if name not in ours.values()]
    if missing and missing == [name for name in wanted if name.startswith("vision_tower.")]:
        raise UserError(
            f"{folder} holds no vision tower: name the folder of its CLIP (openai/clip-vit-large-patch14-336) with --vision."
        )
    if missing:
        back = [(new, old) for old, new in LAYOUTS[layout]]
        raise UserError(f"{folder} lacks the tensor {rename(missing[0], back) or missing[0]}{_and_more(missing)}.")
    unknown = [name for name in names if ours[name] not in wanted and not _not_needed(ours[name], wanted)]
    if unknown:
        raise UserError(
            f"{folder} holds the tensor {unknown[0]}, which this model has no place for{_and_more(unknown)}."
        )
    return {name: ours[name] for name in names if ours[name] in wanted}


def _not_needed(name: str | None, wanted: dict[str, Tensor]) -> bool:
    """Is this a known tensor of a part of LLaVA that was not asked for, or the copy of a tied head?"""
    if name is None:
        return False
    part = name.split(".")[0] + "."
    return not any(other.startswith(part) for other in wanted) or name == "language_model.lm_head.weight"


def _check_shapes(file, wanted: dict[str, Tensor], path: Path) -> None:
    """Shapes and types from the header, before a byte of the tensors is read."""
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in wanted}
    wrong = [name for name, tensor in wanted.items() if shapes[name] != tuple(tensor.shape)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: the tensor {name} is {shapes[name]}, but config.json makes it {tuple(wanted[name].shape)}{_and_more(wrong)}."
        )
    kinds = {name: file.get_slice(name).get_dtype() for name in wanted}
    strange = [name for name, kind in kinds.items() if kind not in ("F32", "F16", "BF16", "F64")]
    if strange:
        raise UserError(
            f"{path}: the tensor {strange[0]} is of type {kinds[strange[0]]}, not F32, BF16 or F16{_and_more(strange)}."
        )


def _and_more(names: list) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_vocabulary(processor: Processor, config: LlavaConfig, folder: Path) -> None:
    """Every id that text can give must have an embedding; `<image>` and `<pad>` need none, since neither is ever looked
    up.
    """
    rows, tokenizer = config.text_config.vocab_size, processor.tokenizer
    beyond = set(range(rows, tokenizer.vocab_size)) - {tokenizer.image_id, tokenizer.pad_id}
    if beyond:
        raise UserError(
            f"{folder}: the tokenizer has ids up to {max(beyond)}, but the model has only {rows} embeddings: they do not match."
        )


# ------------------------------------------------------------ saving
def save(model: Llava, processor: Processor, folder: str | Path, dtype: str = "auto") -> None:
    """Write a weights folder in llava-hf's layout, which `load` and transformers read. dtype "auto" keeps the model's.

    Of several processes (distributed.py) all must call this, and the first one writes.
    """
    if is_first():
        processor.save(folder)
    _save(model, "", "llava-hf", write_config(model.config), Path(folder), dtype)


def save_language_model(model: LanguageModel, tokenizer: Tokenizer, folder: str | Path, dtype: str = "auto") -> None:
    """Write a plain LLaMA."""
    tokenizer.save(Path(folder) / "tokenizer.json")
    _save(model, "language_model.", "llama", write_text_config(model.config), Path(folder), dtype)


def save_vision_tower(model: VisionTransformer, folder: str | Path, dtype: str = "auto") -> None:
    """Write a tower as transformers' CLIPVisionModel."""
    size = model.config.image_size
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    write_json(Path(folder) / "preprocessor_config.json", pictures)
    _save(model, "vision_tower.", "clip", write_vision_config(model.config), Path(folder), dtype)


def _save(
    module: nn.Module, prefix: str, layout: str, config: dict, folder: Path, dtype: str, parts: tuple[str, ...] = ("",)
) -> None:
    """config.json is written last, so that a new folder whose writing was interrupted is not taken for a model.

    Only the parameters whose names begin with one of `parts` are written. A LoRA is added to its weights. Rows that
    several processes hold are gathered, one tensor after the other."""
    torch_dtype = None if dtype == "auto" else DTYPES[dtype]
    back = [(new, old) for old, new in LAYOUTS[layout]]
    held = ((name, tensor) for name, tensor in merged_state(module) if name.startswith(parts))
    tensors = {
        rename(prefix + name, back): tensor.detach().to("cpu", torch_dtype).contiguous()
        for name, tensor in held
        if is_first()
    }
    if not is_first():
        return
    write_atomically(folder / "model.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))
    write_json(folder / "config.json", config)
