"""LLaMA, a decoder-only transformer; Vicuna is LLaMA trained further on conversations.

LLaMA (arXiv 2302.13971), section 2.2: RMSNorm before each part (arXiv 1910.07467), rotary positions (arXiv 2104.09864),
SwiGLU (arXiv 2002.05202); grouped-query attention (arXiv 2305.13245). input_ids (B, T) -> logits (B, T, V). Differs
from the textbook: RMSNorm is computed in fp32 and cast back *before* its weight; RoPE pairs number i of a head with
number i + D / 2, not with its neighbour.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.attention import attention, implementations
from minillava.config import TextConfig
from minillava.kv_cache import KVCache
from minillava.vision import normal


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight. No mean is subtracted and no bias added."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed = x.float()
    normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def rope_frequencies(config: TextConfig) -> Tensor:
    """theta^(-2i/D), the angle in radians by which pair i turns from one position to the next: (D / 2,) fp32.

    Scaling lengthens the context.
    """
    D = config.head_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, dtype=torch.float32, device="cpu") / D)
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "linear":
        return frequencies / scaling["factor"]
    # low frequencies are divided by `factor`, high ones kept, those between blended
    if scaling.get("rope_type") == "llama3":
        wavelength = 2 * math.pi / frequencies
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        blend = ((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - blend) * frequencies / scaling["factor"] + blend * frequencies
    return frequencies


def rope_tables(frequencies: Tensor, start: int, end: int, dtype, device) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency for the positions start..end-1: (T, D) each, its two halves alike."""
    positions = torch.arange(start, end, dtype=torch.float32, device=device)
    angles = positions[:, None] * frequencies.to(device)  # (T, D / 2)
    angles = torch.cat([angles, angles], -1)  # (T, D)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + D/2}) by its position's angle.

    q k^T then depends on the distance of two positions alone.
    """
    first, second = x.chunk(2, -1)  # (B, H, T, D / 2) each
    return x * cos + torch.cat([-second, first], -1) * sin  # (B, H, T, D)


class Attention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, layer, cache, start, implementation):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, D)
            if k.dtype != q.dtype:  # the cache has a type of its own
                k, v = k.to(q.dtype), v.to(q.dtype)
        past = None if cache is None else cache.past
        x = attention(q, k, v, causal=True, implementation=implementation, start=start, past=past)
        return self.o_proj(x.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, layer, cache, start, implementation):
        if implementation == "triton" and can_fuse(self, cache):
            from minillava.kernels.decoder_layer import decoder_layer  # Triton comes with PyTorch for CUDA alone

            return decoder_layer(self, x, cos, sin, layer, cache, start)
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layer, cache, start, implementation)
        return x + self.mlp(self.post_attention_layernorm(x))


# what the fused kernels compute without calling it
FUSED = (rms_norm, apply_rope, KVCache.append, implementations()["triton"], MLP)


def can_fuse(layer: DecoderLayer, cache: KVCache | None) -> bool:
    """Not where a lesson has replaced a part, which must be called then, nor where a gradient has to pass a cache."""
    parts = (rms_norm, apply_rope, KVCache.append, implementations()["triton"], type(layer.mlp))
    return parts == FUSED and not (cache is not None and torch.is_grad_enabled())


class LanguageModel(nn.Module):
    def __init__(self, config: TextConfig, attention: str = "sdpa"):
        super().__init__()
        self.config, self.attention = config, attention
        weight = normal(config.vocab_size, config.hidden_size, std=0.02)
        # a ready weight, since Embedding's own init is slow on the meta device
        self.embed_tokens = nn.Embedding(*weight.shape, _weight=weight)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.frequencies = rope_frequencies(config)  # (D / 2,): a constant, so neither a parameter nor in the files

    def hidden_states(self, inputs_embeds, start: Tensor | None = None, cache: KVCache | None = None):
        """(B, T, C) -> (B, T, C), after the last norm.

        `start` int64 is the first position that each row (B,) or each query (B, T) may see; a cache keeps (B,) for the
        positions to come. What stands before it shifts the positions of what is seen, which changes nothing, since
        RoPE is relative.
        """
        past, T = (0 if cache is None else cache.length), inputs_embeds.shape[1]
        cos, sin = rope_tables(self.frequencies, past, past + T, inputs_embeds.dtype, inputs_embeds.device)  # (T, D)
        if cache is not None:
            cache.start = start = cache.start if start is None else start
        hidden = self.run_layers(inputs_embeds, cos, sin, start, cache)
        if cache is not None:
            cache.length += T
        return hidden

    def run_layers(self, x, cos, sin, start, cache):
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, index, cache, start, self.attention)
        return self.norm(x)  # (B, T, C)

    def logits(self, hidden):
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)  # (..., V)

    def forward(self, input_ids, attention_mask=None, cache: KVCache | None = None, last_only: bool = False):
        """(B, T) -> logits (B, T, V), or (B, 1, V) of the last position. `attention_mask`: see `first_tokens`."""
        hidden = self.hidden_states(self.embed_tokens(input_ids), first_tokens(attention_mask), cache)
        return self.logits(hidden[:, -1:] if last_only else hidden)


def first_tokens(attention_mask: Tensor | None) -> Tensor | None:
    """`start` (B,) of a batch that is padded on the left, whose mask (B, S) is 1 for a token and 0 for padding. None
    where no row is: padding on the right needs nothing, since attention is causal.
    """
    if attention_mask is not None and (attention_mask > 1).any():
        raise ValueError("attention_mask is 1 for a token and 0 for padding; packed rows are told by `start`")
    if attention_mask is None or attention_mask[:, 0].all():
        return None
    return attention_mask.long().argmax(-1)
