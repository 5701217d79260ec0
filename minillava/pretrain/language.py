"""The tiny world's "Vicuna": a LLaMA, from text alone, in two lessons.

The first is look-up: "cat, bus, tree" is followed by "cat yes, dog no", or by questions, and only the yes or no is
learnt. Comparing a word with the words above needs attention heads that work together (induction heads, arXiv
2209.11895). They form within minutes here, and did not form at all from conversations alone. The second is scenes in
words, as prose or as a map of 7 x 7 words, with a conversation about each. A map is the text that a picture's 49
patches will later stand in for, which is why a projector alone (stage 1) goes far.
"""

from collections import deque
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillava.config import TextConfig
from minillava.data.facts import a
from minillava.data.questions import QUESTIONS, conversation
from minillava.data.scene_in_words import FORMS, in_words
from minillava.data.scenes import NAMES, sample_scene
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


MUON = dict(optimizer="muon", learning_rate=2e-3, weight_decay=0.05)
LOOK_UP = dict(MUON, max_steps=500, batch_size=96, warmup_ratio=0.08, save_every=500)
SCENES_IN_WORDS = dict(MUON, max_steps=1600, batch_size=8, save_every=200)


# ------------------------------------------------------------ the look-up lesson


def name_list(index: int, as_questions: bool) -> list[Turn]:
    """2 to 8 names, then for some of them, and for as many others, whether they are in the list: as another list, or as
    questions.
    """
    rng = np.random.default_rng([11, index])
    count = int(rng.integers(2, 9))
    names = list(rng.choice(NAMES, 2 * count, replace=False))
    listed, absent = names[:count], names[count:]
    asked = [
        (name, "yes") if rng.random() < 0.5 else (absent[i], "no") for i, name in enumerate(rng.permutation(listed))
    ]
    if not as_questions:
        return [
            ("user", ", ".join(listed)),
            ("assistant", ", ".join(f"{name} {verdict}" for name, verdict in asked) + "."),
        ]
    turns = []
    for name, verdict in asked[:6]:
        question = QUESTIONS["existence"][int(rng.random() * len(QUESTIONS["existence"]))].format(a=a(name))
        turns += [("user", question), ("assistant", verdict.capitalize())]
    return [("user", f"{', '.join(listed)}\n{turns[0][1]}"), *turns[1:]]


class LookUp:
    """Batches of name lists, half of them as questions, with loss on the verdict words alone; and how often the last
    verdicts were right.
    """

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
        """The mean over the step's verdicts, list by list or question by question.

        The short ones run apart, to save padding.
        """
        samples = self.samples(step * self.batch_size, self.batch_size)
        total, count = 0.0, 0
        for form, of_form in zip(self.accuracies, (samples[0::2], samples[1::2]), strict=True):
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
        return all(self.accuracy(form) > self.GATE for form in self.accuracies)


# ------------------------------------------------------------ scenes in words


def scene_conversation(index: int, questions: int = 10) -> list[Turn]:
    """A scene in words, half of them as a map, and a conversation about it; once in fifty small talk."""
    scene, rng = sample_scene(index), np.random.default_rng([3, index])
    if rng.random() < 0.02:
        return [
            turn
            for pick in rng.permutation(len(SMALL_TALK))[:3]
            for turn in zip(("user", "assistant"), SMALL_TALK[pick], strict=True)
        ]
    text = in_words(scene, FORMS[int(rng.random() * len(FORMS))], rng)
    (speaker, first), *rest = conversation(scene, rng, questions)
    return [(speaker, f"{text}\n{first}"), *rest]


def train_tokenizer(scenes: int = 4000) -> Tokenizer:
    """A vocabulary from what will be read, "USER:" and "ASSISTANT:" among it, so that those are a token and not nine."""
    turns = [scene_conversation(index) for index in range(scenes)] + [
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
    tokenizer = train_tokenizer()
    torch.manual_seed(config.seed)
    look_up_folder = Path(config.out) / "look-up"
    if (look_up_folder / "model.safetensors").exists():  # written only when the lesson was passed
        model = load_language_model(look_up_folder, device="cpu", dtype="float32")
    else:
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
    """Conversations about scenes in words; as many name lists stay in every step, so that looking up is not forgotten."""
    look_up, held_out = LookUp(model, tokenizer, config.batch_size), cases("val", 40)

    @lru_cache(1)
    def batches(group: Group) -> list[list[list[Encoded]]]:
        samples = [encode(tokenizer, TEMPLATE, scene_conversation(index)) for index in group.indices]
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
