"""Answers beside transformers': loading, the first token, each further one for one row and for eight, and memory.

The weights are random, of the shapes of --like, and lie in a folder that is gone afterwards; the prompt is one picture
and 63 other tokens. Every token reads all weights of the language model and the filled part of the cache, so it cannot
take less than these bytes over the memory's bandwidth, which is measured in the same run: the limit. A token's time is
the median from one choice of an id to the next, so that what is done once an answer (the prompt, and on CUDA the
recording of the graph) is no part of it.
"""

import argparse
import gc
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from minillava import generation
from minillava.arguments import Parser
from minillava.bench.measure import (
    forget_peak_memory,
    name_of,
    peak_memory,
    read_bandwidth,
    seconds,
    synchronize,
)
from minillava.bench.sizes import LIKES, config_like
from minillava.config import LlavaConfig
from minillava.errors import UserError
from minillava.weights import DTYPES, find_attention, find_device, load_model
from minillava.weights.random import write_folder


@dataclass(frozen=True)
class Side:
    """One program: how it loads the weights, and how it answers with a given number of tokens; it notes the time
    whenever it chooses an id.
    """

    name: str
    load: Callable[[], torch.nn.Module]
    answer: Callable[[torch.nn.Module, dict[str, Tensor], int, list[float]], object]


# ------------------------------------------------------------ the sides
def ours(folder: Path, device: torch.device, dtype: str, attention: str) -> Side:
    def answer(model, inputs, count, times):
        with noted(times):
            return generation.generate_batch(model, **inputs, max_new_tokens=count, eos_token_id=[])

    return Side(f"minillava, {attention}", lambda: load_model(folder, device, dtype, attention), answer)


@contextmanager
def noted(times: list[float]) -> Iterator[None]:
    """generation.sample, which the loop looks up when it calls it, notes the time first."""
    sample = generation.sample

    def noting(*args):
        times.append(time.perf_counter())
        return sample(*args)

    generation.sample = noting
    try:
        yield
    finally:
        generation.sample = sample


def theirs(folder: Path, device: torch.device, dtype: str) -> Side:
    """The peer is imported by its name: the product does without it, this measures it."""
    transformers = importlib.import_module("transformers")
    model_class = transformers.LlavaForConditionalGeneration  # importing it is no part of loading
    transformers.utils.logging.disable_progress_bar()

    def load():
        return model_class.from_pretrained(folder, dtype=DTYPES[dtype]).to(device).eval()

    def answer(model, inputs, count, times):
        def noting(_, logits):
            times.append(time.perf_counter())
            return logits

        inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(DTYPES[dtype])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        lengths = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return model.generate(**inputs, **lengths, logits_processor=transformers.LogitsProcessorList([noting]))

    return Side(f"transformers {transformers.__version__}", load, answer)


def sides(folder: Path, device: torch.device, dtype: str) -> Iterator[Side]:
    """Ours, on a GPU with our kernels and with PyTorch's, and transformers where it is installed."""
    for attention in dict.fromkeys((find_attention("auto", device), "sdpa")):
        yield ours(folder, device, dtype, attention)
    try:
        yield theirs(folder, device, dtype)
    except ImportError:
        print("transformers is not installed: pip install transformers measures it, too")


# ------------------------------------------------------------ measuring
def prompt(config: LlavaConfig, rows: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids (rows, 64 + P) and pixel_values (rows, 3, E, E), each row the same."""
    generator, E = torch.Generator().manual_seed(0), config.vision_config.image_size
    text = torch.randint(3, min(31000, config.image_token_id), (63,), generator=generator)
    ids = torch.cat([torch.tensor([1]), torch.full((config.num_image_tokens,), config.image_token_id), text])
    pixels = torch.randn(1, 3, E, E, generator=generator)
    return {
        "input_ids": ids.repeat(rows, 1).to(device),
        "pixel_values": pixels.repeat(rows, 1, 1, 1).to(device),
    }


def bytes_of_a_token(config: LlavaConfig, rows: int, length: int, itemsize: int) -> int:
    """What a step reads: the layers' weights and the head's once, and keys and values of `length` positions a row."""
    text = config.text_config
    C, D = text.hidden_size, text.head_dim
    layer = 2 * C * D * (text.num_attention_heads + text.num_key_value_heads) + 3 * C * text.intermediate_size + 2 * C
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * D * length * rows
    return itemsize * (text.num_hidden_layers * layer + C + text.vocab_size * C + cache)


def measure(side: Side, options: argparse.Namespace, config: LlavaConfig, device, dtype, bandwidth) -> Iterator[dict]:
    """The figures of one side, for each number of rows."""
    gc.collect()
    forget_peak_memory(device)
    began = time.perf_counter()
    model = side.load()
    synchronize(device)
    load = time.perf_counter() - began
    for rows in options.rows:
        inputs = prompt(config, rows, device)
        first = seconds(lambda inputs=inputs: side.answer(model, inputs, 1, []), device, 0, options.rounds)
        token = min(token_seconds(side, model, inputs, options.tokens) for _ in range(options.rounds))
        length = inputs["input_ids"].shape[1] + options.tokens // 2
        read = bytes_of_a_token(config, rows, length, DTYPES[dtype].itemsize)
        yield {
            "side": side.name,
            "rows": rows,
            "load_s": load,
            "first_token_s": first,
            "token_s": token,
            "peak_bytes": peak_memory(device),
            "read_bytes": read,
            "of_the_limit": read / bandwidth / token,
        }


def token_seconds(side: Side, model: torch.nn.Module, inputs: dict[str, Tensor], count: int) -> float:
    times: list[float] = []
    side.answer(model, inputs, count, times)
    # before the second id a graph is recorded
    return median(later - sooner for sooner, later in pairwise(times[1:]))


def show(figures: dict) -> str:
    return (
        f"{figures['side']:26s}{figures['rows']:5d}{figures['load_s']:8.2f} s{1e3 * figures['first_token_s']:10.1f} ms"
        f"{1e3 * figures['token_s']:9.2f} ms{figures['rows'] / figures['token_s']:10.1f}{figures['peak_bytes'] / 1e9:8.2f} GB"
        f"{figures['of_the_limit']:9.0%}"
    )


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m minillava.bench decode", description=__doc__)
    parser.add_argument("--like", choices=LIKES, default="100m", help="whose shapes (default 100m)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (default 64)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="answers at once (default 1 8)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts (default 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default bfloat16 on a GPU, float32 on a CPU")
    options = parser.parse_args(arguments)
    if options.tokens < 3 or min(options.rows) < 1 or options.rounds < 1:
        raise UserError("--tokens must be at least 3, --rows and --rounds at least 1")
    device, config = find_device(options.device), config_like(options.like)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    bandwidth = read_bandwidth(device)
    print(f"{name_of(device)}, {dtype}, torch {torch.__version__}; a large sum reads {bandwidth / 1e9:.0f} GB/s")
    print(f"{options.like}: {64 + config.num_image_tokens} tokens in, {options.tokens} out\n")
    print(
        f"{'':26s}{'rows':>5s}{'load':>10s}{'first token':>13s}{'a token':>12s}{'tokens/s':>10s}{'memory':>11s}{'limit':>9s}"
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(config, Path(folder) / "weights", seed=0)
        for side in sides(Path(folder) / "weights", device, dtype):
            for figures in measure(side, options, config, device, dtype, bandwidth):
                found.append(figures)
                print(show(figures), flush=True)
    about = {"device": name_of(device), "dtype": dtype, "torch": torch.__version__, "like": options.like}
    print("\n" + json.dumps({**about, "tokens": options.tokens, "read_bytes_per_s": bandwidth, "figures": found}))
