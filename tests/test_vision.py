"""The patch embedding: patches in order, equal to the convolution that it is in the files."""

import pytest
import torch
import torch.nn.functional as F

from minillava import vision
from minillava.config import VisionConfig
from minillava.vision import PatchEmbedding, VisionTransformer, patchify


def test_patches_by_hand():
    pixel_values = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    patches = patchify(pixel_values, 2)
    assert patches.shape == (2, 4, 12)
    for index, (y, x) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
        assert torch.equal(patches[:, index], pixel_values[:, :, y : y + 2, x : x + 2].flatten(1))


@pytest.mark.parametrize(
    ("image_size", "patch_size"), [(28, 7), (32, 8), (30, 7)], ids=["fits", "even", "a remainder is left out"]
)
def test_the_embedding_is_the_convolution(image_size, patch_size):
    torch.manual_seed(0)
    config = VisionConfig(hidden_size=24, num_attention_heads=3, image_size=image_size, patch_size=patch_size)
    embeddings, pixel_values = PatchEmbedding(config), torch.randn(2, 3, image_size, image_size)
    weight = embeddings.patch_embedding.weight
    assert weight.shape == (24, 3, patch_size, patch_size)  # as in the files
    patches = F.conv2d(pixel_values, weight, stride=patch_size).flatten(2).transpose(1, 2)
    expected = (
        torch.cat([embeddings.class_embedding.expand(2, 1, -1), patches], 1) + embeddings.position_embedding.weight
    )
    assert torch.allclose(embeddings(pixel_values), expected, atol=1e-6)


def test_patchify_is_looked_up_when_called(monkeypatch):
    """A student's version that takes the place of ours is the one that runs."""
    tower = VisionTransformer(VisionConfig(24, 37, 2, 3, 14, 7))
    pixel_values, calls = torch.randn(1, 3, 14, 14), []
    expected = tower(pixel_values)
    monkeypatch.setattr(vision, "patchify", lambda *arguments: calls.append(arguments[1]) or patchify(*arguments))
    assert torch.equal(tower(pixel_values), expected) and calls == [7]
