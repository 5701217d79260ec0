"""minillava: LLaVA, written by hand in plain PyTorch.

Letters, the same everywhere:

    B batch            T tokens             S cached + new tokens
    C model width      H query heads        K key/value heads       D head width        L layers
    P image patches    V vocabulary         E edge of a picture, and p of a patch, in pixels
    N pictures of a batch, in LLaVA-NeXT their views       R rows: the embeddings that all these become together

Attention tensors are (B, H, T, D). A line that changes a shape ends in the new one. In the vision tower, which sees
nothing but pictures, the batch is of pictures. In attention, whose two sides differ in length, T counts the queries and
S the keys.
"""

import sys
from importlib import import_module
from pathlib import Path

from minillava.errors import quiet_interrupts

if Path(*sys.argv[:1]).name in ("-m", "chat.py", "train.py"):  # a command; PyTorch takes more than a second
    quiet_interrupts()

from minillava.generation import answer, generate, generate_batch, stream
from minillava.weights import load, load_language_model, load_model, load_vision_tower, save

from minillava import training  # isort: skip (it needs what weights has imported)

__all__ = [
    "answer",
    "generate",
    "generate_batch",
    "load",
    "load_language_model",
    "load_model",
    "load_vision_tower",
    "save",
    "stream",
    "training",
]

# `from minillava.processor import Processor` still works: where modules lay before inputs/ and training/ were made.
for _name in ("image", "tokenizer", "conversation", "processor"):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"{__name__}.inputs.{_name}")
sys.modules[f"{__name__}.loop"] = training
