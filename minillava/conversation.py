"""Conversations: templates as data, and one pass from turns to `input_ids` and `labels`.

A turn is ("user" | "assistant", text). LLaVA (arXiv 2304.08485, section 4.2) trains on the answers alone: a token pays loss when it
lies in an answer or in the end that follows it, everything else is labelled -100.

    USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: What colour? ASSISTANT: Grey.</s>
                                           ^^^^^^^^^^^^                          ^^^^^^^^^^

What differs from the original: the prompt is tokenized once, and where an answer lies is known from how the prompt was put
together, never found by searching it. So "ASSISTANT:" or "</s>" typed by a person is text like any other, and no sample is lost to a
"tokenization mismatch". The space before an answer belongs to its first token ("▁A"), so a prompt ends in "ASSISTANT:" without one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minillava.errors import UserError
from minillava.tokenizer import Control, Tokenizer

IGNORE_INDEX = -100  # what cross entropy leaves out
IMAGE = Control("image")
Turn = tuple[str, str]


@dataclass(frozen=True)
class Template:
    """How turns become one string; "{}" is what was said, "<s>", "</s>" and "<|im_...|>" are control tokens."""

    name: str
    user: str  # without "{}" the question is dropped, as stage 1 of LLaVA-1.5 does
    assistant: str  # up to "{}" it is the cue to answer; what follows ends the answer, and is learnt with it
    system: str = ""  # before the first turn
    between: str = ""  # before each later question


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

# The strings are those of LLaVA's llava/conversation.py; "llava_hf" is what llava-hf's models were documented with: no system.
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
    """One conversation as the model eats it; `labels` is as long as `input_ids`, -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]
    text: str


def find_template(template: str | Template) -> Template:
    """A template by its name; UserError for a name that there is not."""
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

    `image_tokens` > 0 puts that many `<image>` ids and a newline before the first question (in "plain": instead of it); an
    "<image>" inside a turn is text. With `add_generation_prompt` the last turn must be a question, and the ids end where the answer
    begins. The ids of a question are a prefix of the ids of the conversation that answers it. Raises UserError if the speakers do not
    take turns.
    """
    template = find_template(template)
    pieces = _pieces(template, turns, image_tokens, add_generation_prompt)
    pieces = [(_known(part, tokenizer), pays) for part, pays in pieces]
    ids, offsets = tokenizer.encode([part for part, _ in pieces])
    pays_at = [pays for part, pays in pieces for _ in range(1 if isinstance(part, Control) else len(part))]
    labels = [i if end > start and pays_at[end - 1] else IGNORE_INDEX for i, (start, end) in zip(ids, offsets, strict=True)]
    if tokenizer.adds_bos:
        ids, labels = [tokenizer.bos_id, *ids], [IGNORE_INDEX, *labels]
    return Encoded(ids, labels, render(template, turns, image_tokens > 0, add_generation_prompt))


def render(template: str | Template, turns: Sequence[Turn], image: bool = False, add_generation_prompt: bool = False) -> str:
    """The conversation as a string to look at; what was typed and what is a control token can no longer be told apart."""
    pieces = _pieces(find_template(template), turns, int(image), add_generation_prompt)
    return "".join("<image>" if part is IMAGE else part for part, _ in pieces)


def _pieces(template: Template, turns: Sequence[Turn], image_tokens: int, prompt: bool) -> list[tuple[str, bool]]:
    """The prompt in order as (part, does it pay loss)."""
    _check(template, turns, prompt)
    image: list[str] = [IMAGE] * image_tokens
    cue, end = map(_split, template.assistant.split("{}"))
    gap = " " if cue and cue[-1].endswith(" ") else ""
    cue[-1:] = [cue[-1].removesuffix(" ")] if gap else cue[-1:]

    pieces: list[tuple[str, bool]] = []

    def put(parts: Iterable[str], pays: bool = False) -> None:
        pieces.extend((part, pays) for part in parts if part)

    put(_split(template.system))
    for number, (speaker, text) in enumerate(turns):
        if speaker == "assistant":
            put(cue)
            put([gap + text if text else "", *end], pays=True)  # nothing said: the end follows the cue at once
            continue
        put(_split(template.between) if number else ())
        before, *after = template.user.split("{}")
        put(_split(before))
        put(image if number == 0 else ())
        if after:
            put(["\n" if image and number == 0 else "", text, *_split(after[0])])
    put(cue if prompt else ())
    return pieces


def _split(text: str) -> list[str]:
    """A template's own text (never a user's), its control tokens apart."""
    parts = re.split(r"(</?s>|<\|im_\w+\|>)", text)
    return [Control(part) if i % 2 else part for i, part in enumerate(parts) if part]


def _known(part: str, tokenizer: Tokenizer) -> str:
    """`part`; "<s>" and "</s>" become this tokenizer's own begin and end, a control token that it has not becomes text."""
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
            raise UserError(f"Turn {number + 1} must be a pair (speaker, text) of strings, not {turn!r}.")
        if turn[0] != expected:
            raise UserError(f"Turn {number + 1} is spoken by {turn[0]!r}, but {expected!r} is due: speakers take turns, user first.")
    if add_generation_prompt and turns[-1][0] == "assistant":
        raise UserError("The last turn is already an answer; a prompt must end in a question.")
    if "{}" not in template.user and len(turns) > 2:
        raise UserError(f"The template {template.name!r} holds one caption, but the conversation has {len(turns)} turns.")
