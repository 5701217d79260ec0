"""The tiny world's "CLIP": a vision tower, from scenes and phrases.

The recipe is CLIP's (arXiv 2103.00020): a tower and a small text encoder learn which text belongs to which picture. Two
changes come from CLIP's successors, because LLaVA reads patches and not the pooled vector: a phrase is compared with
every patch and the best ones count (late interaction, FILIP, arXiv 2111.07783; a soft maximum here), and each pair of
picture and phrase is a yes or no of its own (the sigmoid loss of SigLIP, arXiv 2303.15343), since "a cat" is true of
many pictures of a batch. Each phrase brings its contradiction along ("two cats": "three cats"). Positions start as
two-dimensional sines and cosines (MAE, arXiv 2111.06377), and each thing's place is among the phrases: without the two
the features held names but not places.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import VisionConfig
from minillava.data.phrases import contrastive_phrases, true_phrases
from minillava.data.training_scenes import training_scene
from minillava.inputs.image import preprocess
from minillava.inputs.tokenizer import Tokenizer
from minillava.pretrain.language import MUON, train_tokenizer
from minillava.pretrain.probe import probe_tower
from minillava.training.precision import autocast
from minillava.training.recipes import LoopConfig
from minillava.training.run import Run, own_folder
from minillava.vision import VisionLayer, VisionTransformer
from minillava.weights import save_vision_tower

TINY_VISION = VisionConfig(
    hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=112, patch_size=16
)
SCENES_AND_PHRASES = dict(MUON, max_steps=1700, batch_size=64, save_every=200)


def position_waves(config: VisionConfig) -> Tensor:
    """Sines and cosines of each patch's row and column at C / 4 wavelengths from 6 patches to 600: (P, C) (MAE, arXiv
    2111.06377).
    """
    quarter, side = config.hidden_size // 4, config.image_size // config.patch_size
    frequencies = 1 / 100 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies  # (side, C / 4)
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # (side, C / 2)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)  # (P, C)


class PhraseEncoder(nn.Module):
    """The small text encoder on CLIP's other side: token ids (N, T) -> one vector a phrase (N, C).

    Thrown away after the training.
    """

    def __init__(self, vocabulary: int, width: int = 128, out: int = 192, longest: int = 24):
        super().__init__()
        block = VisionConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=4)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(VisionLayer(block) for _ in range(2))
        self.norm, self.projection = nn.LayerNorm(width), nn.Linear(width, out)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]  # (N, T, C)
        for layer in self.layers:
            x = layer(x, "sdpa")
        return self.projection(self.norm(x.mean(1)))  # (N, out)


class ContrastivePair(nn.Module):
    """Tower and phrase encoder, and the sigmoid loss between their patches and phrases."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        width = TINY_VISION.hidden_size
        self.vision_tower = VisionTransformer(TINY_VISION, feature_layer=-1)
        self.vision_tower.post_layernorm.requires_grad_(False)  # for CLIP's pooled CLS, which no one asks for here
        with torch.no_grad():
            self.vision_tower.embeddings.position_embedding.weight[1:] = position_waves(TINY_VISION)
            # or the waves, of size 0.7, would drown the patches
            self.vision_tower.embeddings.patch_embedding.weight.mul_(1.5)
        self.visual_projection = nn.Linear(width, width)
        self.phrases = PhraseEncoder(tokenizer.vocab_size, out=width)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(10.0).log()), nn.Parameter(torch.tensor(-10.0))

    def scores(self, pixel_values, phrase_ids):
        """(B, 3, E, E), (N, T) -> (B, N): how well each phrase fits each picture."""
        patches = self.visual_projection(self.vision_tower(pixel_values)).float()  # (B, P, C)
        return phrase_scores(patches, self.phrases(phrase_ids).float(), self.log_scale.exp(), self.bias)  # (B, N)

    def loss(self, pixel_values, phrase_ids, true):
        """`true` (B, N) bool: is the phrase true of the picture?"""
        return contrastive_loss(self.scores(pixel_values, phrase_ids), true)


def phrase_scores(patches: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """(B, P, C), (N, C) -> (B, N): the soft maximum over the patches of scale * cosine(patch, phrase), plus the bias."""
    patches, texts = F.normalize(patches, dim=-1), F.normalize(texts, dim=-1)
    return torch.logsumexp(scale * (patches @ texts.T).float(), 1) + bias  # (B, N)


def contrastive_loss(scores: Tensor, true: Tensor) -> Tensor:
    """Each picture and phrase is a yes or no of its own (SigLIP, arXiv 2303.15343): mean over the pictures of the
    phrases' summed losses.
    """
    return F.softplus(torch.where(true, -scores, scores)).sum(1).mean()


def phrase_batch(tokenizer: Tokenizer, first: int, size: int):
    """pixel_values (B, 3, 112, 112), phrase ids (phrases, T), truth (B, phrases) of the scenes first..first + size - 1;
    a phrase stands once.
    """
    scenes = [training_scene(index) for index in range(first, first + size)]
    rng = np.random.default_rng([7, first])
    column: dict[str, int] = {}
    for scene in scenes:
        for phrase in (phrase for pair in contrastive_phrases(scene, rng) for phrase in pair):
            column.setdefault(phrase, len(column))
    truths = [true_phrases(scene) for scene in scenes]
    true = torch.tensor([[phrase in truth for phrase in column] for truth in truths])
    ids = [tokenizer.encode(phrase)[0] for phrase in column]
    longest = max(map(len, ids))
    ids = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in ids])
    pixel_values = torch.stack([preprocess(scene.render(), image_size=TINY_VISION.image_size) for scene in scenes])
    return pixel_values, ids, true


def pretrain_vision(config: LoopConfig) -> None:
    tokenizer = train_tokenizer()
    torch.manual_seed(config.seed)
    learn_phrases(ContrastivePair(tokenizer), tokenizer, config)


def learn_phrases(pair: ContrastivePair, tokenizer: Tokenizer, config: LoopConfig) -> None:
    """Train tower and phrase encoder on endless scenes; the tower alone is saved."""

    def save() -> None:
        save_vision_tower(pair.vision_tower, config.out, "bfloat16")
        tokenizer.save(Path(config.out) / "tokenizer.json")

    with own_folder(config), Run(pair, config, save) as run:
        for step in run.steps():
            first = (config.seed << 32) + step * config.batch_size  # each seed has its own scenes
            with autocast(config.dtype, torch.device("cpu")):
                loss = pair.loss(*phrase_batch(tokenizer, first, config.batch_size))
            loss.backward()
            run.update([loss.item()])
            if run.due:
                with run.notes() as notes:
                    notes["probe"] = probe_tower(pair.vision_tower)
