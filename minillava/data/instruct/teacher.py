"""What a teacher is: it gets a request about one picture and writes a reply."""

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol

from minillava.data.instruct.sources import Picture


@dataclass(frozen=True)
class Request:
    """One picture and one kind. `messages` are what a language model reads; the rule teacher looks at the picture's
    scene instead.
    """

    picture: Picture
    kind: str
    messages: tuple[dict[str, str], ...]
    seed: int

    def key(self, teacher: str) -> str:
        """Names the reply in the journal: another teacher, prompt, context or seed is another request."""
        told = [teacher, self.kind, self.picture.id, self.messages, self.seed]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Reply:
    """What came back; tokens as the teacher counts them, `truncated` where it ended at the limit of tokens."""

    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0
    truncated: bool = False


class Teacher(Protocol):
    """`name` holds every setting that changes the replies; `concurrency` is how many requests it takes at once."""

    name: str
    concurrency: int

    def write(self, request: Request) -> Reply:
        """The reply; UserError where no reply can be had any more."""

    def stop(self) -> None:
        """End waits between tries: the run is being stopped."""


def request_seed(seed: int, picture: Picture, kind: str) -> int:
    """A request's own seed, below 2^31."""
    return int.from_bytes(hashlib.sha256(f"{seed} {picture.id} {kind}".encode()).digest()[:4], "big") >> 1
