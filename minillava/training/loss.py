"""The loss of next-token prediction: the mean cross-entropy of the supervised tokens.

The head runs on the supervised positions alone. Where even their logits are too many, it runs on chunks of them:
LLaMA-7B's logits of 2,048 tokens are 2,048 x 32,000 float32 numbers, 262 MB, and a naive loss keeps three such tensors,
the logits, their softmax and its gradient. There each chunk's gradient is computed at once, and its logits are
forgotten before the next.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minillava.inputs.conversation import IGNORE_INDEX

MANY_LOGITS = 1 << 25  # logits, supervised or not, from which chunks are worth the trouble
CHUNK = 1 << 23  # logits that are held at once: 32 MB in float32


def supervised_logits(
    language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (tokens, V) in float32 and targets (tokens,) of the supervised tokens: position t predicts label t + 1.

    inputs_embeds (B, T, C), labels (B, T) with -100 where there is no loss.
    """
    hidden, targets = supervised_states(language_model, inputs_embeds, labels, start)
    return language_model.logits(hidden).float(), targets


def supervised_states(language_model, inputs_embeds, labels, start) -> tuple[Tensor, Tensor]:
    """The hidden states (tokens, C) from which the supervised tokens are predicted, and these, (tokens,).

    Raises ValueError where no token is supervised.
    """
    hidden = language_model.hidden_states(inputs_embeds, start)  # (B, T, C)
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX  # (B, T - 1)
    if not supervised.any():
        raise ValueError("no token of this batch is supervised: every label is -100")
    return hidden[:, :-1][supervised], targets[supervised]


def next_token_loss(language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None):
    """Mean cross-entropy of the supervised tokens. Raises ValueError where no token is supervised."""
    logits, targets = supervised_logits(language_model, inputs_embeds, labels, start)
    return F.cross_entropy(logits, targets)


def chunked_loss(language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None) -> Tensor:
    """The same, without ever keeping all logits."""
    hidden, targets = supervised_states(language_model, inputs_embeds, labels, start)
    head = language_model.embed_tokens if language_model.lm_head is None else language_model.lm_head
    return ChunkedCrossEntropy.apply(hidden, head.weight, targets)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean of logsumexp(z) - z[target] with z = W h, whose gradient by z is (softmax(z) - onehot(target)) / N.

    hidden (N, C), weight (V, C), targets (N,) -> (). The products are in autocast's dtype, the rest in float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        device, N = hidden.device.type, len(targets)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        w = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        rows = max(1, CHUNK // len(weight))
        with torch.autocast(device, enabled=False):
            for h, target, grad in zip(
                hidden.to(dtype).split(rows), targets.split(rows), grad_hidden.split(rows), strict=True
            ):
                z = (h @ w.T).float()  # (rows, V)
                lse = z.logsumexp(-1, keepdim=True)  # (rows, 1)
                total += (lse - z.gather(1, target[:, None])).sum()
                z = z.sub_(lse).exp_()  # the probabilities, in the logits' place
                z.scatter_add_(1, target[:, None], z.new_full((len(target), 1), -1.0))
                z = z.div_(N).to(dtype)
                grad.copy_(z @ w)  # (rows, C)
                if grad_weight is not None:
                    grad_weight += z.T @ h  # (V, C)
        ctx.save_for_backward(grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype))
        return total / N

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad * grad_hidden, None if grad_weight is None else grad * grad_weight, None
