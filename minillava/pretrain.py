"""The tiny world's own "CLIP" and its own "Vicuna": what LLaVA takes ready-made, made here at a small size.

    python -m minillava.pretrain language --out weights/tiny-language     # a LLaMA, from text alone
    python -m minillava.pretrain vision --out weights/tiny-vision         # a vision tower, from scenes and phrases of their captions

**language**: scenes told in words, as prose or as a map of 7 x 7 words, and conversations about them in the v1 template. Answers pay loss, and prose
does; a map, being chance, does not. It answers questions about a scene it is told of before any picture was ever shown to it. The map is the text a
picture's 49 patches will stand in for, which is why a projector alone (stage 1) can go far. It learns from the simple to the whole: first words in no
order are to be said again, where nothing but looking back helps, so that heads form that find "the same word, earlier" (induction heads, arXiv
2209.11895); then roll calls ("cat yes, bus no"); then conversations. From conversations alone it had not learnt to look a name up after 70,000 texts.

**vision**: CLIP's recipe (arXiv 2103.00020): a tower and a small text encoder learn which text belongs to which picture. With two changes from CLIP's
successors, because LLaVA reads patches and not the pooled vector: a phrase is compared with every patch and the best ones count (late interaction,
FILIP, arXiv 2111.07783; a soft maximum here), and each pair of picture and phrase is a yes or no of its own (the sigmoid loss of SigLIP, arXiv
2303.15343), since "a cat" is true of many pictures of a batch. Each phrase brings its contradiction along ("two cats": "three cats").
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minillava.arguments import Parser, add_flags, from_flags, option
from minillava.config import TextConfig, VisionConfig
from minillava.conversation import IGNORE_INDEX, Encoded, Turn, encode, render
from minillava.data.dataset import LengthGroups, collate, conversation_about
from minillava.data.scene_language import captions, describe_in_words, grid_words, phrases
from minillava.data.scenes import COLOR_NAMES, NAMES, sample_scene
from minillava.errors import run
from minillava.image import preprocess
from minillava.language_model import LanguageModel
from minillava.tokenizer import Tokenizer
from minillava.training import LoopConfig, answers_right, fit, load_parameters, text_loss
from minillava.vision import VisionLayer, VisionTransformer
from minillava.weights import save_language_model, save_vision_tower

VOCABULARY = 1536
PHRASES = 6  # pairs that a scene brings to a batch: its names, and others as far as they go
TINY_TEXT = dict(
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
TINY_VISION = VisionConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3, image_size=112, patch_size=16)
TEMPLATE = "llava_hf"  # the v1 template as llava-hf's models use it: USER and ASSISTANT, without the system sentence

AGAIN = 0.15  # share of the steps (of a run from nothing) in which seven of eight samples are words said again; later one of eight is
CALLS = 0.35  # share of the steps until which the scenes' conversations are roll calls alone
WORDS = NAMES + COLOR_NAMES

SMALL_TALK = [
    ("Hello!", "Hello! Show me a picture and ask me about it."),
    ("Hi", "Hello! Show me a picture and ask me about it."),
    ("Who are you?", "I am minillava, a small model that answers questions about pictures."),
    ("What are you?", "I am minillava, a small model that answers questions about pictures."),
    ("What can you do?", "I can say what is in a picture, how many things there are, and where they are."),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Good bye", "Good bye!"),
]


@dataclass(frozen=True)
class PretrainConfig(LoopConfig):
    learning_rate: float = option(1.5e-3, LoopConfig.__dataclass_fields__["learning_rate"].metadata["help"])
    weight_decay: float = option(0.05, LoopConfig.__dataclass_fields__["weight_decay"].metadata["help"])
    start: str = option("", "folder of an earlier run, whose tokenizer and parameters to start from")


# ---------------------------------------------------------------------------------------------------------------- language
def said_again(index: int):
    """5 to 24 words in no order, then one to three times again, each time from another one on: (turns, kind)."""
    rng = np.random.default_rng([5, index])
    words = list(rng.choice(WORDS, rng.integers(5, 25), replace=False))
    starts = rng.integers(0, len(words), rng.integers(1, 4))
    again = [word for start in starts for word in words[start:] + words[:start]]
    return [("user", " ".join(words)), ("assistant", " ".join(again))], TEMPLATE


def told_scene(index: int, questions: int = 8):
    """A scene told in words and a conversation about it, or (12%) prose alone or a caption after a map, or (2%) small talk: (turns, kind)."""
    scene, rng = sample_scene(index), np.random.default_rng([0, index])
    luck = rng.random()
    if luck < 0.03:
        return [("user", ""), ("assistant", describe_in_words(scene, rng))], "plain"
    if luck < 0.12:
        return [("user", " ".join(grid_words(scene))), ("assistant", captions(scene, rng, 1)[0])], "plain"
    if luck < 0.14:
        picks = rng.permutation(len(SMALL_TALK))[:3]
        return [turn for pick in picks for turn in zip(("user", "assistant"), SMALL_TALK[pick], strict=True)], TEMPLATE
    told = " ".join(grid_words(scene)) if luck < 0.7 else describe_in_words(scene, rng)
    (speaker, first), *rest = conversation_about(scene, rng, questions)
    return [(speaker, f"{told}\n{first}"), *rest], TEMPLATE


def encode_told(tokenizer: Tokenizer, turns: list[Turn], kind: str) -> Encoded:
    """In the plain template a map stands where the picture's tokens will, and like them pays no loss."""
    encoded = encode(tokenizer, kind, turns)
    if kind == "plain" and turns[0][1]:
        (bos, *caption), (_, *labels) = encoded.input_ids, encoded.labels
        told = tokenizer.encode(turns[0][1])[0]
        return Encoded([bos, *told, *caption], [IGNORE_INDEX] * (1 + len(told)) + labels, turns[0][1] + encoded.text)
    return encoded


def train_tokenizer(scenes: int = 4000) -> Tokenizer:
    """A vocabulary from what will be read, "USER:" and "ASSISTANT:" among it, so that those are a token and not nine."""
    told = (render(template, turns) for turns, template in map(told_scene, range(scenes)))
    return Tokenizer.train((text.replace("</s>", "\n") for text in told), VOCABULARY)


def find_tokenizer(config: PretrainConfig) -> Tokenizer:
    return Tokenizer.from_file(config.start) if config.start else train_tokenizer()


def pretrain_language(config: PretrainConfig) -> None:
    tokenizer = find_tokenizer(config)
    torch.manual_seed(config.seed)
    ids = dict(vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    model = LanguageModel(TextConfig(**ids, **TINY_TEXT), attention="eager")

    if config.start:
        load_parameters(config.start, model)

    def told(first: int, again: int, scenes: int, questions: int = 8) -> list[Encoded]:
        texts = [said_again(index) for index in range(first, first + again)]
        texts += [told_scene(index, questions) for index in range(first + again, first + again + scenes)]
        return [encode_told(tokenizer, turns, kind) for turns, kind in texts]

    def samples_of(step: int) -> list[Encoded]:
        """From the simple to the whole: words again, then roll calls, then all questions."""
        done = step / config.max_steps
        again = config.batch_size * (7 if done < AGAIN and not config.start else 1) // 8
        return told((config.seed << 32) + step * config.batch_size, again, config.batch_size - again, 0 if done < CALLS else 8)

    groups = LengthGroups(samples_of, lambda sample: len(sample.input_ids))

    def batch_loss(step: int):
        words = collate(groups[step])
        return text_loss(model, model.embed_tokens(words["input_ids"]), words)

    held_out = collate(told(1 << 40, 0, 64))
    fit(
        model,
        batch_loss,
        config,
        save=lambda: save_language_model(model, tokenizer, config.out, "bfloat16"),
        watch=lambda step: {"answers_right": answers_right(model, model.embed_tokens(held_out["input_ids"]), held_out)},
    )


# ---------------------------------------------------------------------------------------------------------------- vision
class PhraseEncoder(nn.Module):
    """The small text encoder on CLIP's other side: token ids (N, T) -> one vector a phrase (N, C). Thrown away after the training."""

    def __init__(self, vocabulary: int, width: int = 128, out: int = 192, longest: int = 24):
        super().__init__()
        block = VisionConfig(hidden_size=width, intermediate_size=4 * width, num_attention_heads=4)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        self.layers = nn.ModuleList(VisionLayer(block) for _ in range(2))
        self.norm, self.projection = nn.LayerNorm(width), nn.Linear(width, out)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]  # (N, T, C)
        for layer in self.layers:
            x = layer(x, "eager")
        return self.projection(self.norm(x.mean(1)))  # (N, out)


class ContrastivePair(nn.Module):
    """Tower and phrase encoder, and the sigmoid loss between their patches and phrases."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        width = TINY_VISION.hidden_size
        self.vision_tower = VisionTransformer(TINY_VISION, feature_layer=-1, attention="eager")
        self.vision_tower.post_layernorm.requires_grad_(False)  # for CLIP's pooled CLS, which no one asks for here
        self.visual_projection = nn.Linear(width, width)
        self.phrases = PhraseEncoder(tokenizer.vocab_size, out=width)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(10.0).log()), nn.Parameter(torch.tensor(-10.0))

    def scores(self, pixel_values, phrase_ids):
        """(B, 3, S, S), (N, T) -> (B, N): how well each phrase fits each picture, the soft maximum over the patches."""
        patches = F.normalize(self.visual_projection(self.vision_tower(pixel_values)).float(), dim=-1)  # (B, P, C)
        texts = F.normalize(self.phrases(phrase_ids).float(), dim=-1)  # (N, C)
        return torch.logsumexp(self.log_scale.exp() * (patches @ texts.T).float(), 1) + self.bias  # (B, N)

    def loss(self, pixel_values, phrase_ids, true):
        """`true` (B, N) bool: is the phrase true of the picture? Mean over pictures of the summed yes-or-no losses."""
        scores = self.scores(pixel_values, phrase_ids)
        return F.softplus(torch.where(true, -scores, scores)).sum(1).mean()


def phrase_batch(tokenizer: Tokenizer, first: int, size: int):
    """pixel_values (B, 3, S, S), phrase ids (N, T), truth (B, N) of the scenes first..first + size - 1; a phrase stands once in it."""
    scenes = [sample_scene(index) for index in range(first, first + size)]
    rng = np.random.default_rng([7, first])
    told = [phrases(scene, rng) for scene in scenes]
    column: dict[str, int] = {}
    for pairs in told:
        for phrase in (phrase for pair in pairs[:PHRASES] for phrase in pair):
            column.setdefault(phrase, len(column))
    true = torch.zeros(size, len(column), dtype=torch.bool)
    for row, pairs in enumerate(told):
        true[row, [column[phrase] for phrase, _ in pairs if phrase in column]] = True
    ids = [tokenizer.encode(phrase)[0] for phrase in column]
    longest = max(map(len, ids))
    ids = torch.tensor([row + [tokenizer.pad_id] * (longest - len(row)) for row in ids])
    pixel_values = torch.stack([preprocess(scene.render(), image_size=TINY_VISION.image_size) for scene in scenes])
    return pixel_values, ids, true


def pretrain_vision(config: PretrainConfig) -> None:
    tokenizer = find_tokenizer(config)
    torch.manual_seed(config.seed)
    pair = ContrastivePair(tokenizer)
    if config.start:
        load_parameters(config.start, pair)
    held_out = phrase_batch(tokenizer, 1 << 40, 128)

    def batch_loss(step: int):
        return pair.loss(*phrase_batch(tokenizer, (config.seed << 32) + step * config.batch_size, config.batch_size))

    @torch.inference_mode()
    def watch(step: int) -> dict:
        pixel_values, ids, true = held_out
        said = pair.scores(pixel_values, ids) > 0
        hits = (said & true).sum().item()
        return {"phrase_recall": round(hits / true.sum().item(), 4), "phrase_precision": round(hits / max(1, said.sum().item()), 4)}

    def save() -> None:
        save_vision_tower(pair.vision_tower, config.out, "bfloat16")
        tokenizer.save(Path(config.out) / "tokenizer.json")

    fit(pair, batch_loss, config, save, watch)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("language", "vision"))
    add_flags(parser, PretrainConfig)
    flags = parser.parse_args(argv)
    config = from_flags(PretrainConfig, flags)
    if not config.out:
        config = from_flags(PretrainConfig, flags, out=str(Path("weights") / f"tiny-{flags.part}"))
    {"language": pretrain_language, "vision": pretrain_vision}[flags.part](config)


if __name__ == "__main__":
    sys.exit(run(main, "pretrain"))
