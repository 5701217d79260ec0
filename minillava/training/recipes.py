"""Recipes: what learns in each stage and with which settings, as data.

"tiny" trains the tiny model on the tiny world. The others are the papers': Visual Instruction Tuning (arXiv
2304.08485), section 4.2 and appendix; LLaVA-1.5 (arXiv 2310.03744), table 9 and the scripts of the original code. Those
name epochs where train.py counts steps, so they need --data. Their batches hold samples of like length that all have a
picture or all have none, as batches here always do (batches.py)."""

from argparse import Namespace
from dataclasses import dataclass

from minillava.errors import UserError


@dataclass(frozen=True)
class Stage:
    """What learns in a stage, and the flags of train.py that it sets."""

    trained: tuple[str, ...]  # parameters whose names begin so
    defaults: dict


TINY = dict(optimizer="muon", weight_decay=0.05)
PAPER = dict(
    optimizer="adamw",
    adam_beta2=0.999,
    weight_decay=0.0,
    warmup_ratio=0.03,
    max_grad_norm=1.0,
    dtype="bfloat16",
    max_length=2048,
    checkpoint_activations=True,
    epochs=1,
)
ALIGN, TUNE = ("projector.",), ("projector.", "language_model.")
CAPTIONS = dict(PAPER, template="plain", image_aspect_ratio="square")
V1_5_STAGE_1 = Stage(
    ALIGN,
    dict(
        CAPTIONS,
        out="runs/v1.5-stage1",
        projector="mlp2x_gelu",
        batch_size=256,
        micro_batch_size=32,
        learning_rate=1e-3,
    ),
)
V1_5 = dict(PAPER, template="v1", image_aspect_ratio="pad", batch_size=128, micro_batch_size=16)
LORA = dict(lora_r=128, lora_alpha=256.0, lora_dropout=0.05, projector_learning_rate=2e-5)
RECIPES = {
    "tiny": {
        1: Stage(
            ALIGN, dict(TINY, out="runs/stage1", max_steps=300, batch_size=32, learning_rate=4e-3, save_every=100)
        ),
        2: Stage(
            TUNE, dict(TINY, out="runs/stage2", max_steps=2800, batch_size=16, learning_rate=1.5e-3, save_every=200)
        ),
    },
    "v1": {
        1: Stage(
            ALIGN,
            dict(
                CAPTIONS,
                out="runs/v1-stage1",
                projector="linear",
                batch_size=128,
                micro_batch_size=16,
                learning_rate=2e-3,
            ),
        ),
        2: Stage(
            TUNE,
            dict(
                PAPER,
                out="runs/v1-stage2",
                template="v1",
                image_aspect_ratio="square",
                batch_size=32,
                micro_batch_size=4,
                learning_rate=2e-5,
                epochs=3,
            ),
        ),
    },
    "v1.5": {1: V1_5_STAGE_1, 2: Stage(TUNE, dict(V1_5, out="runs/v1.5-stage2", learning_rate=2e-5))},
    "v1.5-lora": {1: V1_5_STAGE_1, 2: Stage(TUNE, dict(V1_5, **LORA, out="runs/v1.5-lora-stage2", learning_rate=2e-4))},
}
STAGES = RECIPES["tiny"]


def recipe_settings(flags: Namespace) -> dict:
    """The recipe's settings for `flags.stage`, without those that a flag which was given makes void."""
    if flags.max_steps is not None and flags.epochs is not None:
        raise UserError("--max-steps and --epochs both say how long to train: give one of them")
    settings = dict(RECIPES[flags.recipe or "tiny"][flags.stage].defaults)
    if flags.max_steps is not None:
        settings.pop("epochs", None)
    if flags.epochs is not None:
        settings.pop("max_steps", None)
    if flags.weights is not None:  # its projector is there already
        settings.pop("projector", None)
    return settings


def steps_of(epochs: float, num_records: int, batch_size: int) -> int:
    """Optimizer steps of `epochs` passes over the records, the last one's batch full: 665,298 records in batches of 128
    are 5,198 steps.
    """
    return max(1, -int(-epochs * num_records // batch_size))


# ------------------------------------------------------------ --train and --freeze
WORDS = {"tower": "vision_tower"}  # the parts, as people call them


def change_trainable(model, train: str, freeze: str) -> None:
    """On top of a stage's set: let the parameters named in `train` learn, then freeze those named in `freeze`.

    Both are names separated by commas: tower, projector, language_model, or the beginning of a parameter's name up to a
    dot, such as language_model.layers.0. UserError for a name that no parameter has, and where nothing is left to
    learn."""
    parameters = dict(model.named_parameters())
    for flag, names, learns in (("--train", train, True), ("--freeze", freeze, False)):
        for name in filter(None, (name.strip() for name in names.split(","))):
            prefix = WORDS.get(name, name).rstrip(".")
            chosen = [p for full, p in parameters.items() if full == prefix or full.startswith(prefix + ".")]
            if not chosen:
                known = "tower, projector, language_model, or the beginning of a parameter's name, such as language_model.layers.0"
                raise UserError(f"{flag} {name}: no part of this model is called so; give {known}")
            for parameter in chosen:
                parameter.requires_grad = learns
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError("nothing is left to learn: --freeze names all that this stage trains")
