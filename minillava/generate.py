"""Generation: one token after the other, each chosen from the logits that follow the last.

    sample(logits, ...)         logits (B, V) -> ids (B,)
    generate(model, ids, ...)   yields the ids of one answer        generate_batch(...)  the answers of several prompts
    stream(...)                 yields its text                     answer(...)          the whole text of one question

Top-p is "nucleus sampling" (arXiv 1904.09751), the repetition penalty CTRL's (arXiv 1909.05858, section 4.1). The prompt runs once and fills
the KV cache; from then on each step runs a single position.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from minillava.errors import UserError
from minillava.kv_cache import KVCache


def sample(logits: Tensor, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """(B, V) -> (B,): the likeliest id at temperature 0, else drawn from softmax(logits / temperature) cut to top-k, then to top-p."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double()
    logits = (logits - logits.max(-1, keepdim=True).values) / temperature  # the likeliest is 0, so a tiny temperature cannot overflow
    if 0 < top_k < logits.shape[-1]:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[..., 0]


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest; of those that tie for the last place, all."""
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest ids whose probabilities reach p together; at least one."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    chances = ordered.softmax(-1)
    before = chances.cumsum(-1) - chances  # what the likelier ids have together
    drop = before >= p
    drop[..., 0] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the ids already said (B, n) less likely: a positive logit is divided by the penalty, a negative one multiplied."""
    scores = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def generate(
    model,
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    cache: KVCache | None = None,
    eos_token_id: int | list[int] | None = None,
    image_sizes: Tensor | None = None,
) -> Iterator[int]:
    """Yield the ids of one answer as they are chosen, without the end token. For a Llava and for a plain LanguageModel.

    input_ids (1, T), pixel_values (N, 3, S, S), LLaVA-NeXT's with image_sizes (N, 2). With a `cache` that already holds the first positions
    of `input_ids`, only the others run; afterwards it holds the prompt and every yielded id but the last (which the next call runs). Ends at
    the end token (`eos_token_id`, or the model's own), after `max_new_tokens`, or where the context is full. Raises UserError for options
    out of range and for a prompt that leaves no room to answer; ValueError for pictures that do not fit the prompt.
    """
    if len(input_ids) != 1:
        raise ValueError(f"generate answers one prompt, not {len(input_ids)}: generate_batch takes several")
    inputs = (input_ids, pixel_values, attention_mask, image_sizes)
    steps = _steps(model, inputs, max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, cache)
    ends = _end_ids(model, eos_token_id)
    return _until(ends, (int(ids) for ids in steps))


def generate_batch(
    model,
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | list[int] | None = None,
    image_sizes: Tensor | None = None,
) -> list[list[int]]:
    """The answers of several prompts, padded on the left: input_ids (B, T), attention_mask (B, T) with 0 on the padding."""
    inputs = (input_ids, pixel_values, attention_mask, image_sizes)
    steps = _steps(model, inputs, max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, None)
    ends, answers = _end_ids(model, eos_token_id), [[] for _ in input_ids]
    unfinished = set(range(len(answers)))
    for ids in steps:
        ids = ids.tolist()
        unfinished -= {row for row in unfinished if ids[row] in ends}
        for row in unfinished:
            answers[row].append(ids[row])
        if not unfinished:
            break
    return answers


def stream(model, processor, inputs: dict[str, Tensor], **options) -> Iterator[str]:
    """The answer's text, piece by piece, never half a character. `inputs` is what the processor gives; options are generate's."""
    return processor.tokenizer.stream(generate(model, **inputs, **options))


def answer(model, processor, image, question: str, **options) -> str:
    """The answer to one question about a picture (a path, a URL, a PIL image, or None); options are generate's."""
    return "".join(stream(model, processor, processor(question, image), **options)).strip()


# ---------------------------------------------------------------------------------------------------------------- the steps
def _steps(model, inputs, max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed, cache) -> Iterator[Tensor]:
    """Check everything at once; then an iterator of (B,) ids, end tokens among them."""
    input_ids = inputs[0]
    check_options(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    room = check_room(model, input_ids.shape[1])
    if cache is None:
        cache = new_cache(model, len(input_ids), input_ids.shape[1] + min(max_new_tokens, room))
    limit = min(max_new_tokens, room, cache.capacity - input_ids.shape[1] + 1)
    device = cache.keys.device
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    inputs = [None if tensor is None else tensor.to(device) for tensor in inputs]
    placeholder = getattr(model.config, "image_token_id", math.inf)

    def choose(logits: Tensor, seen: list[Tensor]) -> Tensor:
        if placeholder < logits.shape[-1]:
            logits[:, placeholder] = -math.inf  # it stands for a picture, and an answer holds none
        if seen and repetition_penalty != 1:
            logits = penalize(logits, torch.stack(seen, -1), repetition_penalty)
        return sample(logits, temperature, top_k, top_p, generator)

    return _loop(model, inputs, cache, choose, limit)


def _loop(model, inputs, cache: KVCache, choose, limit: int) -> Iterator[Tensor]:
    # inference_mode belongs to each step: held over a yield, it would leak into the code of whoever asked.
    with torch.inference_mode():
        logits = _prefill(model, *inputs, cache)
        seen = [choose(logits, [])]
    yield seen[-1]
    for _ in range(limit - 1):
        with torch.inference_mode():
            logits = model(seen[-1][:, None], cache=cache)[:, -1].float()  # (B, V)
            seen.append(choose(logits, seen))
        yield seen[-1]


def _prefill(model, input_ids, pixel_values, attention_mask, image_sizes, cache: KVCache) -> Tensor:
    """Run what the cache does not hold yet; the logits of the last position (B, V)."""
    cache.truncate(input_ids.shape[1] - 1)  # at least one position has to run, to give logits
    rest = input_ids[:, cache.length :]  # (B, T)
    options = {"attention_mask": attention_mask, "cache": cache, "last_only": True}
    if pixel_values is not None:
        held = int((input_ids[:, : cache.length] == model.config.image_token_id).sum())  # a picture that the cache holds is not encoded again
        if image_sizes is not None and not held:
            options |= {"pixel_values": pixel_values, "image_sizes": image_sizes}
        elif image_sizes is None and held // model.config.image_tokens < len(pixel_values):
            options["pixel_values"] = pixel_values[held // model.config.image_tokens :]
    return model(rest, **options)[:, -1].float()


def new_cache(model, batch_size: int, capacity: int) -> KVCache:
    """An empty cache of the model's shape, type and device."""
    weight = _language_model(model).embed_tokens.weight
    return KVCache(text_config(model), batch_size, capacity, weight.dtype, weight.device)


def text_config(model):
    """The language model's part of the config, whether `model` is a Llava or a LanguageModel."""
    return _language_model(model).config


def _language_model(model):
    return getattr(model, "language_model", model)


def _until(ends: set[int], ids: Iterator[int]) -> Iterator[int]:
    for token_id in ids:
        if token_id in ends:
            return
        yield token_id


def _end_ids(model, eos_token_id) -> set[int]:
    ends = text_config(model).eos_token_id if eos_token_id is None else eos_token_id
    return {ends} if isinstance(ends, int) else set(ends)


# ---------------------------------------------------------------------------------------------------------------- the limits
def check_options(
    max_new_tokens: int = 1, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0, seed: int | None = None
) -> None:
    """UserError for an option out of range."""
    for name, value, fits, allowed in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < math.inf, "0 (the likeliest word, always) or more"),
        ("top_k", top_k, top_k >= 0, "0 (no limit) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("repetition_penalty", repetition_penalty, 0 < repetition_penalty < math.inf, "above 0"),
        ("seed", seed, 0 <= (seed or 0) < 2**63, "0 or more and below 2^63"),
    ):
        if not fits:
            raise UserError(f"{name} must be {allowed}, not {value}.")


def check_room(model, length: int) -> int:
    """How many ids fit after a prompt of `length`; UserError if none does."""
    context = text_config(model).max_position_embeddings
    if length >= context:
        raise UserError(f"The question is {length} tokens long with its picture and what was said before, but the model's context is {context}.")
    return context - length
