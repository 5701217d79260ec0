"""Conversations: templates as data, and one pass from turns to `input_ids` and `labels`.

A turn is ("user" | "assistant", text). LLaVA (arXiv 2304.08485, section 4.2) trains on the answers alone: a token is
supervised (its label is its id) when it lies in an answer or in the end that follows it; all others have the label
-100.

    USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: What colour? ASSISTANT: Grey.</s>
                                           ^^^^^^^^^^^^                          ^^^^^^^^^^

What differs from the original: the prompt is tokenized once, and where the answers lie is known from the parts it was
joined from; the prompt is never searched. So "ASSISTANT:" or "</s>" typed by a person is text like any other, and no
sample is lost to a "tokenization mismatch". The space before an answer belongs to its first token ("▁A"), so a prompt
ends in "ASSISTANT:" without one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minillava.errors import UserError
from minillava.inputs.tokenizer import Control, Tokenizer

IGNORE_INDEX = -100  # the label that cross entropy leaves out
IMAGE = Control("image")
Turn = tuple[str, str]


@dataclass(frozen=True)
class Template:
    """How turns become one string. "{}" stands for a turn's text; "<s>", "</s>" and "<|im_...|>" are control tokens."""

    name: str
    user: str  # without "{}" the question is left out, as in stage 1 of LLaVA-1.5
    assistant: str  # up to "{}" it is the prompt to answer; what follows ends the answer and is supervised with it
    system: str = ""  # before the first turn
    between: str = ""  # before each later question

    @property
    def asks(self) -> bool:
        return "{}" in self.user


def _chat_between(person: str) -> str:
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )


LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
USER, ASSISTANT = "USER: {} ", "ASSISTANT: {}</s>"

# The strings are those of LLaVA's llava/conversation.py; "llava_hf" is what llava-hf's models were documented with: no
# system.
TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", user="", assistant="{}\n"),
        Template("v0", user="Human: {}###", assistant="Assistant: {}###", system=_chat_between("human") + "###"),
        Template("v1", USER, ASSISTANT, system=_chat_between("user") + " "),
        Template("llava_v1", USER, ASSISTANT, system=_chat_between("human") + " "),
        Template("llava_hf", USER, ASSISTANT),
        Template(
            "llama_2",
            user="{} [/INST]",
            assistant=" {} </s>",
            system=f"[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n",
            between="<s>[INST] ",
        ),
        Template(
            "chatml",
            user="<|im_start|>user\n{}<|im_end|>",
            assistant="<|im_start|>assistant\n{}<|im_end|>",
            system="<|im_start|>system\nAnswer the questions.<|im_end|>",
        ),
    )
}


@dataclass(frozen=True)
class Encoded:
    """One conversation: `input_ids`, `labels` of the same length, -100 where a token is not supervised, and the `text`
    they came from.
    """

    input_ids: list[int]
    labels: list[int]
    text: str


def find_template(template: str | Template) -> Template:
    """A template by its name; UserError for an unknown name."""
    if isinstance(template, Template):
        return template
    if not isinstance(template, str) or template not in TEMPLATES:
        raise UserError(f"There is no conversation template {template!r}; there are {', '.join(TEMPLATES)}.")
    return TEMPLATES[template]


def encode(
    tokenizer: Tokenizer,
    template: str | Template,
    turns: Sequence[Turn],
    image_tokens: int = 0,
    add_generation_prompt: bool = False,
) -> Encoded:
    """Tokenize a whole conversation in one pass.

    With `image_tokens` > 0, that many `<image>` ids and a newline stand before the first question (in "plain": instead
    of it); an "<image>" inside a turn is text. With `add_generation_prompt` the last turn must be a question, and the
    ids end where the answer begins. The ids of a question are a prefix of the ids of the conversation that answers it.
    Raises UserError if user and assistant do not take turns.
    """
    template = find_template(template)
    parts = _parts(template, turns, min(image_tokens, 1), add_generation_prompt)
    parts = [(_resolve(part, tokenizer), supervised) for part, supervised in parts]
    ids, offsets = tokenizer.encode([part for part, _ in parts])
    # for each character
    supervised_at = [
        supervised for part, supervised in parts for _ in range(1 if isinstance(part, Control) else len(part))
    ]
    labels = label_mask(ids, offsets, supervised_at)
    if image_tokens > 1:  # one placeholder was tokenized, and the others are its copies, which is several times faster
        at = ids.index(tokenizer.image_id)
        ids[at:at], labels[at:at] = [ids[at]] * (image_tokens - 1), [labels[at]] * (image_tokens - 1)
    if tokenizer.adds_bos:
        ids, labels = [tokenizer.bos_id, *ids], [IGNORE_INDEX, *labels]
    return Encoded(ids, labels, render(template, turns, image_tokens > 0, add_generation_prompt))


def label_mask(ids: list[int], offsets: list[tuple[int, int]], supervised_at: list[bool]) -> list[int]:
    """The label of each id: the id itself where its last character is supervised, else -100.

    A token of no characters is not supervised.
    """
    return [
        i if end > start and supervised_at[end - 1] else IGNORE_INDEX
        for i, (start, end) in zip(ids, offsets, strict=True)
    ]


def render(
    template: str | Template, turns: Sequence[Turn], image: bool = False, add_generation_prompt: bool = False
) -> str:
    """The conversation as one string for people to read: it no longer shows which "</s>" is a control token and which
    was typed.
    """
    parts = _parts(find_template(template), turns, int(image), add_generation_prompt)
    return "".join("<image>" if part is IMAGE else part for part, _ in parts)


def _parts(template: Template, turns: Sequence[Turn], image_tokens: int, prompt: bool) -> list[tuple[str, bool]]:
    """The whole prompt in order, as (part, is it supervised)."""
    _check(template, turns, prompt)
    image: list[str] = [IMAGE] * image_tokens
    cue, end = map(_split, template.assistant.split("{}"))
    gap = " " if cue and cue[-1].endswith(" ") else ""
    cue[-1:] = [cue[-1].removesuffix(" ")] if gap else cue[-1:]

    parts: list[tuple[str, bool]] = []

    def add(new: Iterable[str], supervised: bool = False) -> None:
        parts.extend((part, supervised) for part in new if part)

    add(_split(template.system))
    for number, (role, text) in enumerate(turns):
        if role == "assistant":
            add(cue)
            # the end of an empty answer follows the cue at once
            add([gap + text if text else "", *end], supervised=True)
            continue
        add(_split(template.between) if number else ())
        before, *after = template.user.split("{}")
        add(_split(before))
        add(image if number == 0 else ())
        if after:
            add(["\n" if image and number == 0 else "", text, *_split(after[0])])
    add(cue if prompt else ())
    return parts


def _split(text: str) -> list[str]:
    """A template's own text (never a user's) as text and control tokens."""
    parts = re.split(r"(</?s>|<\|im_\w+\|>)", text)
    return [Control(part) if i % 2 else part for i, part in enumerate(parts) if part]


def answer_end(tokenizer: Tokenizer, template: str | Template) -> tuple[list[int], str]:
    """What ends an answer: the ids of control tokens, or where the template has none for this tokenizer, a text."""
    end = [_resolve(part, tokenizer) for part in _split(find_template(template).assistant.split("{}")[1])]
    controls = [tokenizer.names.get(part, part) for part in end if isinstance(part, Control)]
    return [tokenizer.controls[name] for name in controls if name in tokenizer.controls], "" if controls else "".join(
        end
    )


def _resolve(part: str, tokenizer: Tokenizer) -> str:
    """`part` for this tokenizer: "<s>" and "</s>" become its own begin and end tokens, a control token that it lacks
    becomes text.
    """
    if not isinstance(part, Control):
        return part
    part = {"<s>": Control("bos"), "</s>": Control("eos")}.get(part, part)
    return str(part) if part.startswith("<|im_") and part not in tokenizer.controls else part


def _check(template: Template, turns: Sequence[Turn], add_generation_prompt: bool) -> None:
    if not turns:
        raise UserError("The conversation is empty.")
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if not (isinstance(turn, tuple | list) and len(turn) == 2 and all(isinstance(x, str) for x in turn)):
            raise UserError(f"Turn {number + 1} must be a pair (role, text) of strings, not {turn!r}.")
        if turn[0] != expected:
            raise UserError(
                f"Turn {number + 1} is of the role {turn[0]!r} where {expected!r} is due: user and assistant take turns, user first."
            )
    if add_generation_prompt and turns[-1][0] == "assistant":
        raise UserError("The last turn is already an answer; a prompt must end in a question.")
    if not template.asks and len(turns) > 2:
        raise UserError(
            f"The template {template.name!r} holds one caption, but the conversation has {len(turns)} turns."
        )
