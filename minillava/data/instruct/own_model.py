"""Our own language model as the teacher: LLaMA or Vicuna files run by minillava, so that a data set can be made on one
machine.

The worked examples become earlier turns of the conversation, the system text its system prompt. A small model needs the
short prompt, --shots 0.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minillava import weights
from minillava.data.instruct.teacher import Reply, Request
from minillava.errors import UserError
from minillava.generation import end_ids, generate, text_of
from minillava.inputs.chat_template import folder_template
from minillava.inputs.conversation import Template, encode, find_template
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import LanguageModel


@dataclass
class OwnModel:
    """Writes with a language model of a weights folder, one request at a time; the same request gives the same text on
    the same machine.
    """

    folder: str
    model: LanguageModel
    tokenizer: Tokenizer
    template: Template
    temperature: float = 0.7
    max_tokens: int = 1024
    concurrency: int = 1

    @classmethod
    def from_folder(cls, path: str, template: str = "", **settings) -> "OwnModel":
        """The language model (of a LLaVA, too) in a folder; UserError where there is none."""
        folder = weights.find_folder(path)
        model = weights.load_language_model(folder)
        found = find_template(template or folder_template(Path(folder), "v1"))
        return cls(str(path), model, Tokenizer.from_file(folder), found, **settings)

    @property
    def name(self) -> str:
        return (
            f"{self.folder} template {self.template.name} temperature {self.temperature} max_tokens {self.max_tokens}"
        )

    def stop(self) -> None:
        """Nothing waits: the reply under way is finished."""

    def write(self, request: Request) -> Reply:
        """The model's reply, sampled with the request's seed; UserError where the prompt is longer than the model's
        context.
        """
        (system, *messages) = request.messages
        template = replace(self.template, system=system["content"] + " ")
        encoded = encode(
            self.tokenizer,
            template,
            [(message["role"], message["content"]) for message in messages],
            add_generation_prompt=True,
        )
        ids = torch.tensor([encoded.input_ids])  # (1, T)
        try:
            steps = generate(
                self.model,
                ids,
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=0.95,
                seed=request.seed,
                eos_token_id=end_ids(self.model, self),
            )
        except UserError:
            context = self.model.config.max_position_embeddings
            raise UserError(
                f"The prompt is {ids.shape[1]} tokens long, but the model's context is {context}: fewer --shots make it shorter (0: none)."
            ) from None
        written = list(steps)
        room = min(self.max_tokens, self.model.config.max_position_embeddings - ids.shape[1])
        return Reply("".join(text_of(self, written)).strip(), ids.shape[1], len(written), len(written) >= room)
