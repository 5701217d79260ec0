"""A LoRA in its own small folder, in PEFT's format, for the LLaVA that it was trained from.

    adapter_config.json           the base, r, alpha, and to which layers the adapter belongs
    adapter_model.safetensors     A and B of each layer, and whole what else was trained (the projector)

`load` takes such a folder like any other: it loads the base and adds the adapter to it.
"""

import hashlib
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minillava.distributed import full_tensor, is_first
from minillava.errors import UserError
from minillava.files import read_json, write_atomically, write_json
from minillava.lora import merge
from minillava.model import Llava
from minillava.weights.download import ADAPTER, ADAPTER_TENSORS
from minillava.weights.folders import find_folder, name_of
from minillava.weights.layouts import LAYOUTS, rename
from minillava.weights.tensor_files import open_tensors, tensor_files

PREFIX = "base_model.model."
# PEFT's settings that do not change what the numbers mean; any other must be absent, off or empty, or as below.
FREE = {
    *("r", "lora_alpha", "lora_dropout", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("auto_mapping", "peft_version", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"),
    *("layers_pattern", "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "loftq_config"),
}
ALLOWED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # the others (pissa, olora, corda, loftq, ...) take a part out of the base, to which B A must not be added whole
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
}


def save_adapter(model: Llava, base: str | Path, r: int, alpha: float, dropout: float, folder: str | Path) -> None:
    """Write what was trained of `model`, which began as the LLaVA in the folder `base` and has LoRA layers, in float32.

    Of several processes all must call this, and the first one writes.
    """
    folder, back = Path(folder), [(ours, theirs) for theirs, ours in LAYOUTS["transformers 5, in memory"]]
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = PREFIX + rename(name, back)
            name += ".weight" if name.endswith(("lora_A", "lora_B")) else ""
            tensor = full_tensor(parameter.detach())
            if is_first():
                tensors[name] = tensor.float().cpu().contiguous()
    if not is_first():
        return
    metadata = {"format": "pt", "base": fingerprint(find_folder(base))}
    write_atomically(folder / ADAPTER_TENSORS, lambda path: save_file(tensors, path, metadata))
    config = dict(
        peft_type="LORA",
        base_model_name_or_path=name_of(base),
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=r".*language_model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj",
        modules_to_save=["multi_modal_projector"] * any("multi_modal_projector" in name for name in tensors),
        inference_mode=True,
    )
    write_json(folder / ADAPTER, config)


def merge_adapter(model: Llava, folder: Path, base: Path) -> None:
    """Add the adapter in `folder` to `model`, which was loaded from `base`, in place.

    UserError if it is for another model, or of a kind that is not known here.
    """
    r, alpha = read_settings(folder)
    parameters = dict(model.named_parameters())
    with open_tensors(folder / ADAPTER_TENSORS) as file:
        check_base(file.metadata() or {}, folder, base)
        tensors = {our_name(name, parameters): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    for name, tensor in tensors.items():
        if not has_place(name, tensor, tensors, parameters):
            raise UserError(f"{folder} is an adapter for another model: its tensor {name} has no place in this one.")
        if name.endswith(".lora_A") and len(tensor) != r:
            raise UserError(f"{folder}: the rank of {name} is {len(tensor)}, but {ADAPTER} says r = {r}.")
    changes = [name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")]
    with torch.no_grad():
        for name in changes:
            parameter = parameters[name + ".weight"]
            A, B = (tensors.pop(f"{name}.lora_{kind}").to(parameter.device) for kind in "AB")
            parameter.copy_(merge(parameter, A, B, alpha / r))
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def has_place(name: str, tensor: Tensor, tensors: dict[str, Tensor], parameters: dict[str, Tensor]) -> bool:
    """Whether a tensor of an adapter fits: it has a parameter's shape, or is A (r, in) or B (out, r) of a weight (out,
    in).
    """
    layer, _, last = name.rpartition(".")
    if not tensor.is_floating_point():
        return False
    if last not in ("lora_A", "lora_B"):
        return name in parameters and parameters[name].shape == tensor.shape
    A, B, weight = tensors.get(f"{layer}.lora_A"), tensors.get(f"{layer}.lora_B"), parameters.get(f"{layer}.weight")
    if A is None or B is None or weight is None or not A.ndim == B.ndim == weight.ndim == 2:
        return False
    return (len(B), A.shape[1]) == weight.shape and len(A) == B.shape[1]


def read_settings(folder: Path) -> tuple[int, float]:
    """r and alpha. UserError for a kind of adapter that would be added in another way."""
    path = folder / ADAPTER
    config = read_json(path)
    for name, value in config.items():
        if name not in FREE and value not in ALLOWED.get(name, (None, False, [], {}, "")):
            what = name if value is True else f"{name} {str(value)[:40]!r}"
            raise UserError(f"{path}: an adapter with {what} is not known here; merge it in its own program.")
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not all(isinstance(value, int | float) and 0 < value < 1e6 for value in (r, alpha)):
        raise UserError(f"{path} must name r and lora_alpha, two numbers above 0.")
    return r, alpha


def our_name(name: str, parameters: dict[str, Tensor]) -> str:
    """A tensor's name here, whichever program and version named it; as it is where it belongs to no parameter."""
    theirs = re.sub(r"\.(default|modules_to_save)(?=\.)", "", name.removeprefix(PREFIX))
    matrix = re.search(r"(\.lora_[AB])\.weight$", theirs)
    parameter = theirs[: matrix.start()] + ".weight" if matrix else theirs
    ours = next((ours for rules in LAYOUTS.values() if (ours := rename(parameter, rules)) in parameters), None)
    if ours is None:
        return name
    return ours.removesuffix(".weight") + matrix[1] if matrix else ours


def check_base(metadata: dict[str, str], folder: Path, base: Path) -> None:
    """UserError where the adapter tells what its base looked like and the base looks otherwise."""
    if metadata.get("base", "") not in ("", fingerprint(base)):
        raise UserError(f"{base} is not the model that the adapter {folder} was trained on: it has changed since.")


def fingerprint(folder: Path) -> str:
    """SHA-256 of the language model's norms in bfloat16: a few numbers of each layer, which differ in every model that
    was trained further.
    """
    norms: dict[str, Tensor] = {}
    for path in set(tensor_files(folder).values()):
        with open_tensors(path) as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                if found := re.search(r"(layers\.\d+\.(input|post_attention)_layernorm|(?<=\.)norm)\.weight$", name):
                    norms[found[0]] = file.get_tensor(name).bfloat16()
    digest = hashlib.sha256()
    for name in sorted(norms):
        digest.update(name.encode() + norms[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
