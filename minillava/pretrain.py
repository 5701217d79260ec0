"""The tiny world's own "CLIP" and its own "Vicuna": what LLaVA takes ready-made, made here at a small size.

    python -m minillava.pretrain language --out runs/language     # a LLaMA, from text alone
    python -m minillava.pretrain vision --out runs/vision         # a vision tower, from scenes and phrases
    python -m minillava.pretrain all                              # both, then LLaVA's two stages: everything in weights/, from nothing

**language** has two lessons. The first is look-up: "cat, bus, tree" is followed by "cat yes, dog no", or by questions, and only the yes or no is
learnt. Comparing a word with the words above needs attention heads that work together (induction heads, arXiv 2209.11895). They form within
minutes here, and did not form at all from conversations alone. The second is scenes in words, as prose or as a map of 7 x 7 words, with a
conversation about each. A map is the text that a picture's 49 patches will later stand in for, which is why a projector alone (stage 1) goes far.

**vision** is CLIP's recipe (arXiv 2103.00020): a tower and a small text encoder learn which text belongs to which picture. Two changes come from
CLIP's successors, because LLaVA reads patches and not the pooled vector: a phrase is compared with every patch and the best ones count (late
interaction, FILIP, arXiv 2111.07783; a soft maximum here), and each pair of picture and phrase is a yes or no of its own (the sigmoid loss of
SigLIP, arXiv 2303.15343), since "a cat" is true of many pictures of a batch. Each phrase brings its contradiction along ("two cats": "three cats").
Positions start as two-dimensional sines and cosines (MAE, arXiv 2111.06377), and each thing's place is among the phrases: without the two the
features held names but not places.
"""

import argparse
import sys
from collections import deque
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.arguments import Parser, add_flags, from_flags
from minillava.chain import make_all
from minillava.config import TextConfig, VisionConfig
from minillava.conversation import IGNORE_INDEX, Encoded, Turn, encode, render
from minillava.data.dataset import LengthGroups, collate
from minillava.data.facts import a
from minillava.data.phrases import contrastive_phrases, true_phrases
from minillava.data.questions import QUESTIONS, conversation
from minillava.data.scene_in_words import FORMS, in_words
from minillava.data.scenes import NAMES, sample_scene
from minillava.errors import UserError, run
from minillava.eval.probe import probe_tower
from minillava.eval.scenes import cases, score_in_words
from minillava.image import preprocess
from minillava.language_model import LanguageModel
from minillava.loop import LoopConfig, fit, next_token_loss, supervised_logits
from minillava.tokenizer import Tokenizer
from minillava.vision import VisionLayer, VisionTransformer
from minillava.weights import load_language_model, save_language_model, save_vision_tower

VOCABULARY = 1536
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


RECIPES = {
    "look-up": dict(max_steps=500, batch_size=96, warmup_ratio=0.08, save_every=500),
    "language": dict(max_steps=1600, batch_size=8, save_every=200),
    "vision": dict(max_steps=1700, batch_size=64, save_every=200),
}
SHARED = dict(optimizer="muon", learning_rate=2e-3, weight_decay=0.05)


# ---------------------------------------------------------------------------------------------------------------- the look-up lesson
def name_list(index: int, as_questions: bool) -> list[Turn]:
    """2 to 8 names, then for some of them, and for as many others, whether they are in the list: as another list, or as questions."""
    rng = np.random.default_rng([11, index])
    count = int(rng.integers(2, 9))
    names = list(rng.choice(NAMES, 2 * count, replace=False))
    listed, absent = names[:count], names[count:]
    asked = [(name, "yes") if rng.random() < 0.5 else (absent[i], "no") for i, name in enumerate(rng.permutation(listed))]
    if not as_questions:
        return [("user", ", ".join(listed)), ("assistant", ", ".join(f"{name} {verdict}" for name, verdict in asked) + ".")]
    turns = []
    for name, verdict in asked[:6]:
        question = QUESTIONS["existence"][int(rng.random() * len(QUESTIONS["existence"]))].format(a=a(name))
        turns += [("user", question), ("assistant", verdict.capitalize())]
    return [("user", f"{', '.join(listed)}\n{turns[0][1]}"), *turns[1:]]


class LookUp:
    """Batches of name lists, half of them as questions, with loss on the verdict words alone; and how often the last verdicts were right."""

    GATE, WINDOW = 0.97, 20  # accuracy of both forms over so many steps that ends the lesson

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.verdicts = {tokenizer.encode(f"ASSISTANT: {word}")[0][-1] for word in ("yes", "no", "Yes", "No")}
        self.accuracies = {form: deque(maxlen=self.WINDOW) for form in ("lists", "questions")}

    def samples(self, first: int, count: int) -> list[Encoded]:
        return [self._encode(name_list(index, as_questions=index % 2 == 1)) for index in range(first, first + count)]

    def _encode(self, turns: list[Turn]) -> Encoded:
        encoded = encode(self.tokenizer, TEMPLATE, turns)
        labels = [label if label in self.verdicts else IGNORE_INDEX for label in encoded.labels]
        return replace(encoded, labels=labels)

    def loss(self, step: int) -> Tensor:
        """The mean over the step's verdicts, list by list or question by question. The short ones run apart, to save padding."""
        samples = self.samples(step * self.batch_size, self.batch_size)
        total, count = 0.0, 0
        for form, of_form in zip(self.accuracies, (samples[0::2], samples[1::2]), strict=True):
            of_form, half, right = sorted(of_form, key=lambda sample: len(sample.input_ids)), len(of_form) // 2, []
            for part in filter(None, (of_form[:half], of_form[half:])):
                batch = collate(part)
                logits, targets = supervised_logits(self.model, self.model.embed_tokens(batch["input_ids"]), batch["labels"])
                total = total + F.cross_entropy(logits, targets, reduction="sum")
                right.append(logits.argmax(-1) == targets)
            right = torch.cat(right)
            count += len(right)
            self.accuracies[form].append(right.float().mean().item())
        return total / count

    def accuracy(self, form: str) -> float:
        return sum(self.accuracies[form]) / self.WINDOW

    def passed(self) -> bool:
        return all(self.accuracy(form) > self.GATE for form in self.accuracies)


# ---------------------------------------------------------------------------------------------------------------- scenes in words
def scene_conversation(index: int, questions: int = 10) -> list[Turn]:
    """A scene in words, half of them as a map, and a conversation about it; once in fifty small talk."""
    scene, rng = sample_scene(index), np.random.default_rng([3, index])
    if rng.random() < 0.02:
        return [turn for pick in rng.permutation(len(SMALL_TALK))[:3] for turn in zip(("user", "assistant"), SMALL_TALK[pick], strict=True)]
    text = in_words(scene, FORMS[int(rng.random() * len(FORMS))], rng)
    (speaker, first), *rest = conversation(scene, rng, questions)
    return [(speaker, f"{text}\n{first}"), *rest]


def train_tokenizer(scenes: int = 4000) -> Tokenizer:
    """A vocabulary from what will be read, "USER:" and "ASSISTANT:" among it, so that those are a token and not nine."""
    turns = [scene_conversation(index) for index in range(scenes)] + [name_list(index, as_questions=False) for index in range(scenes // 4)]
    return Tokenizer.train((render(TEMPLATE, each).replace("</s>", "\n") for each in turns), VOCABULARY)


def new_language_model(tokenizer: Tokenizer) -> LanguageModel:
    """A LLaMA whose matrices begin as normal numbers of 0.6 / sqrt(inputs); what writes into the residual stream is smaller still (GPT-2)."""
    ids = dict(vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    model = LanguageModel(TextConfig(**ids, **TINY_TEXT))
    for name, matrix in model.layers.named_parameters():
        if matrix.ndim == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(matrix, 0, 0.6 * matrix.shape[1] ** -0.5 * ((2 * len(model.layers)) ** -0.5 if residual else 1.0))
    return model


def pretrain_language(config: LoopConfig) -> None:
    """The look-up lesson until its gate, then scenes in words. UserError if the gate is never reached."""
    tokenizer = train_tokenizer()
    torch.manual_seed(config.seed)
    look_up_folder = Path(config.out) / "look-up"
    if (look_up_folder / "model.safetensors").exists():  # written only when the lesson was passed
        model = load_language_model(look_up_folder, device="cpu", dtype="float32")
    else:
        model = new_language_model(tokenizer)
        learn_to_look_up(model, tokenizer, replace(config, out=str(look_up_folder), resume=False, **RECIPES["look-up"]))
    learn_scenes(model, tokenizer, config)


def learn_to_look_up(model: LanguageModel, tokenizer: Tokenizer, config: LoopConfig) -> None:
    lesson = LookUp(model, tokenizer, config.batch_size)

    def save() -> None:
        if lesson.passed():
            save_language_model(model, tokenizer, config.out, "float32")

    fit(model, lesson.loss, config, save, lambda step: {form: round(lesson.accuracy(form), 4) for form in lesson.accuracies}, lesson.passed)
    if not lesson.passed():
        raise UserError(f"after {config.max_steps} steps the model cannot look a name up ({lesson.accuracies}); try another --seed")


def learn_scenes(model: LanguageModel, tokenizer: Tokenizer, config: LoopConfig) -> None:
    """Conversations about scenes in words; as many name lists stay in every step, so that looking up is not forgotten."""
    look_up = LookUp(model, tokenizer, config.batch_size)

    def samples_of(step: int) -> list[Encoded]:
        first = (config.seed << 32) + step * config.batch_size
        return [encode(tokenizer, TEMPLATE, scene_conversation(index)) for index in range(first, first + config.batch_size)]

    groups = LengthGroups(samples_of, lambda sample: len(sample.input_ids))

    def batch_loss(step: int) -> Tensor:
        batch = collate(groups[step])
        return next_token_loss(model, model.embed_tokens(batch["input_ids"]), batch["labels"]) + 0.3 * look_up.loss((1 << 20) + step)

    held_out = cases("val", 40)

    def watch(step: int) -> dict:
        return {f"as {form}": score_in_words(model, tokenizer, held_out, form) for form in FORMS}

    fit(model, batch_loss, config, lambda: save_language_model(model, tokenizer, config.out, "bfloat16"), watch)


# ---------------------------------------------------------------------------------------------------------------- vision
def position_waves(config: VisionConfig) -> Tensor:
    """Sines and cosines of each patch's row and column at C / 4 wavelengths from 6 patches to 600: (P, C) (MAE, arXiv 2111.06377)."""
    quarter, side = config.hidden_size // 4, config.image_size // config.patch_size
    frequencies = 1 / 100 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies  # (side, C / 4)
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # (side, C / 2)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)  # (P, C)


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
            self.vision_tower.embeddings.patch_embedding.weight.mul_(1.5)  # or the waves, of size 0.7, would drown the patches
        self.visual_projection = nn.Linear(width, width)
        self.phrases = PhraseEncoder(tokenizer.vocab_size, out=width)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(10.0).log()), nn.Parameter(torch.tensor(-10.0))

    def scores(self, pixel_values, phrase_ids):
        """(B, 3, S, S), (N, T) -> (B, N): how well each phrase fits each picture."""
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
    """Each picture and phrase is a yes or no of its own (SigLIP, arXiv 2303.15343): mean over the pictures of the phrases' summed losses."""
    return F.softplus(torch.where(true, -scores, scores)).sum(1).mean()


def phrase_batch(tokenizer: Tokenizer, first: int, size: int):
    """pixel_values (B, 3, 112, 112), phrase ids (phrases, T), truth (B, phrases) of the scenes first..first + size - 1; a phrase stands once."""
    scenes = [sample_scene(index) for index in range(first, first + size)]
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

    def batch_loss(step: int) -> Tensor:
        return pair.loss(*phrase_batch(tokenizer, (config.seed << 32) + step * config.batch_size, config.batch_size))

    def save() -> None:
        save_vision_tower(pair.vision_tower, config.out, "bfloat16")
        tokenizer.save(Path(config.out) / "tokenizer.json")

    fit(pair, batch_loss, config, save, lambda step: {"probe": probe_tower(pair.vision_tower)})


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("language", "vision", "all"))
    parser.add_argument("--ignore-gates", action="store_true", help="all: go on with a part whose figures are below its gate")
    add_flags(parser, LoopConfig)
    flags = parser.parse_args(argv)
    if flags.part == "all":
        given = [item.name for item in fields(LoopConfig) if item.name != "out" and getattr(flags, item.name) is not None]
        if given:
            raise UserError(f"all runs every part with its own settings: --{given[0].replace('_', '-')} is for a single part")
        return make_all(flags.out or "runs/tiny", flags.ignore_gates)
    config = from_flags(LoopConfig, flags, **{"out": f"runs/{flags.part}", **SHARED, **RECIPES[flags.part]})
    {"language": pretrain_language, "vision": pretrain_vision}[flags.part](config)


if __name__ == "__main__":
    sys.exit(run(main, "pretrain"))
