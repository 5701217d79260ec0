"""CLIP's vision transformer, as LLaVA uses it: a picture becomes the features of its patches, taken after the last
block but one.

Learning Transferable Visual Models (arXiv 2103.00020), section 2.4; LLaVA (arXiv 2304.08485), section 4.1. pixel_values
(B, 3, E, E) -> features (B, P, C). Differs from the textbook ViT: quick-GELU, a LayerNorm *before* the first block (its
key in the files is misspelt `pre_layrnorm`), and LLaVA stops at layer -2 and drops CLS, so the last block and
`post_layernorm` are never run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.attention import attention
from minillava.config import VisionConfig
from minillava.errors import UserError


def normal(*shape: int, std: float) -> Tensor:
    """Normal numbers of mean 0; on the meta device a tensor without numbers, since drawing them there imports sympy, a
    second at each start.
    """
    numbers = torch.empty(*shape)
    return numbers if numbers.is_meta else torch.randn(*shape).mul_(std)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def patchify(pixel_values: Tensor, patch_size: int) -> Tensor:
    """Cut pictures into patches of p x p pixels, row by row: (B, 3, E, E) -> (B, P, 3 * p * p), a patch's pixels
    channel by channel.
    """
    x = pixel_values.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)  # (B, 3, rows, columns, p, p)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, P, 3 * p * p)


class PatchEmbedding(nn.Module):
    """One linear map for each patch, CLS before them, and a learnt position added to each."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.class_embedding = nn.Parameter(normal(config.hidden_size, std=0.02))
        C, p = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, C, p, p, bias=False)
        positions = normal(config.num_patches + 1, C, std=0.02)
        self.position_embedding = nn.Embedding(*positions.shape, _weight=positions)

    def forward(self, pixel_values):
        # (C, 3, p, p): a convolution in the files, which is this matrix, since its stride is its kernel
        weight = self.patch_embedding.weight
        patches = F.linear(patchify(pixel_values.to(weight.dtype), weight.shape[-1]), weight.flatten(1))  # (B, P, C)
        cls = self.class_embedding.expand(len(patches), 1, -1).to(patches.dtype)  # (B, 1, C)
        return torch.cat([cls, patches], 1) + self.position_embedding.weight  # (B, 1 + P, C)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        C = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(C, C) for _ in range(4))

    def forward(self, x, implementation):
        B, T, C = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).view(B, T, self.heads, -1).transpose(1, 2) for project in projections)  # (B, H, T, D)
        x = attention(q, k, v, causal=False, implementation=implementation)
        return self.out_proj(x.transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.quick = config.hidden_act == "quick_gelu"
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        x = self.fc1(x)  # (B, T, intermediate)
        x = quick_gelu(x) if self.quick else F.gelu(x)
        return self.fc2(x)  # (B, T, C)


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x, implementation):
        x = x + self.self_attn(self.layer_norm1(x), implementation)
        return x + self.mlp(self.layer_norm2(x))


class VisionTransformer(nn.Module):
    """The tower. `feature_layer` counts as transformers' hidden_states: 0 is the embeddings, -1 the last block's
    output, -2 the one before.
    """

    def __init__(self, config: VisionConfig, feature_layer: int = -2, keep_cls: bool = False, attention: str = "sdpa"):
        super().__init__()
        depth = config.num_hidden_layers + 1
        if not -depth <= feature_layer < depth:
            counted = f"the vision tower has {depth} feature layers, counted from 0 or from -1 back"
            raise UserError(f"{counted}: there is no {feature_layer}")
        self.config, self.feature_layer, self.keep_cls, self.attention = config, feature_layer, keep_cls, attention
        self.embeddings = PatchEmbedding(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))
        # for CLIP's pooled CLS, which LLaVA never uses
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values):
        """(B, 3, E, E), normalized -> (B, P, C), or (B, 1 + P, C) where CLS is kept."""
        blocks = self.feature_layer if self.feature_layer >= 0 else len(self.layers) + 1 + self.feature_layer
        x = self.pre_layrnorm(self.embeddings(pixel_values))  # (B, 1 + P, C)
        for layer in self.layers[:blocks]:
            x = layer(x, self.attention)
        return x if self.keep_cls else x[:, 1:]  # (B, P, C)
