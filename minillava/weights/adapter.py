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

from minillava import weights
from minillava.distributed import is_first, whole
from minillava.errors import UserError
from minillava.files import read_json, write_atomically, write_json
from minillava.lora import merge
from minillava.model import Llava

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings of PEFT that would change what the numbers mean, and the values that they have here.
PLAIN = dict(
    bias="none",
    use_rslora=False,
    use_dora=False,
    fan_in_fan_out=False,
    rank_pattern={},
    alpha_pattern={},
    layers_to_transform=None,
    lora_bias=False,
)


def save_adapter(model: Llava, base: str | Path, r: int, alpha: float, dropout: float, folder: str | Path) -> None:
    """Write what was trained of `model`, which began as the LLaVA in the folder `base` and has LoRA layers, in float32.

    Of several processes all must call this, and the first one writes.
    """
    folder, back = Path(folder), [(ours, theirs) for theirs, ours in weights.LAYOUTS["transformers 5, in memory"]]
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = PREFIX + weights.rename(name, back)
            name += ".weight" if name.endswith(("lora_A", "lora_B")) else ""
            tensor = whole(parameter.detach())
            if is_first():
                tensors[name] = tensor.float().cpu().contiguous()
    if not is_first():
        return
    metadata = {"format": "pt", "base": fingerprint(weights.find_folder(base))}
    write_atomically(folder / FILE, lambda path: save_file(tensors, path, metadata))
    projector = ["multi_modal_projector"] * any("multi_modal_projector" in name for name in tensors)
    config = dict(
        peft_type="LORA", base_model_name_or_path=str(base), r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none"
    )
    layers = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"
    write_json(
        folder / weights.ADAPTER,
        {**config, "target_modules": layers, "modules_to_save": projector, "inference_mode": True},
    )


def merge_adapter(model: Llava, folder: Path, base: Path) -> None:
    """Add the adapter in `folder` to `model`, which was loaded from `base`, in place.

    UserError if it is for another model, or of a kind that is not known here.
    """
    scale = read_scale(folder)
    parameters = dict(model.named_parameters())
    with weights._open(folder / FILE) as file:
        check_base(file.metadata() or {}, folder, base)
        tensors = {our_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    changes = {name.removesuffix(".lora_A") for name in tensors if name.endswith(".lora_A")}
    for name, tensor in tensors.items():
        if not has_place(name, tensor, tensors, parameters):
            raise UserError(f"{folder} is an adapter for another model: its tensor {name} has no place in this one.")
    with torch.no_grad():
        for name in changes:
            parameter = parameters[name + ".weight"]
            A, B = (tensors.pop(f"{name}.lora_{kind}").to(parameter.device) for kind in "AB")
            parameter.copy_(merge(parameter, A, B, scale))
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def has_place(name: str, tensor: Tensor, tensors: dict[str, Tensor], parameters: dict[str, Tensor]) -> bool:
    """Whether a tensor of an adapter fits: it has a parameter's shape, or is A (r, in) or B (out, r) of a weight (out,
    in).
    """
    layer, _, last = name.rpartition(".")
    if last not in ("lora_A", "lora_B"):
        return name in parameters and parameters[name].shape == tensor.shape
    A, B, weight = tensors.get(f"{layer}.lora_A"), tensors.get(f"{layer}.lora_B"), parameters.get(f"{layer}.weight")
    if A is None or B is None or weight is None or not A.ndim == B.ndim == weight.ndim == 2:
        return False
    return (len(B), A.shape[1]) == weight.shape and len(A) == B.shape[1]


def read_scale(folder: Path) -> float:
    """alpha / r. UserError for a kind of adapter that would be added in another way."""
    config, path = read_json(folder / weights.ADAPTER), folder / weights.ADAPTER
    if (folder / "non_lora_trainables.bin").exists():
        raise UserError(
            f"{folder} keeps its projector in non_lora_trainables.bin, a pickle, which is never read here: merge it in its own program."
        )
    strange = [name for name, plain in PLAIN.items() if config.get(name, plain) not in (plain, None)]
    if config.get("peft_type", "LORA") != "LORA" or strange:
        raise UserError(
            f"{path}: an adapter with {strange[0] if strange else config['peft_type']} is not known here; merge it in its own program."
        )
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not all(isinstance(value, int | float) and 0 < value < 1e6 for value in (r, alpha)):
        raise UserError(f"{path} must name r and lora_alpha, two numbers above 0.")
    return alpha / r


def our_name(name: str) -> str:
    """A tensor's name here; as it is where no layout has one, which then has no place in the model."""
    theirs = re.sub(r"(\.lora_[AB])(\.default)?\.weight$", r"\1", name.removeprefix(PREFIX))
    for layout in ("transformers 5, in memory", "llava-hf", "original"):
        if renamed := weights.rename(theirs, weights.LAYOUTS[layout]):
            return renamed
    return name


def check_base(metadata: dict[str, str], folder: Path, base: Path) -> None:
    """UserError where the adapter tells what its base looked like and the base looks otherwise."""
    if metadata.get("base", "") not in ("", fingerprint(base)):
        raise UserError(
            f"{base} is not the model that the adapter {folder} was trained on: its language model has changed since."
        )


def fingerprint(folder: Path) -> str:
    """SHA-256 of the language model's norms in bfloat16: a few numbers of each layer, which differ in every model that
    was trained further.
    """
    norms: dict[str, Tensor] = {}
    for path in set(weights.tensor_files(folder).values()):
        with weights._open(path) as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                if found := re.search(r"(layers\.\d+\.(input|post_attention)_layernorm|(?<=\.)norm)\.weight$", name):
                    norms[found[0]] = file.get_tensor(name).bfloat16()
    digest = hashlib.sha256()
    for name in sorted(norms):
        digest.update(name.encode() + norms[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
