"""Weights: from a folder of safetensors to a model and back, whatever names the file gives its tensors.

    load("weights/tiny")                -> model, processor        save(model, processor, folder)
    load_language_model("vicuna-7b")    -> LanguageModel           save_language_model(model, tokenizer, folder)
    load_vision_tower("clip-vit-l-336") -> VisionTransformer       save_vision_tower(model, folder)

folders.py finds the folder that a name means, hf_config.py reads its config.json, layouts.py knows the tensors' names,
tensor_files.py looks them up, strictly, and loading.py puts the model together.
"""

from minillava.weights.download import ROOT
from minillava.weights.folders import find_folder
from minillava.weights.layouts import LAYOUTS, rename
from minillava.weights.loading import (
    DTYPES,
    extend_vocabulary,
    find_attention,
    find_device,
    load,
    load_language_model,
    load_model,
    load_vision_tower,
)
from minillava.weights.saving import save, save_language_model, save_module, save_vision_tower

__all__ = ["DTYPES", "LAYOUTS", "ROOT", "extend_vocabulary", "find_attention", "find_device", "find_folder", "rename"]
__all__ += ["load", "load_language_model", "load_model", "load_vision_tower"]
__all__ += ["save", "save_language_model", "save_module", "save_vision_tower"]
