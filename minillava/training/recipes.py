"""What a training is told: its flags, and the papers' recipes as data.

"tiny" trains the tiny model on the tiny world. The others are the papers': Visual Instruction Tuning (arXiv 2304.08485),
section 4.2 and appendix; LLaVA-1.5 (arXiv 2310.03744), table 9 and the scripts of the original code. Those name epochs
where train.py counts steps, so they need --data. Their batches hold samples of like length that all have a picture or
all have none, as batches here always do (batches.py).
"""

import math
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

from minillava.arguments import expect, option
from minillava.errors import UserError

# ------------------------------------------------------------ the flags


@dataclass(frozen=True)
class LoopConfig:
    """What every training is told."""

    out: str = option("", "folder for the weights, metrics.jsonl, loss.png and the checkpoint")
    max_steps: int = option(1000, "optimizer steps")
    batch_size: int = option(32, "samples a step")
    optimizer: str = option(
        "adamw", "adamw, as the papers, or muon for the matrices inside blocks and projector", choices=("adamw", "muon")
    )
    learning_rate: float = option(1e-3, "peak of the schedule: warm-up, then half a cosine down to 0")
    warmup_ratio: float = option(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = option(0.0, "of matrices only")
    adam_beta2: float = option(0.95, "how slowly AdamW forgets the sizes of past gradients; the papers' is 0.999")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    save_every: int = option(500, "steps between checkpoints")
    seed: int = option(0, "of the new weights and of the samples' order")
    dtype: str = option("auto", "of the matrix products: float32, bfloat16 (weights stay float32), or auto: the faster")
    resume: bool = option(False, "go on from the checkpoint in --out")

    SAME_NUMBERS = ("out", "resume", "save_every")  # fields that change nothing of what is computed

    def __post_init__(self):
        for name in ("max_steps", "batch_size", "save_every"):
            expect(self, name, 1 <= getattr(self, name) < 2**31, "at least 1 and below 2^31")
        expect(self, "seed", 0 <= self.seed < 2**31, "0 or more and below 2^31")
        expect(self, "learning_rate", 0 < self.learning_rate <= 1e4, "above 0 and at most 10000")
        expect(self, "max_grad_norm", 0 < self.max_grad_norm < math.inf, "above 0")
        expect(self, "warmup_ratio", 0 <= self.warmup_ratio <= 1, "from 0 to 1")
        expect(self, "adam_beta2", 0 <= self.adam_beta2 < 1, "from 0 to below 1")
        expect(self, "weight_decay", 0 <= self.weight_decay <= 1e4, "from 0 to 10000")
        expect(self, "dtype", self.dtype in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16")

    def rate_factor(self, name: str) -> float:
        """By how much the learning rate of the parameter `name` differs from the schedule's."""
        return 1.0

    def settings(self) -> dict:
        """What makes the run the run it is, and what a resumed run must have in common with it."""
        return {name: value for name, value in asdict(self).items() if name not in self.SAME_NUMBERS}


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """The flags of train.py."""

    stage: int = option(
        0,
        "1: the projector learns from captions; 2: projector and language model learn from conversations",
        choices=(1, 2),
    )
    recipe: str = option(
        "tiny",
        "settings of the papers, which other flags change; all but tiny need --data",
        choices=("tiny", "v1", "v1.5", "v1.5-lora"),
    )
    data: str = option("", "LLaVA JSON; without it, endless scenes of the tiny world")
    images: str = option("", "folder in which the pictures of --data lie")
    weights: str = option("", "the LLaVA to start from (stage 2: runs/stage1 if it is there, else weights/tiny-stage1)")
    vision: str = option("", "a CLIP tower to start from, with --language (stage 1: weights/tiny-vision)")
    language: str = option("", "a LLaMA to start from, with --vision (stage 1: weights/tiny-language)")
    projector: str = option("", "kind of a new projector (default mlp2x_gelu)", choices=("linear", "mlp2x_gelu"))
    vision_feature_layer: int = option(
        -2, "layer of the tower that a new projector reads; LLaVA reads the last but one"
    )
    template: str = option("", "conversation template (plain: LLaVA-1.5's stage 1); default the starting folder's")
    image_aspect_ratio: str = option(
        "", "square cuts one out of a picture, pad fills it up (default the folder's)", choices=("square", "pad")
    )
    max_length: int = option(0, "tokens a sample, or a packed row, may hold at most (0: the model's context)")
    epochs: float = option(0.0, "passes over --data, in place of --max-steps")
    micro_batch_size: int = option(
        0, "samples, or packed rows, that are computed at once; the gradient is that of the whole batch (0: all)"
    )
    projector_learning_rate: float = option(0.0, "of the projector alone (0: as all others)")
    train: str = option("", "what learns besides the stage's own: tower, projector, language_model, or names")
    freeze: str = option("", "what does not learn, named as for --train, with commas between")
    lora_r: int = option(0, "train LoRA's changes of this rank in place of the language model (0: the model itself)")
    lora_alpha: float = option(16.0, "LoRA's changes count alpha / r times")
    lora_dropout: float = option(0.0, "share of a layer's inputs that LoRA does not read, drawn anew at each step")
    device: str = option("auto", "cpu, cuda, or auto")
    cache_features: str = option("", "folder for the frozen tower's features of all pictures, computed once")
    check_data: bool = option(False, "read every record and picture of --data, say what is wrong, and train nothing")
    skip_broken: bool = option(False, "leave out records whose pictures are missing or broken, and say which")
    checkpoint_activations: bool = option(
        False, "compute each layer again in the backward pass, in place of keeping what it computed"
    )
    pack: bool = option(False, "several samples in a row of the batch, so that next to nothing is padding")
    workers: int = option(0, "processes that read texts and pictures ahead, with the same batches (0: a thread)")
    validation_share: float = option(0.0, "share of the pictures of --data that only measure the loss, at each save")

    # Where files lie, and how much is computed at once. What was started from is known by its numbers (run.py).
    SAME_NUMBERS = (
        *LoopConfig.SAME_NUMBERS,
        *("recipe", "epochs", "data", "images", "weights", "vision", "language", "device", "cache_features"),
        *("micro_batch_size", "checkpoint_activations", "check_data", "skip_broken", "workers"),
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("workers", "max_length", "micro_batch_size", "lora_r", "epochs", "projector_learning_rate"):
            most = {"workers": 1024, "lora_r": 16384}.get(name, 2**31)
            expect(self, name, 0 <= getattr(self, name) < most, f"0 or more and below {most}")
        expect(self, "lora_alpha", 0 < self.lora_alpha <= 1e6, "above 0 and at most 1000000")
        expect(self, "lora_dropout", 0 <= self.lora_dropout < 1, "from 0 to below 1")
        expect(self, "validation_share", 0 <= self.validation_share < 1, "from 0 to below 1")
        if bool(self.vision) != bool(self.language):
            raise UserError("--vision and --language go together: give both folders, or neither")
        if self.weights and self.vision:
            raise UserError("--weights names a whole LLaVA: leave out --vision and --language, or leave out --weights")
        new_projector = self.vision or (self.stage == 1 and not self.weights)
        if not new_projector and (self.projector or self.vision_feature_layer != -2):
            raise UserError(
                "--projector and --vision-feature-layer are for a new projector, with --vision and --language"
            )
        if self.recipe != "tiny" and not (self.data and (self.weights or self.vision)):
            start = "--vision and --language, or --weights"
            raise UserError(f"--recipe {self.recipe} needs --data, and the model to start from: {start}")
        if self.lora_r and (self.stage == 1 or self.vision):
            raise UserError("--lora-r is for stage 2, from a whole LLaVA that the adapter belongs to: give --weights")
        if self.lora_dropout and not self.lora_r:
            raise UserError("--lora-dropout is for LoRA: give its rank with --lora-r")
        for name in ("images", "check_data", "cache_features", "epochs", "validation_share"):
            if getattr(self, name) and not self.data:
                raise UserError(f"--{name.replace('_', '-')} needs --data, the JSON that names the pictures")

    def rate_factor(self, name: str) -> float:
        own_rate = self.projector_learning_rate and name.startswith("projector.")
        return self.projector_learning_rate / self.learning_rate if own_rate else 1.0

    def settings(self) -> dict:
        """The data may have changed under its name, which its size nearly always tells."""
        size = Path(self.data).stat().st_size if self.data and Path(self.data).exists() else 0
        return {**super().settings(), "size of the data": size, "start": self.weights}


# ------------------------------------------------------------ the recipes
@dataclass(frozen=True)
class Stage:
    """What learns in a stage, and the flags of train.py that it sets."""

    trained: tuple[str, ...]  # parameters whose names begin so
    defaults: dict


ALIGN, TUNE = ("projector.",), ("projector.", "language_model.")
TINY = dict(optimizer="muon", weight_decay=0.05)
PAPER = dict(optimizer="adamw", adam_beta2=0.999, weight_decay=0.0, warmup_ratio=0.03, max_grad_norm=1.0)
PAPER |= dict(dtype="bfloat16", max_length=2048, checkpoint_activations=True, epochs=1)
CAPTIONS = PAPER | dict(template="plain", image_aspect_ratio="square")
V1 = PAPER | dict(template="v1", image_aspect_ratio="square", batch_size=32, micro_batch_size=4)
V1_5 = PAPER | dict(template="v1", image_aspect_ratio="pad", batch_size=128, micro_batch_size=16)
LORA = V1_5 | dict(lora_r=128, lora_alpha=256.0, lora_dropout=0.05, projector_learning_rate=2e-5)
TINY_1 = dict(out="runs/stage1", max_steps=300, batch_size=32, learning_rate=4e-3, save_every=100)
TINY_2 = dict(out="runs/stage2", max_steps=2800, batch_size=16, learning_rate=1.5e-3, save_every=200)
V1_1 = dict(out="runs/v1-stage1", projector="linear", batch_size=128, micro_batch_size=16, learning_rate=2e-3)
V1_5_1 = dict(out="runs/v1.5-stage1", projector="mlp2x_gelu", batch_size=256, micro_batch_size=32, learning_rate=1e-3)
RECIPES = {
    "tiny": {1: Stage(ALIGN, TINY | TINY_1), 2: Stage(TUNE, TINY | TINY_2)},
    "v1": {
        1: Stage(ALIGN, CAPTIONS | V1_1),
        2: Stage(TUNE, V1 | dict(out="runs/v1-stage2", learning_rate=2e-5, epochs=3)),
    },
    "v1.5": {
        1: Stage(ALIGN, CAPTIONS | V1_5_1),
        2: Stage(TUNE, V1_5 | dict(out="runs/v1.5-stage2", learning_rate=2e-5)),
    },
    "v1.5-lora": {
        1: Stage(ALIGN, CAPTIONS | V1_5_1),
        2: Stage(TUNE, LORA | dict(out="runs/v1.5-lora-stage2", learning_rate=2e-4)),
    },
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
    """Optimizer steps of `epochs` passes over the records: 665,298 records in batches of at most 128 are 5,198 steps."""
    return max(1, math.ceil(epochs * math.ceil(num_records / batch_size)))


# ------------------------------------------------------------ what learns
PARTS = {"tower": "vision_tower"}  # as people call them


def change_trainable(model, train: str, freeze: str) -> None:
    """On top of a stage's set: let the parameters named in `train` learn, then freeze those named in `freeze`.

    Both are names separated by commas: tower, projector, language_model, or the beginning of a parameter's name up to a
    dot, such as language_model.layers.0. UserError for a name that no parameter has, and where nothing is left to
    learn.
    """
    parameters = dict(model.named_parameters())
    for flag, names, learns in (("--train", train, True), ("--freeze", freeze, False)):
        for name in filter(None, (name.strip() for name in names.split(","))):
            prefix = PARTS.get(name, name).rstrip(".")
            chosen = [p for full, p in parameters.items() if f"{full}.".startswith(f"{prefix}.")]
            if not chosen:
                known = "tower, projector, language_model, or the beginning of a name: language_model.layers.0"
                raise UserError(f"{flag} {name}: no part of this model is called so; give {known}")
            for parameter in chosen:
                parameter.requires_grad = learns
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError("nothing is left to learn: --freeze names all that this stage trains")
