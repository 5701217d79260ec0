"""What lessons/exercises/e07_merge.py is tried on."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lessons import specs
from lessons.trials.base import SEEDS, Case, Property, Raises, draw, integers, random


class TextOnly(nn.Module):
    """What `merge` needs of a Llava: config.image_token_id, here larger than the embedding table, and embed_text."""

    def __init__(self, width: int = 8, dtype=torch.float32):
        super().__init__()
        self.config = SimpleNamespace(image_token_id=61)
        self.table = random(20, width, seed=1, dtype=dtype)

    def embed_text(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.table)


def cases():
    def case(name, ids, rows, dtype=torch.float32, expected=None):
        def run(parts):
            input_ids = torch.tensor(ids)
            return parts.merge(TextOnly(dtype=dtype), input_ids, random(rows, 8, seed=rows)), input_ids

        return Case(name, run, expected)

    def in_bfloat16():
        merged, ids = case("", [[3, 61, 61]], 2).run(specs)
        merged[0, 0] = TextOnly(dtype=torch.bfloat16).table[3]
        return merged.to(torch.bfloat16), ids

    return [
        case("a picture of 2 rows between two words", [[1, 61, 61, 5]], 2),
        case("two rows of text, each with a picture", [[1, 61, 61, 61, 7, 8], [0, 9, 61, 61, 61, 2]], 6),
        case("a picture at the end, and a text without one", [[4, 5, 61, 61], [6, 7, 8, 9]], 2),
        case("text in bfloat16 and a picture in float32", [[3, 61, 61]], 2, torch.bfloat16, in_bfloat16),
        case("more placeholders than rows", [[1, 61, 61, 61, 5]], 2, expected=lambda: Raises("ValueError")),
        case("fewer placeholders than rows", [[1, 61, 61, 5]], 3, expected=lambda: Raises("ValueError")),
    ]


def properties():
    def drawn(seed, B, T):
        ids = torch.randint(0, 20, (B, T), generator=torch.Generator().manual_seed(seed))
        ids[random(B, T, seed=seed) > 0.3] = 61
        return ids

    def words(parts):
        @draw(seed=integers(0, SEEDS), B=integers(1, 3), T=integers(1, 6))
        def test(seed, B, T):
            ids, model = drawn(seed, B, T), TextOnly()
            is_image = ids == 61
            features = random(int(is_image.sum()), 8, seed=seed + 1)
            merged = parts.merge(model, ids, features)
            assert torch.equal(merged[is_image], features)
            assert torch.equal(merged[~is_image], model.table[ids[~is_image]])

    return [Property("words keep their embeddings, and the rows come in order", words)]
