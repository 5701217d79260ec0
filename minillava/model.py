"""LLaVA: a vision tower, a projector and a language model. A picture becomes P embeddings that stand among those of the
text.

Visual Instruction Tuning (arXiv 2304.08485), section 4.1. input_ids (B, T), which already hold P placeholders for each
picture, and pixel_values (N, 3, E, E), the batch's pictures in reading order -> logits (B, T, V). The loss is in
training/. LLaVA-NeXT gives several views of a picture, and image_sizes (pictures, 2), width and height, from which
anyres.py knows how they lie.
"""

from torch import Tensor, nn

from minillava.anyres import arrange
from minillava.config import LlavaConfig
from minillava.language_model import LanguageModel, first_tokens
from minillava.projector import Projector
from minillava.vision import VisionTransformer, normal


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
            self.image_newline = nn.Parameter(normal(width, std=width**-0.5))

    def embed_image(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Pictures (N, 3, E, E) -> (R, C), one row for each placeholder: N * P rows, in LLaVA-NeXT as many as the
        pictures' shapes ask for.
        """
        return self.project(self.vision_tower(pixel_values), image_sizes)  # (R, C)

    def project(self, features: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """The tower's features (N, P, C) as the language model's embeddings (R, C)."""
        features = self.projector(features)  # (N, P, C)
        if not self.config.image_grid_pinpoints:
            return features.flatten(0, 1)  # (R, C)
        pinpoints, vision = self.config.image_grid_pinpoints, self.config.vision_config
        return arrange(features, image_sizes, self.image_newline, pinpoints, vision)  # (R, C)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)."""
        return self.language_model.embed_tokens(input_ids)

    def merge(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        """The pictures' rows (R, C) in the places of their placeholders: (B, T) -> (B, T, C).

        ValueError when their numbers differ.
        """
        is_image = input_ids == self.config.image_token_id  # (B, T)
        if int(is_image.sum()) != len(image_features):
            raise ValueError(
                f"the prompt holds {int(is_image.sum())} image tokens, "
                f"but the pictures have {len(image_features)} embeddings"
            )
        embeds = self.embed_text(input_ids.masked_fill(is_image, 0))  # (B, T, C)
        return embeds.masked_scatter(is_image[..., None], image_features.to(embeds.dtype))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, image_sizes: Tensor | None = None) -> Tensor:
        """Text and pictures as one sequence: (B, T) -> (B, T, C)."""
        if pixel_values is not None:
            return self.merge(input_ids, self.embed_image(pixel_values, image_sizes))
        if (input_ids == self.config.image_token_id).any():
            raise ValueError("the prompt holds image tokens, but no picture is given")
        return self.embed_text(input_ids)

    def forward(self, input_ids, pixel_values=None, attention_mask=None, cache=None, last_only=False, image_sizes=None):
        """(B, T) -> logits (B, T, V), or (B, 1, V) of the last position.

        attention_mask (B, S): see `first_tokens`. cache: a KVCache, which the positions of this call are added to.
        """
        embeds = self.embed(input_ids, pixel_values, image_sizes)  # (B, T, C)
        hidden = self.language_model.hidden_states(embeds, first_tokens(attention_mask), cache)
        return self.language_model.logits(hidden[:, -1:] if last_only else hidden)
