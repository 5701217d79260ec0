"""The loss: how surprised the model is by each word of the answers.

    hidden = language_model.hidden_states(inputs_embeds, start)                (B, T, C)
    logits = language_model.logits(hidden)                                     (B, T, V)

The logits at position t say what the model expects at t + 1: they are compared with label t + 1, and the last position
is compared with nothing. A label of -100 is no target. The loss is the mean of the cross entropies of all targets of
the batch, computed in float32. Raise ValueError when no label is a target.

`start` says where each row's text begins, after its padding; hand it on. Shapes: inputs_embeds (B, T, C), labels (B, T)
int64, start (B,) or (B, T) int64 or None -> ().

    >>> inputs_embeds, labels = torch.zeros(1, 3, language_model.config.hidden_size), torch.tensor([[-100, 5, -100]])
    >>> round(next_token_loss(language_model, inputs_embeds, labels).item(), 3) == round(math.log(language_model.config.vocab_size), 3)
    True

About 6 lines. Check it: python -m lessons.check loss
"""

import math  # noqa: F401

import torch  # noqa: F401
from torch import Tensor

REPLACES = "minillava.training.loss.next_token_loss"


def next_token_loss(language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None) -> Tensor:
    raise NotImplementedError("next_token_loss has to compare the logits at t with label t + 1")
