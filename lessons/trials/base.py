"""What the trials are made of: a case, a property, and the inputs that both are given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lessons import specs
from minillava.config import LlavaConfig, TextConfig, VisionConfig

EXAMPLES = 20  # inputs that hypothesis draws for each property


@dataclass(frozen=True)
class Case:
    name: str  # completes "on ..."
    run: Callable  # parts -> what they give
    # () -> what they should give; None: what the definitions give, run in the same way
    expected: Callable | None = None
    tolerance: float = 1e-5  # of the largest number that is expected

    def truth(self):
        return self.expected() if self.expected else self.run(specs)


@dataclass(frozen=True)
class Raises:
    """What a case gives when the part raises an exception, and should give where it must."""

    kind: str
    text: str = ""


@dataclass(frozen=True)
class Property:
    sentence: str
    holds: Callable  # parts -> None, or AssertionError


def random(*shape, seed: int = 0, dtype=torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def draw(**strategies):
    """A decorator: run the function on inputs that hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, settings

    def run(function):
        quiet = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        )
        quiet(given(**strategies)(function))()

    return run


def integers(low: int, high: int):
    from hypothesis import strategies

    return strategies.integers(low, high)


SEEDS = 1 << 16


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


class WrongWeights(Exception):
    """A class whose parameters are not those of the files; the text says which."""


def filled(module: nn.Module, like: nn.Module, seed: int = 0) -> nn.Module:
    """The student's module with random weights of the product's names and shapes."""
    have, want = {n: p.shape for n, p in module.named_parameters()}, {n: p.shape for n, p in like.named_parameters()}
    for text, names in (
        ("lacks the parameter", want.keys() - have.keys()),
        ("has a parameter that the files lack:", have.keys() - want.keys()),
    ):
        if names:
            raise WrongWeights(f"{type(module).__name__} {text} {min(names)}")
    for name in want:
        if have[name] != want[name]:
            raise WrongWeights(
                f"{type(module).__name__}: {name} is {tuple(have[name])}, but in the files it is {tuple(want[name])}"
            )
    with torch.no_grad():
        for name, weight in weights_like(like, seed).items():
            module.get_parameter(name).copy_(weight)
    return module


def weights_like(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    shapes = sorted((name, p.shape) for name, p in module.named_parameters())
    return {
        name: random(*shape, seed=100 * seed + i, scale=0.6) + (shape[0] and len(shape) == 1)
        for i, (name, shape) in enumerate(shapes)
    }


def frequencies(D: int) -> Tensor:
    return 100.0 ** -(torch.arange(0, D, 2) / D)


def text_config(**more):
    shape = dict(
        hidden_size=12,
        intermediate_size=20,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=4,
        num_hidden_layers=2,
    )
    return TextConfig(**{**shape, "rms_norm_eps": 0.05, "vocab_size": 30, **more})


def llava_config(kind: str = "mlp2x_gelu") -> LlavaConfig:
    tower = VisionConfig(
        hidden_size=6, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=4, patch_size=2
    )
    return LlavaConfig(
        tower, text_config(hidden_size=8, num_attention_heads=2, num_key_value_heads=2), 29, projector_type=kind
    )
