"""Known mistakes in lessons/exercises/e11_loss.py."""

import torch.nn.functional as F

from lessons.mistakes.base import mistake


def loss_variant(shift=1, ignore=True, reduction="mean", low=False, use_start=True, check=True, hidden_shift=0):
    def next_token_loss(language_model, inputs_embeds, labels, start=None):
        hidden = language_model.hidden_states(inputs_embeds, start if use_start else None)
        logits = language_model.logits(hidden)
        logits = logits if low else logits.float()
        T = labels.shape[1]
        if shift == 1:
            logits, labels = logits[:, : T - 1], labels[:, 1:]
        elif shift == -1:
            logits, labels = logits[:, 1:], labels[:, : T - 1]
        elif shift == 2:
            logits, labels = logits[:, : max(T - 2, 0)], labels[:, 2:]
        if check and not (labels != -100).any():
            raise ValueError("no label is a target")
        if reduction == "rows":
            losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
            counts = (labels != -100).sum(1)
            return (losses.sum(1) / counts.clamp(min=1))[counts > 0].mean()
        if reduction == "all":
            return (
                F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
                / labels.numel()
            )
        if not ignore:
            labels = labels.clamp(min=0)
        return F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100 if ignore != "zero" else 0, reduction=reduction
        )

    return next_token_loss


for sentence, options in {
    "the labels are not shifted: the logits at t are compared with label t, the word that stands there already": {
        "shift": 0
    },
    "you shift the wrong way: the logits at t must be compared with label t + 1, not with t - 1": {"shift": -1},
    "you shift twice: the logits at t are compared with label t + 2": {"shift": 2},
    "the labels of -100 count in yours, as if they were id 0": {"ignore": False},
    "you take the sum; it is the mean over all targets": {"reduction": "sum"},
    "you divide by the number of positions; it is the mean over the targets alone": {"reduction": "all"},
    "you average each row and then the rows: a short answer would weigh as much as a long one; it is the mean over all targets of the batch": {
        "reduction": "rows"
    },
    "the loss is computed in bfloat16, which has three digits: go to float32 first": {"low": True},
    "start is not passed on: padding on the left is read as text": {"use_start": False},
    "without a target the loss is 0 / 0 = NaN: raise ValueError": {"check": False},
}.items():
    mistake("loss", "next_token_loss", sentence)(loss_variant(**options))
