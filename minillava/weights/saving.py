"""From a model to a weights folder, in the layouts that `load` and other programs read.

Of several processes (distributed.py) all must call these functions, and the first one writes.
"""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from minillava.distributed import is_first
from minillava.files import write_atomically, write_json
from minillava.inputs.processor import Processor
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import LanguageModel
from minillava.lora import merged_state
from minillava.model import Llava
from minillava.vision import VisionTransformer
from minillava.weights.hf_config import write_config, write_text_config, write_vision_config
from minillava.weights.layouts import LAYOUTS, rename
from minillava.weights.loading import DTYPES
from minillava.weights.processor_files import save_processor
from minillava.weights.tensor_files import SINGLE


def save(model: Llava, processor: Processor, folder: str | Path, dtype: str = "auto") -> None:
    """Write a weights folder in llava-hf's layout, which `load` and transformers read. dtype "auto" keeps the model's."""
    if is_first():
        save_processor(processor, folder)
    save_module(model, folder, "llava-hf", write_config(model.config), dtype=dtype)


def save_language_model(model: LanguageModel, tokenizer: Tokenizer, folder: str | Path, dtype: str = "auto") -> None:
    """Write a plain LLaMA."""
    tokenizer.save(Path(folder) / "tokenizer.json")
    save_module(model, folder, "llama", write_text_config(model.config), "language_model.", dtype)


def save_vision_tower(model: VisionTransformer, folder: str | Path, dtype: str = "auto") -> None:
    """Write a tower as transformers' CLIPVisionModel."""
    size = model.config.image_size
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
    }
    write_json(Path(folder) / "preprocessor_config.json", pictures)
    save_module(model, folder, "clip", write_vision_config(model.config), "vision_tower.", dtype)


def save_module(
    module: nn.Module,
    folder: str | Path,
    layout: str,
    config: dict,
    prefix: str = "",
    dtype: str = "auto",
    parts: tuple[str, ...] = ("",),
) -> None:
    """Write the tensors by the names of `layout`, and then config.json, so that a new folder whose writing was
    interrupted is not taken for a model.

    prefix: the module's name in a LLaVA. Only the parameters whose names begin with one of `parts` are written. A LoRA
    is added to its weights. Rows that several processes hold are gathered, one tensor after the other.
    """
    torch_dtype = None if dtype == "auto" else DTYPES[dtype]
    back = [(ours, theirs) for theirs, ours in LAYOUTS[layout]]
    tensors = {}
    for name, tensor in merged_state(module):
        if name.startswith(parts) and is_first():
            tensors[rename(prefix + name, back)] = tensor.detach().to("cpu", torch_dtype).contiguous()
    if not is_first():
        return
    write_atomically(Path(folder) / SINGLE, lambda path: save_file(tensors, path, {"format": "pt"}))
    write_json(Path(folder) / "config.json", config)
