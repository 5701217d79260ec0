"""System texts, worked examples and question lists: text files under prompts/, to be read and edited.

A kind's folder holds system.txt and pairs N_context.txt, N_reply.txt (2, 3 and 3 of them, as many as the paper's
authors used; the texts are this project's own). The teacher reads: system; for each pair the context as user and the
reply as assistant; then the new context as user.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from minillava.errors import UserError
from minillava.files import read_file

FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompts:
    """The prompts in a folder; `shots` is how many worked examples are used, at most."""

    folder: Path = FOLDER
    shots: int = 3

    def text(self, name: str) -> str:
        text = read_file(self.folder / name).decode("utf-8-sig", "replace").strip()
        if not text:
            raise UserError(f"{self.folder / name} is empty; it must hold text for the teacher.")
        return text

    def messages(self, kind: str, context: str) -> tuple[dict[str, str], ...]:
        """What a language model reads for one picture, in the form of chat completions."""
        said = [("system", self.text(f"{kind}/system.txt"))]
        for number in range(1, self.shots + 1):
            if (self.folder / kind / f"{number}_context.txt").is_file():
                said.append(("user", self.text(f"{kind}/{number}_context.txt")))
                said.append(("assistant", self.text(f"{kind}/{number}_reply.txt")))
        return tuple({"role": role, "content": text} for role, text in [*said, ("user", context)])

    def questions(self, name: str) -> list[str]:
        """The lines of a list of questions: "detail" or "brief"."""
        return [line.strip() for line in self.text(f"{name}_questions.txt").splitlines() if line.strip()]

    def digest(self) -> str:
        """One hash of all prompts, by which a data set's card names them."""
        files = sorted(path for path in self.folder.rglob("*.txt") if path.is_file())
        told = b"".join(
            path.relative_to(self.folder).as_posix().encode() + b"\0" + read_file(path) + b"\0" for path in files
        )
        return hashlib.sha256(told + str(self.shots).encode()).hexdigest()[:16]
