"""The exercises' definitions, written to be obviously right: one number at a time where that is possible, and slow.

The check compares a student's part with these. A class is defined by a function of its weights, {name: tensor}, and of
its input.
"""

import math

import torch
from torch import Tensor


# ------------------------------------------------------------ 01 to 03: the tower
def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    p, (_, channels, height, width) = patch_size, pixel_values.shape
    pictures = []
    for picture in pixel_values:
        patches = []
        for top in range(0, height, p):
            for left in range(0, width, p):
                patches.append(
                    torch.stack(
                        [picture[c, top + y, left + x] for c in range(channels) for y in range(p) for x in range(p)]
                    )
                )
        pictures.append(torch.stack(patches))
    return torch.stack(pictures)  # (B, P, 3 * p * p)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, start: Tensor | None = None) -> Tensor:
    (B, H, T, D), (_, K, S, _) = q.shape, k.shape
    out = torch.zeros(B, H, T, D, dtype=q.dtype)
    for b in range(B):
        for h in range(H):
            head = h // (H // K)  # the key/value head that this query head shares
            for t in range(T):
                first = 0 if start is None else int(start[b])
                last = S - T + t if causal else S - 1
                keys = list(range(first, last + 1))
                if keys:
                    scores = torch.stack([q[b, h, t] @ k[b, head, s] / math.sqrt(D) for s in keys])
                    exponentials = (scores - scores.max()).exp()
                    out[b, h, t] = sum(e * v[b, head, s] for e, s in zip(exponentials, keys)) / exponentials.sum()
    return out  # (B, H, T, D)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def vision_layer(weights: dict[str, Tensor], x: Tensor, heads: int, eps: float) -> Tensor:
    B, T, C = x.shape
    normed = layer_norm(x, weights["layer_norm1.weight"], weights["layer_norm1.bias"], eps)
    q, k, v = (
        linear(normed, weights, f"self_attn.{name}_proj").view(B, T, heads, C // heads).transpose(1, 2)
        for name in "qkv"
    )
    attended = eager_attention(q, k, v, causal=False).transpose(1, 2).reshape(B, T, C)
    x = x + linear(attended, weights, "self_attn.out_proj")
    normed = layer_norm(x, weights["layer_norm2.weight"], weights["layer_norm2.bias"], eps)
    inner = linear(normed, weights, "mlp.fc1")
    return x + linear(inner * torch.sigmoid(1.702 * inner), weights, "mlp.fc2")  # (B, T, C)


def phrase_scores(patches: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    rows = []
    for picture in patches:
        row = []
        for text in texts:
            cosines = torch.stack([patch @ text / patch.norm() / text.norm() for patch in picture])
            most = (scale * cosines).max()
            row.append(most + (scale * cosines - most).exp().sum().log() + bias)
        rows.append(torch.stack(row))
    return torch.stack(rows)  # (B, N)


def contrastive_loss(scores: Tensor, true: Tensor) -> Tensor:
    total = 0.0
    for b in range(scores.shape[0]):
        for n in range(scores.shape[1]):
            wrong = -float(scores[b, n]) if true[b, n] else float(scores[b, n])
            total += max(wrong, 0.0) + math.log1p(math.exp(-abs(wrong)))  # log(1 + exp(wrong)), which cannot overflow
    return torch.tensor(total / scores.shape[0])


# ------------------------------------------------------------ 04: text
def merge_pieces(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    for pair in sorted(ranks, key=ranks.get):
        for i in range(len(pieces) - 1):
            # no pair of a lower rank is there: join, and begin again from the lowest rank
            if (pieces[i], pieces[i + 1]) == pair:
                return merge_pieces([*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]], ranks)
    return list(pieces)


def label_mask(ids: list[int], offsets: list[tuple[int, int]], supervised_at: list[bool]) -> list[int]:
    labels = []
    for token_id, (start, end) in zip(ids, offsets):
        if start == end or not supervised_at[end - 1]:
            labels.append(-100)
        else:
            labels.append(token_id)
    return labels


# ------------------------------------------------------------ 05, 06: the decoder
def rope_tables(frequencies: Tensor, start: int, end: int, dtype, device) -> tuple[Tensor, Tensor]:
    half = len(frequencies)
    angles = [
        [float(torch.tensor(float(m)) * frequencies[i % half]) for i in range(2 * half)] for m in range(start, end)
    ]
    cos = torch.tensor([[math.cos(angle) for angle in row] for row in angles])
    sin = torch.tensor([[math.sin(angle) for angle in row] for row in angles])
    return cos.to(dtype), sin.to(dtype)  # (T, D) each


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out, half = torch.zeros_like(x), x.shape[-1] // 2
    for t in range(x.shape[2]):
        for i in range(half):
            first, second = x[:, :, t, i], x[:, :, t, i + half]
            out[:, :, t, i] = first * cos[t, i] - second * sin[t, i]
            out[:, :, t, i + half] = second * cos[t, i + half] + first * sin[t, i + half]
    return out  # (B, H, T, D)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    vectors = []
    for vector in x.reshape(-1, x.shape[-1]).double():
        root = math.sqrt(sum(float(number) ** 2 for number in vector) / len(vector) + eps)
        vectors.append(vector / root)
    return weight * torch.stack(vectors).view(x.shape).to(x.dtype)


def mlp(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    gate = linear(x, weights, "gate_proj")
    return linear(gate / (1 + torch.exp(-gate)) * linear(x, weights, "up_proj"), weights, "down_proj")


def decoder_layer(
    weights: dict[str, Tensor],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    head_dim: int,
    eps: float,
    start: Tensor | None = None,
) -> Tensor:
    B, T, _ = x.shape
    normed = rms_norm(x, weights["input_layernorm.weight"], eps)
    q, k, v = (
        linear(normed, weights, f"self_attn.{name}_proj").view(B, T, -1, head_dim).transpose(1, 2) for name in "qkv"
    )
    attended = (
        eager_attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v, causal=True, start=start)
        .transpose(1, 2)
        .reshape(B, T, -1)
    )
    x = x + linear(attended, weights, "self_attn.o_proj")
    normed = rms_norm(x, weights["post_attention_layernorm.weight"], eps)
    return x + mlp({name.removeprefix("mlp."): w for name, w in weights.items() if name.startswith("mlp.")}, normed)


# ------------------------------------------------------------ 07: the bridge
def projector(weights: dict[str, Tensor], features: Tensor) -> Tensor:
    x = linear(features, weights, "linear_1")
    if "linear_2.weight" not in weights:
        return x
    return linear(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), weights, "linear_2")


def merge(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
    rows, placeholder = list(image_features), self.config.image_token_id
    if int((input_ids == placeholder).sum()) != len(rows):
        raise ValueError("the placeholders are not as many as the rows")
    sequences = []
    for ids in input_ids.tolist():
        sequences.append(
            torch.stack([rows.pop(0) if i == placeholder else self.embed_text(torch.tensor([[i]]))[0, 0] for i in ids])
        )
    return torch.stack(sequences)  # (B, T, C)


# ------------------------------------------------------------ 08: speaking
def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if self.length + k.shape[2] > self.capacity:
        raise ValueError("the cache is full")
    for t in range(k.shape[2]):
        for b in range(k.shape[0]):
            self.keys[layer, b, :, self.length + t] = k[b, :, t]
            self.values[layer, b, :, self.length + t] = v[b, :, t]
    end = self.length + k.shape[2]
    return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """(B, V): the probability with which `sample` draws each id."""
    rows = []
    for row in logits.double():
        if temperature == 0:
            weights = [float(i == int(row.argmax())) for i in range(len(row))]
        else:
            weights = [math.exp((float(number) - float(row.max())) / temperature) for number in row]
            if top_k:
                weakest = sorted(weights, reverse=True)[min(top_k, len(weights)) - 1]
                weights = [weight if weight >= weakest else 0.0 for weight in weights]
            if top_p < 1:
                total, reached = sum(weights), 0.0
                for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
                    if reached >= top_p * total:
                        weights[i] = 0.0
                    reached += weights[i]
        rows.append(torch.tensor(weights, dtype=torch.float64) / sum(weights))
    return torch.stack(rows)


def sample(logits: Tensor, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, generator=None) -> Tensor:
    return torch.multinomial(distribution(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0]


# ------------------------------------------------------------ 11: training
def set_trainable(model, stage: int) -> None:
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part == "projector":
            parameter.requires_grad = True
        elif part == "language_model":
            parameter.requires_grad = stage == 2
        else:
            parameter.requires_grad = False


def learning_rate(step: int, config) -> float:
    warmup = max(1, round(config.max_steps * config.warmup_ratio))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    share_done = (step - warmup) / max(1, config.max_steps - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * share_done)) / 2


def next_token_loss(language_model, inputs_embeds: Tensor, labels: Tensor, start: Tensor | None = None) -> Tensor:
    logits = language_model.logits(language_model.hidden_states(inputs_embeds, start)).float()
    losses = []
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            if labels[b, t + 1] != -100:
                losses.append(logits[b, t].logsumexp(-1) - logits[b, t, labels[b, t + 1]])
    if not losses:
        raise ValueError("no label is a target")
    return torch.stack(losses).mean()
