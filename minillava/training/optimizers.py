"""The learning rate's schedule, and which optimizer trains which parameter: AdamW, or Muon for the matrices inside.

Muon is momentum whose update is made orthogonal ("Muon is Scalable for LLM Training", arXiv 2502.16982, section 2). A
matrix's momentum is usually dominated by a few directions; Muon replaces it by the nearest orthogonal matrix, so that
rare directions are learnt as fast as the common ones. The update of an (A, B) matrix is scaled by 0.2 sqrt(max(A, B)),
which gives it the size of an AdamW update: both optimizers then share one learning rate and one weight decay.

What differs from torch.optim.Muon: the Newton-Schulz steps run in float32. In bfloat16, which torch uses, one step of
the tiny model took 8.6 s in place of 0.3 s on a CPU without bfloat16 instructions.
"""

import math

import torch
from torch import Tensor, nn

from minillava.distributed import full_tensor, sharded_like
from minillava.training.recipes import LoopConfig

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of a X + b (X X^T) X + c (X X^T)^2 X, which drives singular values towards 1


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(config.max_steps * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.max_steps - warmup)))


def make_optimizers(module: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for every trained parameter, or Muon for the weights of linear layers and AdamW for the rest.

    Muon is for maps between hidden vectors: the linear layers of blocks and projector. Embeddings and the head, whose
    rows belong to single tokens, are AdamW's, as are norms and biases, which are no matrices. Norms and biases do not
    decay.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    linear = {
        m.weight for name, m in module.named_modules() if isinstance(m, nn.Linear) and not name.endswith("lm_head")
    }
    hidden = {name: p for name, p in trained.items() if p in linear and config.optimizer == "muon"}
    rest = {name: p for name, p in trained.items() if name not in hidden}
    matrices = {name: p for name, p in rest.items() if p.ndim >= 2}
    vectors = {name: p for name, p in rest.items() if p.ndim < 2}
    groups = groups_by_rate(matrices, config, 0.0 if hidden else config.weight_decay) + groups_by_rate(vectors, config)
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, config.adam_beta2), eps=1e-8)
    return [adamw, Muon(groups_by_rate(hidden, config, config.weight_decay), lr=0.0)] if hidden else [adamw]


def groups_by_rate(parameters: dict[str, Tensor], config: LoopConfig, weight_decay: float = 0.0) -> list[dict]:
    """The optimizer's groups of these parameters: one for each learning rate, which is `rate_factor` times the
    schedule's.
    """
    groups: dict[float, list[Tensor]] = {}
    for name, p in parameters.items():
        groups.setdefault(config.rate_factor(name), []).append(p)
    return [{"params": ps, "weight_decay": weight_decay, "rate_factor": factor} for factor, ps in groups.items()]


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal. Every parameter must be a matrix; embeddings, norms and biases are AdamW's."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonalize(full_tensor(p.grad.lerp(average, momentum)))  # Nesterov: look one step ahead
                # Of several processes each computes the whole update, and takes its rows.
                p.mul_(1 - lr * decay).add_(sharded_like(update, p), alpha=-lr * 0.2 * max(p.shape) ** 0.5)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """U V^T of the singular value decomposition U S V^T, approximately: every singular value ends between about 0.7 and
    1.2.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
