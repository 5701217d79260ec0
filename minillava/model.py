"""LLaVA: a vision tower, a projector and a language model; a picture becomes P embeddings that stand among the words'.

Visual Instruction Tuning (arXiv 2304.08485), section 4.1. input_ids (B, T), which already hold P placeholders a picture, and pixel_values
(N, 3, S, S), one for each picture of the batch in reading order -> logits (B, T, V). The loss lives in training.py.
LLaVA-NeXT gives several views of a picture, and `image_sizes` (N, 2), each picture's width and height, to lay them out by (anyres.py).
"""

import torch
from torch import Tensor, nn

from minillava.anyres import Tiling, arrange
from minillava.config import LlavaConfig
from minillava.kv_cache import KVCache
from minillava.language_model import LanguageModel
from minillava.projector import Projector
from minillava.vision import VisionTransformer


class Llava(nn.Module):
    def __init__(self, config: LlavaConfig, attention: str = "sdpa"):
        super().__init__()
        self.config = config
        keep_cls = config.vision_feature_select_strategy == "full"
        self.vision_tower = VisionTransformer(config.vision_config, config.vision_feature_layer, keep_cls, attention)
        self.projector = Projector(config)
        self.language_model = LanguageModel(config.text_config, attention)
        if config.image_grid_pinpoints:  # LLaVA-NeXT
            width = config.text_config.hidden_size
            self.image_newline = nn.Parameter(torch.randn(width) / width**0.5)

    def embed_image(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """(N, 3, S, S) -> (N, P, C): what the language model sees of a picture. LLaVA-NeXT: all pictures' views (V, 3, S, S) -> (R, C)."""
        features = self.projector(self.vision_tower(pixel_values))  # (N, P, C)
        if not self.config.image_grid_pinpoints:
            return features
        vision = self.config.vision_config
        tilings = [Tiling.of(size, self.config.image_grid_pinpoints, vision.image_size, vision.patch_size) for size in image_sizes.tolist()]
        pictures = features.split([tiling.views for tiling in tilings])
        return torch.cat([arrange(*picture, self.image_newline) for picture in zip(pictures, tilings, strict=True)])  # (R, C)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)."""
        return self.language_model.embed_tokens(input_ids)

    def merge(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """Put the picture's rows where its placeholders stand: (B, T), (N, P, C) or (R, C) -> (B, T, C). ValueError when they differ in number."""
        is_image = input_ids == self.config.image_token_id  # (B, T)
        slots, rows = int(is_image.sum()), image_features.shape[:-1].numel()
        if slots != rows:
            each = f": each picture needs {image_features.shape[1]}" if image_features.ndim == 3 else ""
            raise ValueError(f"the prompt holds {slots} image tokens and the pictures give {rows} features{each}")
        embeds = self.embed_text(input_ids.masked_fill(is_image, 0))  # (B, T, C)
        return embeds.masked_scatter(is_image[..., None], image_features.to(embeds.dtype))

    def embed(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, image_features: Tensor | None = None, image_sizes: Tensor | None = None
    ) -> Tensor:
        """Words and pictures as one sequence of embeddings: (B, T, C). `image_features` (N, P, C) stand in for pictures encoded before."""
        if pixel_values is not None:
            image_features = self.embed_image(pixel_values, image_sizes)
        if image_features is None:
            image_features = self.projector.linear_1.weight.new_empty(0, self.config.image_tokens, self.config.text_config.hidden_size)
        return self.merge(input_ids, image_features)

    def forward(self, input_ids, pixel_values=None, attention_mask=None, cache: KVCache | None = None, last_only: bool = False, image_sizes=None):
        """(B, T) -> logits (B, T, V), or (B, 1, V) of the last position."""
        embeds = self.embed(input_ids, pixel_values, image_sizes=image_sizes)  # (B, T, C)
        hidden = self.language_model.hidden_states(embeds, attention_mask, cache)
        return self.language_model.logits(hidden[:, -1:] if last_only else hidden)
