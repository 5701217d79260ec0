"""The README's figure: what becomes of a picture and a question on their way to an answer, with the shapes of the
tensors as they really are.

    python -m lessons.data_flow lessons/images/data_flow.png
"""

import io
import sys
import textwrap
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

import minillava
from minillava.arguments import Parser
from minillava.errors import run
from minillava.files import write_atomically
from minillava.kv_cache import KVCache
from minillava.weights import ROOT

PICTURE, QUESTION = ROOT / "lessons" / "images" / "cat.png", "Is there a cat?"
BLUE, ORANGE, GREEN, GREY = "#d6e6f5", "#fbe3cc", "#dcefd8", "#f2f2f2"


@torch.inference_mode()
def trace(picture: Path = PICTURE, question: str = QUESTION) -> dict:
    """Run the model step by step; the tensors by name, and the answer."""
    model, processor = minillava.load(ROOT / "weights" / "tiny", device="cpu")
    inputs = processor(question, picture)
    features = model.vision_tower(inputs["pixel_values"])  # (1, P, C_vision)
    rows = model.projector(features)  # (1, P, C)
    embeds = model.embed(inputs["input_ids"], inputs["pixel_values"])  # (1, T, C)
    cache = KVCache(model.config.text_config, 1, embeds.shape[1])
    hidden = model.language_model.hidden_states(embeds, None, cache)  # (1, T, C)
    logits = model.language_model.logits(hidden[:, -1:])  # (1, 1, V)
    tensors = dict(inputs, features=features, image_features=rows, inputs_embeds=embeds, logits=logits, keys=cache.keys)
    return {"tensors": tensors, "answer": minillava.answer(model, processor, picture, question)}


def draw(traced: dict, picture: Path = PICTURE, question: str = QUESTION) -> Figure:
    shape = {name: tuple(tensor.shape) for name, tensor in traced["tensors"].items()}
    figure = Figure(figsize=(11, 4.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 4.6))
    axes.set_axis_off()

    def box(x, y, width, text, color, height=0.62):
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.08", fc=color, ec="#555555", lw=1.2)
        )
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=11.5)

    def arrow(start, end, label="", dy=0.12):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333", "lw": 1.4})
        axes.text(
            (start[0] + end[0]) / 2,
            (start[1] + end[1]) / 2 + dy,
            label,
            ha="center",
            va="bottom",
            fontsize=9.5,
            family="monospace",
        )

    axes.imshow(Image.open(picture), extent=(0.25, 1.45, 3.15, 4.35), aspect="auto")
    box(3.35, 3.44, 1.75, "vision_tower", BLUE)
    box(7.35, 3.44, 1.5, "projector", BLUE)
    arrow((1.55, 3.75), (3.3, 3.75), f"pixel_values\n{shape['pixel_values']}")
    arrow((5.15, 3.75), (7.3, 3.75), f"patch features\n{shape['features']}")
    arrow((8.1, 3.4), (8.1, 2.42))
    axes.text(8.2, 2.9, f"image_features\n{shape['image_features']}", va="center", fontsize=9.5, family="monospace")
    axes.text(0.25, 2.05, f"“{question}”", va="center", fontsize=11)
    box(3.35, 1.75, 1.75, "tokenizer", ORANGE)
    arrow((2.35, 2.05), (3.3, 2.05))
    box(7.35, 1.75, 1.5, "merge", GREEN)
    arrow((5.15, 2.05), (7.3, 2.05), f"input_ids {shape['input_ids']}\n{shape['features'][1]} of them <image>")
    box(7.05, 0.35, 2.1, "language_model", ORANGE)
    arrow((8.1, 1.72), (8.1, 1.02))
    axes.text(8.2, 1.38, f"inputs_embeds {shape['inputs_embeds']}", va="center", fontsize=9.5, family="monospace")
    keys = shape["keys"]
    axes.text(
        9.25,
        0.66,
        f"KV cache\nkeys, values, each\n{keys}",
        va="center",
        fontsize=9,
        family="monospace",
        color="#555555",
    )
    box(3.35, 0.35, 1.75, "sample", GREEN)
    arrow((7.0, 0.66), (5.15, 0.66), f"logits {shape['logits']}")
    arrow((3.3, 0.66), (2.8, 0.66))
    axes.text(0.25, 0.66, textwrap.fill(f"“{traced['answer']}”", 26), va="center", fontsize=10.5)
    return figure


def main() -> None:
    parser = Parser(prog="lessons.data_flow", description=__doc__.split("\n")[0])
    parser.add_argument(
        "out", nargs="?", default=str(ROOT / "lessons" / "images" / "data_flow.png"), help="the PNG to write"
    )
    flags = parser.parse_args()
    file = io.BytesIO()
    draw(trace()).savefig(file, format="png", dpi=110)
    write_atomically(flags.out, file.getvalue())
    print(flags.out)


if __name__ == "__main__":
    sys.exit(run(main, "lessons.data_flow"))
