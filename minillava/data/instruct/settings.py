"""The command's flags, a field each, and what they may be."""

import math
from dataclasses import dataclass
from pathlib import Path

from minillava.arguments import expect, option
from minillava.data.instruct.context import KINDS
from minillava.errors import UserError
from minillava.inputs.conversation import TEMPLATES

ALL_KINDS = (*KINDS, "simple")
RANGES = {  # the least and the most of each number
    "start": (0, 10**9),
    "limit": (0, 10**9),
    "shots": (0, 100),
    "seed": (0, 2**63),
    "temperature": (0, 2),
    "max_tokens": (1, 10**6),
    "concurrency": (1, 256),
    "timeout": (0.01, 86400),
    "tries": (1, 100),
    "budget": (1, 10**12),
}


@dataclass(frozen=True)
class Settings:
    """UserError for a value that is out of its range."""

    source: str = option("scenes", "scenes, COCO's captions_*.json (instances_*.json beside it), or a .jsonl file")
    start: int = option(0, "pictures to pass over (default 0)")
    limit: int = option(0, "pictures to use (default: all; of the scenes, which have no end, 100)")
    teacher: str = option("rules", "rules, openai, or the folder of a language model")
    kind: str = option(",".join(KINDS), f"one or several of {','.join(ALL_KINDS)}")
    out: str = option("", "the data set, a .json file")
    show: bool = option(False, "print what the teacher reads of the first picture, and stop")
    estimate: bool = option(False, "print how many tokens it will take and what they cost, and stop")
    noun_phrases: bool = option(False, "kind simple: keep the captions that CC-595K's filter keeps")
    prompts: str = option("", "folder of prompts (default: the project's own)")
    shots: int = option(3, "worked examples in a prompt, at most")
    template: str = option("", "of a folder's model (default: the folder's own, or v1)", choices=("", *TEMPLATES))
    images: str = option("", "folder of the pictures, for the contact sheet")
    card: str = option("", "where the data set's card goes (default: beside the data)")
    seed: int = option(0, "of the teacher's choices (default 0)")
    temperature: float = option(0.7, "of a model's sampling")
    max_tokens: int = option(1024, "tokens of a reply, at most")
    concurrency: int = option(4, "requests at a time to an endpoint")
    timeout: float = option(120.0, "seconds that an endpoint may take to reply")
    tries: int = option(6, "tries of a request before the run ends")
    budget: int = option(1_000_000, "tokens that an endpoint may use in this run")
    price: str = option("0,0", "of a million tokens read and written, for the estimate, as in 0.15,0.60")

    def __post_init__(self):
        for name, (least, most) in RANGES.items():
            expect(self, name, least <= getattr(self, name) <= most, f"from {least} to {most}")
        if unknown := set(self.kinds) - set(ALL_KINDS):
            raise UserError(f"There is no kind {min(unknown)!r}; there are {', '.join(ALL_KINDS)}.")
        expect(self, "out", not self.out or Path(self.out).suffix == ".json", "the name of a .json file")
        self.prices  # noqa: B018 (UserError now, not after the run)

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kind.strip() for kind in self.kind.split(",")))

    @property
    def prices(self) -> tuple[float, float]:
        """Prices of a million tokens that are read, and that are written."""
        try:
            read, written = (float(price) for price in self.price.split(","))
        except ValueError:
            read = written = math.nan
        expect(self, "price", 0 <= read < math.inf and 0 <= written < math.inf, "two numbers, as in 0.15,0.60")
        return read, written
