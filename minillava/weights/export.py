"""A weights folder for other programs: `python -m minillava.weights export FOLDER --layout llava-hf --out DIR`.

llava-hf is what transformers loads, and with it vLLM and SGLang. original is haotian-liu/LLaVA's: language model and
projector, and the tower as a CLIP of its own in `vision_tower`, whose path `mm_vision_tower` names.
"""

from dataclasses import replace
from pathlib import Path

from minillava import weights
from minillava.errors import UserError
from minillava.model import Llava
from minillava.weights.hf_config import write_original_config
from minillava.weights.processor_files import save_processor

LAYOUTS = ("llava-hf", "original")


def export(path: str | Path, layout: str, out: str | Path, vision: str | Path | None = None) -> None:
    """Write the LLaVA in `path`, whatever its layout, as `layout` into the new folder `out`, in the type of its file."""
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already: give a new folder with --out.")
    model, processor = weights.load(path, device="cpu", dtype="stored", vision=vision)
    if layout == "llava-hf":
        return weights.save(model, processor, out)
    weights.save_vision_tower(model.vision_tower, out / "vision_tower")
    model = without_image_rows(model)
    save_processor(processor, out)
    config = write_original_config(model.config, str(out / "vision_tower"), processor.pad)
    weights.save_module(model, out, "original", config, parts=("projector.", "language_model.", "image_newline"))


def without_image_rows(model: Llava) -> Llava:
    """The same LLaVA with a vocabulary that ends before `<image>`, which llava-hf adds to the original's together with
    `<pad>` and empty rows.
    """
    rows, text = model.config.image_token_id, model.config.text_config
    language_model = model.language_model
    for module in filter(None, (language_model.embed_tokens, language_model.lm_head)):
        module.weight.data = module.weight.data[:rows]
    model.config = replace(model.config, text_config=replace(text, vocab_size=min(rows, text.vocab_size)))
    return model
