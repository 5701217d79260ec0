"""The tiny world's "Vicuna": a LLaMA, from text alone, in two lessons.

The first is look-up: "cat, bus, red" is followed by "cat yes, dog no, animal yes", or by questions, and only the yes or
no is learnt. Comparing a word with the words above needs attention heads that work together (induction heads, arXiv
2209.11895). They form within minutes here, and did not form at all from conversations alone. The second is scenes in
words, as prose or as a map of 7 x 7 words, with a conversation about each. A map is the text that a picture's 49
patches will later stand in for, which is why a projector alone (stage 1) goes far.
"""

from collections import deque
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import TextConfig
from minillava.data.facts import a, plural
from minillava.data.natural.asking import WORDINGS, Asker
from minillava.data.natural.talk import small_talk, talk
from minillava.data.questions import conversation
from minillava.data.scene_in_words import FORMS, UNTOLD, in_words
from minillava.data.scenes import COLOR_NAMES, GROUP_OF, GROUPS, NAMES, sample_scene
from minillava.data.training_scenes import training_scene
from minillava.errors import UserError
from minillava.inputs.conversation import IGNORE_INDEX, Encoded, Turn, encode, render
from minillava.inputs.tokenizer import Tokenizer
from minillava.language_model import LanguageModel
from minillava.training.checkpoint import FILE as CHECKPOINT
from minillava.training.loss import next_token_loss, supervised_logits
from minillava.training.packing import batches_of
from minillava.training.precision import autocast
from minillava.training.recipes import LoopConfig
from minillava.training.run import Run, own_folder
from minillava.training.samples import Group, endless_group
from minillava.training.scoring import cases, score_in_words
from minillava.training.tensors import collate
from minillava.weights import load_language_model, save_language_model

CPU = torch.device("cpu")
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
TEMPLATE = "llava_hf"  # the v1 template as llava-hf's models use it: USER and ASSISTANT, without the system sentence

MUON = dict(optimizer="muon", learning_rate=2e-3, weight_decay=0.05)
LOOK_UP = dict(MUON, max_steps=600, batch_size=64, warmup_ratio=0.08, save_every=600)
SCENES_IN_WORDS = dict(MUON, max_steps=1400, batch_size=8, save_every=200)


# ------------------------------------------------------------ the look-up lesson


def name_list(index: int, as_questions: bool, groups: bool = False) -> list[Turn]:
    """2 to 8 names and a few colours, then for some of them, and for as many others, whether they are in the list: as
    another list, or as questions. `groups`: names of three groups, then groups in place of names.
    """
    rng = np.random.default_rng([11, index])
    count, colors = int(rng.integers(2, 9)), 1 if as_questions else int(rng.integers(1, 5))  # a picture has one
    listed, asked = _groups(rng, count) if groups else _names(rng, count, colors)
    asked = [asked[:6][i] for i in rng.permutation(len(asked[:6]))] if as_questions else rng.permutation(asked).tolist()
    if not as_questions:
        return [
            ("user", ", ".join(listed)),
            ("assistant", ", ".join(f"{name} {verdict}" for name, verdict in asked) + "."),
        ]
    turns = []
    for word, verdict in asked:
        turns += [("user", _about(word, Asker(rng))), ("assistant", verdict.capitalize())]
    return [("user", f"{', '.join(listed)}\n{turns[0][1]}"), *turns[1:]]


def _names(rng, count: int, colors: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The listed words, names and colours, and words with their verdicts, the colours first."""
    listed, absent = [], []
    for words, number in ((COLOR_NAMES, colors), (NAMES, count)):
        drawn = [str(word) for word in rng.choice(words, 2 * number, replace=False)]
        listed, absent = listed + drawn[:number], absent + drawn[number:]
    asked = [(word, "yes") if rng.random() < 0.5 else (other, "no") for word, other in zip(listed, absent, strict=True)]
    return [str(word) for word in rng.permutation(listed)], asked


def _groups(rng, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of three groups; the others are asked about three times as seldom, so that each is there half the time."""
    groups = [str(group) for group in rng.permutation(list(GROUPS))]
    pool = [name for group in groups[:3] for name in rng.choice(GROUPS[group], 4)]
    listed = list(dict.fromkeys(str(name) for name in rng.choice(pool, count)))
    shown = sorted({GROUP_OF[name] for name in listed})
    asked = [(group, "yes") for group in shown] + [(group, "no") for group in groups[3 : 3 + len(shown)]]
    return listed, asked


def _about(word: str, ask: Asker) -> str:
    if word in COLOR_NAMES:
        return ask("background_yes_no", color=word, a_color=a(word))
    return ask("group_yes_no" if word in GROUPS else "existence", a=a(word), many=plural(word))


class LookUp:
    """Batches of name lists, half of them as questions and half of either about groups, with loss on the verdict words
    alone; and how often the last verdicts were right.
    """

    GATES: ClassVar = {"lists": 0.97, "questions": 0.97, "groups": 0.93, "groups asked": 0.93}
    WINDOW = 20  # accuracy of each form over so many steps that ends the lesson

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.verdicts = {tokenizer.encode(f"ASSISTANT: {word}")[0][-1] for word in ("yes", "no", "Yes", "No")}
        self.accuracies = {form: deque(maxlen=self.WINDOW) for form in self.GATES}

    def samples(self, first: int, count: int) -> list[Encoded]:
        """Sample i is of the form i % 4."""
        return [self._encode(name_list(i, i % 2 == 1, groups=i % 4 > 1)) for i in range(first, first + count)]

    def _encode(self, turns: list[Turn]) -> Encoded:
        encoded = encode(self.tokenizer, TEMPLATE, turns)
        labels = [label if label in self.verdicts else IGNORE_INDEX for label in encoded.labels]
        return replace(encoded, labels=labels)

    def loss(self, step: int) -> Tensor:
        """The mean over the step's verdicts, form by form.

        The short ones run apart, to save padding.
        """
        samples = self.samples(step * self.batch_size, self.batch_size)
        total, count = 0.0, 0
        for number, form in enumerate(self.accuracies):
            of_form = samples[number :: len(self.accuracies)]
            of_form, half, right = sorted(of_form, key=lambda sample: len(sample.input_ids)), len(of_form) // 2, []
            for part in filter(None, (of_form[:half], of_form[half:])):
                batch = collate([[sample] for sample in part])
                logits, targets = supervised_logits(
                    self.model, self.model.embed_tokens(batch["input_ids"]), batch["labels"]
                )
                total = total + F.cross_entropy(logits, targets, reduction="sum")
                right.append(logits.argmax(-1) == targets)
            right = torch.cat(right)
            count += len(right)
            self.accuracies[form].append(right.float().mean().item())
        return total / count

    def accuracy(self, form: str) -> float:
        return sum(self.accuracies[form]) / self.WINDOW

    def passed(self) -> bool:
        return all(self.accuracy(form) > gate for form, gate in self.GATES.items())


# ------------------------------------------------------------ scenes in words


def scene_conversation(index: int, questions: int = 10) -> list[Turn]:
    """A scene in words, half of them as a map, and a conversation about it."""
    scene, rng = sample_scene(index), np.random.default_rng([3, index])
    form = FORMS[int(rng.random() * len(FORMS))]
    return after(in_words(scene, form, rng), conversation(scene, rng, questions))


def scene_talk(index: int) -> list[Turn]:
    """What the training reads: a scene in words and questions of all kinds; once in fifty small talk alone."""
    scene, rng = training_scene(index), np.random.default_rng([3, index])
    if rng.random() < 0.02:
        return small_talk(rng, WORDINGS)
    form = FORMS[int(rng.random() * len(FORMS))]
    return after(in_words(scene, form, rng, fully=True), talk(scene, rng, but=UNTOLD[form]))


def after(text: str, turns: list[Turn]) -> list[Turn]:
    """The turns, with the text before the first question."""
    (speaker, first), *rest = turns
    return [(speaker, f"{text}\n{first}"), *rest]


def train_tokenizer(scenes: int = 4000) -> Tokenizer:
    """A vocabulary from what will be read, "USER:" and "ASSISTANT:" among it, so that those are a token and not nine."""
    turns = [scene_talk(index) for index in range(scenes)] + [
        name_list(index, as_questions=False) for index in range(scenes // 4)
    ]
    return Tokenizer.train((render(TEMPLATE, each).replace("</s>", "\n") for each in turns), VOCABULARY)


def new_language_model(tokenizer: Tokenizer) -> LanguageModel:
    """A LLaMA whose matrices begin as normal numbers of 0.6 / sqrt(inputs); what writes into the residual stream is
    smaller still (GPT-2).
    """
    ids = dict(vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    model = LanguageModel(TextConfig(**ids, **TINY_TEXT))
    for name, matrix in model.layers.named_parameters():
        if matrix.ndim == 2:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(
                matrix, 0, 0.6 * matrix.shape[1] ** -0.5 * ((2 * len(model.layers)) ** -0.5 if residual else 1.0)
            )
    return model


def pretrain_language(config: LoopConfig) -> None:
    """The look-up lesson until its gate, then scenes in words. UserError if the gate is never reached."""
    torch.manual_seed(config.seed)
    look_up_folder = Path(config.out) / "look-up"
    if (look_up_folder / "model.safetensors").exists():  # written only when the lesson was passed
        model, tokenizer = (
            load_language_model(look_up_folder, device="cpu", dtype="float32"),
            Tokenizer.from_file(look_up_folder),
        )
    else:
        tokenizer = train_tokenizer()
        model = new_language_model(tokenizer)
        resume = (look_up_folder / CHECKPOINT).exists()
        learn_to_look_up(model, tokenizer, replace(config, **LOOK_UP, out=str(look_up_folder), resume=resume))
    learn_scenes(model, tokenizer, config)


def learn_to_look_up(model: LanguageModel, tokenizer: Tokenizer, config: LoopConfig) -> None:
    lesson = LookUp(model, tokenizer, config.batch_size)

    def save() -> None:
        if lesson.passed():
            save_language_model(model, tokenizer, config.out, "float32")

    with own_folder(config), Run(model, config, save) as run:
        for step in run.steps():
            with autocast(config.dtype, CPU):
                loss = lesson.loss(step)
            loss.backward()
            run.update([loss.item()], last=lesson.passed())
            if run.due:
                with run.notes() as notes:
                    notes |= {form: round(lesson.accuracy(form), 4) for form in lesson.accuracies}
    if not lesson.passed():
        why = f"after {config.max_steps} steps the model cannot look a name up"
        raise UserError(f"{why} ({lesson.accuracies}); try another --seed")


def learn_scenes(model: LanguageModel, tokenizer: Tokenizer, config: LoopConfig) -> None:
    """Conversations about scenes in words; twice as many name lists, which are short, stay in every step, so that
    looking up is not forgotten.
    """
    look_up, held_out = LookUp(model, tokenizer, 2 * config.batch_size), cases("val", 40)

    @lru_cache(1)
    def batches(group: Group) -> list[list[list[Encoded]]]:
        samples = [encode(tokenizer, TEMPLATE, scene_talk(index)) for index in group.indices]
        return batches_of(group, samples, lambda sample: len(sample.input_ids))

    save = partial(save_language_model, model, tokenizer, config.out, "bfloat16")
    with own_folder(config), Run(model, config, save) as run:
        for step in run.steps():
            group, place = endless_group(step, config.batch_size, config.seed)
            batch = collate(batches(group)[place])
            with autocast(config.dtype, CPU):
                loss = next_token_loss(model, model.embed_tokens(batch["input_ids"]), batch["labels"])
                loss = loss + 0.3 * look_up.loss((1 << 20) + step)
            loss.backward()
            run.update([loss.item()])
            if run.due:
                with run.notes() as notes:
                    notes |= {f"as {form}": score_in_words(model, tokenizer, held_out, form) for form in FORMS}
