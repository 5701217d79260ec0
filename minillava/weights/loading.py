"""From a weights folder to a model.

The model is built on the meta device, where it takes no memory, the file is mapped, and its tensors become the
parameters.
"""

import importlib.util
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from minillava.attention import implementations
from minillava.config import LlavaConfig, TextConfig
from minillava.errors import UserError, say
from minillava.inputs.processor import Processor
from minillava.language_model import LanguageModel
from minillava.model import Llava
from minillava.vision import VisionTransformer
from minillava.weights.adapter import merge_adapter
from minillava.weights.folders import base_folder, find_folder, find_here, read_config_json
from minillava.weights.generation_config import with_end_tokens
from minillava.weights.hf_config import is_original, last_part, read_config, read_text_config, read_vision_config
from minillava.weights.processor_files import load_processor
from minillava.weights.tensor_files import check_shapes, count_numbers, find_sources, open_tensors, tensor_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 1_000_000_000  # bytes: on a CPU, weights up to this size are computed with in float32
MULTIPLE = 64  # rows of embeddings come in this many, which the hardware multiplies faster


# ------------------------------------------------------------ models
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

    path: a folder, or ORG/NAME of the Hub (folders.py). The folder of an adapter (LoRA) gives the LLaVA that it is for,
    with the adapter added. device: auto (CUDA where there is one), cpu, cuda, cuda:1, mps. dtype: float32, bfloat16,
    float16 or auto, which is the file's, but float32 for small files on a CPU; stored is the file's always; mapped
    leaves every tensor in the file, in its own type, until it is read. attention: auto, eager, sdpa, triton. template:
    how turns are written (plain, v0, v1, llava_v1, llava_hf, llama_2, chatml); None is the folder's own. vision: the
    folder of the CLIP whose tower is taken, for the original LLaVA-1.5, whose files hold none.
    """
    path = find_folder(path)
    folder = base_folder(path)
    processor = load_processor(folder, llava_config(folder, vision)[0], template)
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
    path = find_folder(path)
    folder = base_folder(path)
    config, tower = llava_config(folder, vision)
    model = _load(partial(Llava, config), "", folder, device, dtype, attention, tower)
    if path != folder:
        merge_adapter(model, path, folder)
    return model


def load_language_model(
    path: str | Path, *, device: str = "auto", dtype: str = "auto", attention: str = "auto"
) -> LanguageModel:
    """A plain LLaMA (Vicuna, TinyLlama, SmolLM2), or the language model of a LLaVA or LLaVA-NeXT; options and errors as
    `load`.
    """
    folder = find_folder(path)
    config = as_in_files(read_text_config(read_config_json(folder)), folder)
    return _load(partial(LanguageModel, config), "language_model.", folder, device, dtype, attention)


def load_vision_tower(
    path: str | Path,
    *,
    feature_layer: int = -2,
    keep_cls: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
) -> VisionTransformer:
    """CLIP's vision tower, from a whole CLIP, a tower saved alone, or a LLaVA.

    It gives the features of `feature_layer`, counted as in `VisionTransformer`, with CLS if `keep_cls`. Other options
    and errors as `load`.
    """
    folder = find_folder(path)
    folder = _tower_folder(folder, read_config_json(folder)) or folder
    config = read_vision_config(read_config_json(folder))
    build = partial(VisionTransformer, config, feature_layer, keep_cls)
    return _load(build, "vision_tower.", folder, device, dtype, attention)


def _load(build, prefix: str, folder: Path, device: str, dtype: str, attention: str, tower: Path | None = None):
    """Build on the meta device, then take the file's tensors as parameters.

    `prefix` is the module's name in a LLaVA.
    """
    target = find_device(device)
    with torch.device("meta"):
        module = build(attention=find_attention(attention, target))
    wanted = {prefix + name: parameter for name, parameter in module.state_dict().items()}
    sources = find_sources(folder, wanted, tower)
    torch_dtype = _find_dtype(dtype, target, sources, folder)
    tensors = {}
    for path, names in sources.items():
        with open_tensors(path, target) as file:
            check_shapes(file, {name: wanted[ours] for name, ours in names.items()}, path)
            for name, ours in names.items():
                tensors[ours.removeprefix(prefix)] = file.get_tensor(name).to(dtype=torch_dtype)
    module.load_state_dict(tensors, assign=True)
    return module.eval()


def extend_vocabulary(language_model: LanguageModel, vocab_size: int) -> LanguageModel:
    """The same language model with rows for `vocab_size` ids or a few more, as LLaVA needs them for `<image>` and
    `<pad>` (32,000 rows become 32,064); each new row is the mean of the old ones.

    A row for `<image>` is never read here, but transformers looks it up before it puts the picture in its place.
    """
    if vocab_size <= language_model.config.vocab_size:
        return language_model
    rows = -(-vocab_size // MULTIPLE) * MULTIPLE
    for module in filter(None, (language_model.embed_tokens, language_model.lm_head)):
        old = module.weight.data
        module.weight = nn.Parameter(torch.cat([old, old.mean(0, keepdim=True).expand(rows - len(old), -1)]))
    language_model.config = replace(language_model.config, vocab_size=rows)
    return language_model


# ------------------------------------------------------------ configs
def llava_config(folder: Path, vision: str | Path | None = None) -> tuple[LlavaConfig, Path | None]:
    """A LLaVA's config, and the folder that its vision tower is in, where that is another folder."""
    values = read_config_json(folder)
    tower = _tower_folder(folder, values, vision)
    config = read_config(values, read_vision_config(read_config_json(tower)) if tower else None)
    return replace(config, text_config=as_in_files(config.text_config, folder)), tower


def _tower_folder(folder: Path, values: dict, vision: str | Path | None = None) -> Path | None:
    """That of the CLIP `vision`, or the one that the original LLaVA's config.json names, if it is on this machine."""
    tower = find_folder(vision) if vision else None
    if not tower and is_original(values) and isinstance(values.get("mm_vision_tower"), str):
        name = values["mm_vision_tower"]
        beside = folder / last_part(name)  # where `export` writes it, even if the folder was moved
        places = (beside if beside != folder else None, find_here(name))
        tower = next((place for place in places if place and os.path.isfile(place / "config.json")), None)
    if tower and any("vision_tower" in tensor for tensor in tensor_files(folder)):
        if vision:
            raise UserError(f"{folder} has a vision tower of its own: leave out --vision.")
        return None
    return tower


def as_in_files(config: TextConfig, folder: Path) -> TextConfig:
    """With the end tokens of generation_config.json. As in transformers, a head in the files that differs from the
    embeddings counts, although config.json says that the embeddings are the head.
    """
    config = with_end_tokens(config, folder)
    if not config.tie_word_embeddings:
        return config
    tensors = []
    for name, path in tensor_files(folder).items():
        if name.endswith(("lm_head.weight", "embed_tokens.weight")):
            with open_tensors(path) as file:
                tensors.append(file.get_tensor(name))
    same = len(tensors) < 2 or torch.equal(tensors[0].float(), tensors[1].float())
    return replace(config, tie_word_embeddings=same)


def _check_vocabulary(processor: Processor, config: LlavaConfig, folder: Path) -> None:
    """Every id that text can give must have an embedding; `<image>` and `<pad>` need none, since neither is ever looked
    up.
    """
    rows, tokenizer = config.text_config.vocab_size, processor.tokenizer
    largest = max(tokenizer.ids - {tokenizer.image_id, tokenizer.pad_id})
    if largest >= rows:
        words = f"the tokenizer has ids up to {largest}, but the model has only {rows} embeddings"
        raise UserError(f"{folder}: {words}: they do not match.")


# ------------------------------------------------------------ options
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
        held = f"this machine has {count} devices of that kind that PyTorch can use"
        raise UserError(f"The device {device} was asked for, but {held}.")
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
        package = "the package triton, which comes with PyTorch for CUDA"
        raise UserError(f"The attention triton needs {package}: install it, or choose sdpa.")
    if attention == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        remedy = "choose sdpa, or set TRITON_INTERPRET=1 to watch it run slowly"
        raise UserError(f"The attention triton runs on CUDA, not on {device}: {remedy}.")
    return attention


def has_bfloat16(device: torch.device) -> bool:
    """Whether the machine has instructions for bfloat16; cards before the A100 emulate them slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _find_dtype(dtype: str, device: torch.device, sources: dict, folder: Path) -> torch.dtype | None:
    """The one type of all parameters. "auto": the file's; of several the one with most numbers, which is said; small
    files float32 on a CPU; float16 for bfloat16 on a card without it.

    None for "mapped": each tensor keeps its own, and so stays in the file until it is read.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "mapped":
        return None
    if name in ("auto", "stored"):
        held = count_numbers(sources)
        small = name == "auto" and sum(path.stat().st_size for path in sources) < SMALL
        name = "float32" if small and device.type == "cpu" else max(held, key=held.get)
        if name == "bfloat16" and dtype == "auto" and device.type == "cuda" and not has_bfloat16(device):
            name = "float16"
        if len(held) > 1:
            kinds = " and ".join(sorted(held))
            say(f"note: {folder} holds {kinds} tensors; the model is {name} (dtype chooses another).")
    if name not in DTYPES:
        raise UserError(f"There is no dtype {name!r}; give auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
