"""minillava: LLaVA, written by hand in plain PyTorch.

Letters, the same everywhere:

    B batch            T tokens             S cached + new tokens
    C model width      H query heads        K key/value heads       D head width
    P image patches    V vocabulary         L layers                N pictures of a batch

Attention tensors are (B, H, T, D). A line that changes a shape ends in it; in front of a picture, S is its edge in pixels.
"""

import importlib

# Imported at once, since `minillava.generate` is both a module and a function, and Python names the module when it first loads it.
from minillava.generate import answer, generate, generate_batch, stream

LATER = {"load": "weights", "load_model": "weights", "load_language_model": "weights", "load_vision_tower": "weights", "save": "weights"}
MODULES = ("training", "weights", "config", "model")

__all__ = ["answer", "generate", "generate_batch", "stream", *LATER]


def __getattr__(name: str):
    """What is asked for is imported then, so that `import minillava` stays quick."""
    if name in LATER:
        return getattr(importlib.import_module(f"minillava.{LATER[name]}"), name)
    if name in MODULES:
        return importlib.import_module(f"minillava.{name}")
    raise AttributeError(f"module 'minillava' has no attribute {name!r}")
