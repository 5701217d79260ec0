"""Generation: one token after the other, each chosen from the logits that follow the last.

    sample(logits, ...)         logits (B, V) -> ids (B,)
    generate(model, ids, ...)   yields the ids of one answer        generate_batch(...)  the answers of several prompts
    stream(...)                 yields its text                     answer(...)          the whole text of one question

The prompt runs once and fills the KV cache; from then on each step runs one position. Batches are padded on the left,
so that the last position of every row is its last token. Top-p is "nucleus sampling" (arXiv 1904.09751).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from minillava.decode_graph import can_be_recorded, recorded_step
from minillava.errors import UserError
from minillava.inputs.conversation import answer_end
from minillava.kv_cache import KVCache


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; UserError for a value out of range."""

    temperature: float = 0.0  # 0: always the likeliest token
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self):
        _expect(
            "temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (the likeliest word, always) or more"
        )
        _expect("top_k", self.top_k, self.top_k >= 0, "0 (no limit) or more")
        _expect("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _expect("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "0 or more and below 2^63")


def _expect(name: str, value, fits: bool, allowed: str) -> None:
    if not fits:
        raise UserError(f"{name} must be {allowed}, not {value}.")


def check_options(max_new_tokens: int = 1, **sampling) -> Sampling:
    """The `Sampling` of these options; UserError for one that is out of range."""
    _expect("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1")
    return Sampling(**sampling)


# ------------------------------------------------------------ one token
def sample(
    logits: Tensor,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, V) -> (B,): the likeliest id at temperature 0, else drawn from softmax(logits / temperature) cut to top-k,
    then to top-p.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double()
    # the likeliest is 0, so a tiny temperature cannot overflow
    logits = (logits - logits.max(-1, keepdim=True).values) / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[..., 0]


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Mask all but the k likeliest ids with -inf; ids that tie for the last place all stay."""
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Mask all but the fewest likeliest ids whose probabilities sum to p; at least one stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the sum of all likelier ids
    drop = before >= p
    drop[..., 0] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


# ------------------------------------------------------------ answers
def generate(
    model,
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_sizes: Tensor | None = None,
    *,
    max_new_tokens: int = 256,
    cache: KVCache | None = None,
    eos_token_id: int | list[int] | None = None,
    **sampling,
) -> Iterator[int]:
    """Yield the ids of one answer as they are chosen, without the end token. `model` is a Llava or a plain
    LanguageModel.

    input_ids (1, T) int64, pixel_values (N, 3, E, E), with LLaVA-NeXT also image_sizes (pictures, 2); `sampling` are
    the fields of `Sampling`. With a `cache` that already holds the first positions of `input_ids`, only the others run;
    afterwards it holds the prompt and every yielded id but the last (which the next call runs). Ends at the end token
    (`eos_token_id`, or the model's own), after `max_new_tokens`, or where the context is full. Raises UserError, at
    once, for options out of range and for a prompt that leaves no room to answer; ValueError, with the first id, for
    pictures that do not fit the prompt.
    """
    if len(input_ids) != 1:
        raise ValueError(f"generate answers one prompt, not {len(input_ids)}: generate_batch takes several")
    options = check_options(max_new_tokens, **sampling)
    inputs = dict(
        input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, image_sizes=image_sizes
    )
    return (token_id for (token_id,) in _start(model, inputs, max_new_tokens, options, cache, eos_token_id))


def generate_batch(
    model,
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_sizes: Tensor | None = None,
    *,
    max_new_tokens: int = 256,
    eos_token_id: int | list[int] | None = None,
    **sampling,
) -> list[list[int]]:
    """The ids of the answers to several prompts, each without its end token.

    input_ids (B, T) int64, padded on either side; attention_mask (B, T) is 0 on the padding. Otherwise as `generate`.
    """
    options = check_options(max_new_tokens, **sampling)
    inputs = dict(
        input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, image_sizes=image_sizes
    )
    steps = list(_start(model, inputs, max_new_tokens, options, None, eos_token_id))
    return [[ids[row] for ids in steps if ids[row] is not None] for row in range(len(input_ids))]


def stream(model, processor, inputs: dict[str, Tensor], **options) -> Iterator[str]:
    """Yield the answer's text, never half a character, up to its template's end. `inputs` is what the processor gives;
    the options are `generate`'s.
    """
    return text_of(processor, generate(model, **inputs, **({"eos_token_id": end_ids(model, processor)} | options)))


def text_of(processor, ids: Iterable[int]) -> Iterator[str]:
    """The text of an answer's ids as they come, up to the template's end where that is no token but text."""
    _, end = answer_end(processor.tokenizer, processor.template)
    pieces = processor.tokenizer.stream(ids)
    return before(pieces, end) if end else pieces


def before(pieces: Iterable[str], end: str) -> Iterator[str]:
    """The text before `end`, which may be spread over pieces: what may be its beginning is held back."""
    held = ""
    for piece in pieces:
        text, found, _ = (held + piece).partition(end)
        held = "" if found else next(end[:n] for n in range(len(end) - 1, -1, -1) if text.endswith(end[:n]))
        if text := text.removesuffix(held):
            yield text
        if found:
            return
    if held:
        yield held


def answer(model, processor, image, question: str, **options) -> str:
    """The answer to one question about a picture (a path, a URL, a PIL image, or None), with `generate`'s options."""
    return "".join(stream(model, processor, processor(question, image), **options)).strip()


def answer_all(
    model, processor, questions: Sequence[tuple], batch_size: int = 64, max_new_tokens: int = 64, title: str = ""
) -> list[str]:
    """The greedy answer to each (question, picture or None), in their order, in batches of questions of about the same
    length.

    Pictures are paths, URLs or PIL images; `title` labels the progress bar. Raises UserError as `generate` does.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i][0]))
    answers = [""] * len(questions)
    for first in tqdm(range(0, len(order), batch_size), desc=title, leave=False, disable=None):
        rows = order[first : first + batch_size]
        batch = collate_prompts([processor(*questions[i]) for i in rows])
        ids = generate_batch(model, **batch, max_new_tokens=max_new_tokens, eos_token_id=end_ids(model, processor))
        for i, answer in zip(rows, ids, strict=True):
            answers[i] = "".join(text_of(processor, answer)).strip()
    return answers


# ------------------------------------------------------------ the loop
def _start(
    model, inputs: dict, max_new_tokens: int, sampling: Sampling, cache: KVCache | None, eos_token_id
) -> Iterator[list]:
    """Prepare inputs, cache and limit, so that every mistake of the caller is raised here; then the loop, which runs
    when iterated.
    """
    if inputs["attention_mask"] is not None:
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        inputs = {**inputs, **left_padded([ids[mask.bool()] for ids, mask in rows])}
    B, T = inputs["input_ids"].shape
    limit = min(max_new_tokens, _room(model, T))
    cache = new_cache(model, B, T + limit) if cache is None else cache
    if cache.capacity < T:
        raise ValueError(f"the KV cache holds {cache.capacity} positions, and the prompt has {T}")
    limit = min(limit, cache.capacity - T + 1)  # the last id does not run
    ends = text_config(model).eos_token_id if eos_token_id is None else eos_token_id
    inputs = {name: tensor.to(cache.keys.device) for name, tensor in inputs.items() if tensor is not None}
    return _loop(model, inputs, cache, sampling, limit, set(_as_list(ends)))


def _loop(
    model, inputs: dict[str, Tensor], cache: KVCache, sampling: Sampling, limit: int, ends: set[int]
) -> Iterator[list[int | None]]:
    """Yield the next id of each row, None for a row whose answer has ended; stop when all have."""
    generator = None if sampling.seed is None else torch.Generator(cache.keys.device).manual_seed(sampling.seed)
    placeholder = getattr(model.config, "image_token_id", math.inf)
    inputs, forward = _uncached(model, inputs, cache), partial(model, cache=cache, last_only=True)
    running = [True] * len(inputs["input_ids"])
    for step in range(limit):
        with torch.inference_mode():  # for each step alone: held over a yield, it would leak into the caller's code
            if step == 1 and can_be_recorded(cache):
                forward = recorded_step(model, cache)
            logits = forward(**inputs)[:, -1].float()  # (B, V)
            if placeholder < logits.shape[-1]:
                logits[:, placeholder] = -math.inf  # it stands for a picture, and an answer holds none
            finite = logits.amax(-1).isfinite()  # (B,): a maximum keeps NaN
            logits = logits.masked_fill(~finite[:, None], 0)
            ids = sample(logits, sampling.temperature, sampling.top_k, sampling.top_p, generator)  # (B,)
        row_ids, row_finite = torch.stack([ids, finite]).tolist()
        if any(still and not finite for still, finite in zip(running, row_finite, strict=True)):
            cache.recorded = None  # its memory holds NaN, too
            raise _overflow(cache.keys.dtype)
        running = [still and token_id not in ends for still, token_id in zip(running, row_ids, strict=True)]
        if not any(running):
            return
        yield [token_id if still else None for still, token_id in zip(running, row_ids, strict=True)]
        inputs = {"input_ids": ids[:, None]}  # (B, 1)


def _overflow(dtype: torch.dtype) -> UserError:
    return UserError(
        "The model's next words have no probabilities (NaN): its numbers are too large for "
        f"{str(dtype).removeprefix('torch.')}, or its weights are damaged; if --dtype float32 does not help, they are."
    )


def _uncached(model, inputs: dict[str, Tensor], cache: KVCache) -> dict[str, Tensor]:
    """The inputs without what the cache already holds: the first positions, and the pictures whose placeholders are
    among them. A picture of which it holds a part runs again as a whole.
    """
    input_ids = inputs["input_ids"]
    cache.truncate(input_ids.shape[1] - 1)  # at least one position has to run, to give logits
    placeholders = (input_ids[0] == getattr(model.config, "image_token_id", -1)).nonzero()[:, 0]
    held, total = int((placeholders < cache.length).sum()), len(placeholders)
    rest = dict(inputs)
    if held and "pixel_values" in inputs:
        pictures = len(inputs.get("image_sizes", inputs["pixel_values"]))
        whole = held * pictures // total  # pictures of one size take equally many placeholders
        if whole * total // pictures < held:
            cache.truncate(int(placeholders[whole * total // pictures]))
        for name in {"pixel_values", "image_sizes"} & set(inputs):
            rest[name] = inputs[name][len(inputs[name]) * whole // pictures :]
            if whole == pictures:
                del rest[name]
    return rest | {"input_ids": input_ids[:, cache.length :]}


def left_padded(prompts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Prompts (T,) of several lengths as one batch: input_ids and attention_mask (B, T) int64, both 0 on the padding at
    the left.
    """
    T = max(map(len, prompts))
    input_ids, attention_mask = torch.zeros(2, len(prompts), T, dtype=torch.int64)
    for row, ids in enumerate(prompts):
        input_ids[row, T - len(ids) :], attention_mask[row, T - len(ids) :] = ids, 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def collate_prompts(inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the processor gives for several prompts, as one batch for `generate_batch`; pictures in their order."""
    images = {name: [one[name] for one in inputs if name in one] for name in ("pixel_values", "image_sizes")}
    return left_padded([one["input_ids"][0] for one in inputs]) | {
        name: torch.cat(tensors) for name, tensors in images.items() if tensors
    }


# ------------------------------------------------------------ the model's limits
def text_config(model):
    """The language model's part of the config, of a Llava or of a LanguageModel."""
    return getattr(model, "language_model", model).config


def end_ids(model, processor) -> list[int]:
    """The tokens that end an answer: the model's own, and that of the template."""
    ends, _ = answer_end(processor.tokenizer, processor.template)
    return [*_as_list(text_config(model).eos_token_id), *ends]


def _as_list(ids: int | Iterable[int]) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids)


def new_cache(model, batch_size: int, capacity: int) -> KVCache:
    """An empty cache of the model's shape, dtype and device; UserError where memory has no room for it."""
    weight = getattr(model, "language_model", model).embed_tokens.weight
    try:
        return KVCache(text_config(model), batch_size, capacity, weight.dtype, weight.device)
    except (RuntimeError, TypeError) as error:  # the latter for a number of more than 64 bits
        raise UserError(
            f"There is no memory for the keys and values of {capacity} tokens: "
            "lower --max-new-tokens, or take a --dtype of two bytes."
        ) from error


def _room(model, length: int) -> int:
    """How many ids fit after a prompt of `length`; UserError if none does."""
    context = text_config(model).max_position_embeddings
    if length >= context:
        raise UserError(
            f"The question is {length} tokens long with its picture and what was said before, "
            f"but the model's context is {context}."
        )
    return context - length
