"""The merge: the picture's embeddings take the places that were kept for them among those of the text.

The prompt holds one placeholder, the id self.config.image_token_id, for each row of image_features. The rows go in
order into the places of the placeholders, reading the batch row by row; every other id gets its embedding,
self.embed_text(ids). The placeholder's id may be larger than the embedding table, so put another id, such as 0, in its
place before you embed. Raise ValueError when there are more or fewer placeholders than rows.

Shapes: input_ids (B, T), image_features (R, C) -> (B, T, C), in the dtype of the text's embeddings. This is a method of
Llava, so it takes `self`.

    >>> input_ids = torch.tensor([[1, 61, 61, 5]])      # a model whose image_token_id is 61
    >>> merge(model, input_ids, torch.full((2, 8), 7.0))[0, :, 0] == 7
    tensor([False,  True,  True, False])

About 5 lines. Check it: python -m lessons.check merge
"""

import torch  # noqa: F401
from torch import Tensor

REPLACES = "minillava.model.Llava.merge"


def merge(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
    raise NotImplementedError("merge has to put image_features in the places of the placeholders")
