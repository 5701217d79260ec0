"""What loading costs: `python -m minillava.weights measure FOLDER`, in time and in memory, on the CPU."""

import sys
import time
from pathlib import Path

import torch

from minillava import weights
from minillava.errors import UserError
from minillava.generation import generate

WORDS, SPOKEN = 8, 4  # ids of text that are read, and how many are decoded


def measure(path: str | Path) -> list[tuple[str, str]]:
    """(name, value) pairs to print: seconds to build a LLaVA from its mapped files, for a picture through its tower,
    and for text through the rest.

    Picture and text go apart: 576 rows of a picture through 7 billion numbers would take a CPU without bfloat16
    instructions 20 minutes. The memory is the most that this process has had resident, with Python, PyTorch and all
    that it has read of the mapped files."""
    folder = weights.find_folder(path)
    began = time.perf_counter()
    model = weights.load_model(folder, device="cpu", dtype="stored")
    built, size = (
        time.perf_counter() - began,
        sum(file.stat().st_size for file in set(weights.tensor_files(folder).values())),
    )
    side = model.config.vision_config.image_size
    with torch.inference_mode():
        began = time.perf_counter()
        model.embed_image(torch.zeros(1, 3, side, side), torch.tensor([[side, side]]))
        picture = time.perf_counter() - began
        began = time.perf_counter()
        said = list(generate(model, torch.arange(3, 3 + WORDS)[None], max_new_tokens=SPOKEN, eos_token_id=[]))
        text = time.perf_counter() - began
    peak = peak_memory()
    return [
        ("files", f"{size:,} bytes"),
        ("built in", f"{built:.2f} s"),
        ("a picture", f"{picture:.1f} s through tower and projector"),
        ("text", f"{text:.1f} s for {WORDS} tokens in and {len(said)} out"),
        ("resident", f"{peak:,} bytes at most, {peak / size:.3f} of the files"),
    ]


def peak_memory() -> int:
    """The most bytes that this process has had resident."""
    try:
        import resource
    except ImportError:
        raise UserError("This system does not tell how much memory a process has used.") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
