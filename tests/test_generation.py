"""Generation: transformers' greedy text, the cache, the distribution of a sample, and the limits."""

import math

import pytest
import torch
from conftest import IMAGE, prompt

from minillava.errors import UserError
from minillava.generation import (
    Sampling,
    answer_all,
    before,
    collate_prompts,
    generate,
    generate_batch,
    keep_top_k,
    keep_top_p,
    new_cache,
    sample,
    stream,
)
from minillava.inputs.tokenizer import Tokenizer

NEVER = 10_000  # an end token that no model says


def ids_of(model, inputs, **options):
    return list(generate(model, **inputs, **{"max_new_tokens": 12, "eos_token_id": NEVER, **options}))


def counted(model, monkeypatch) -> dict:
    """Count positions run through the language model, and pictures through the tower."""
    counts = {"positions": 0, "pictures": 0}
    hidden_states, embed_image = model.language_model.hidden_states, model.embed_image

    def run(embeds, *rest):
        counts["positions"] += embeds.shape[1]
        return hidden_states(embeds, *rest)

    def look(pixel_values, image_sizes=None):
        counts["pictures"] += len(pixel_values)
        return embed_image(pixel_values, image_sizes)

    monkeypatch.setattr(model.language_model, "hidden_states", run)
    monkeypatch.setattr(model, "embed_image", look)
    return counts


# ------------------------------------------------------------ greedy
def test_greedy_equals_transformers(pair):
    theirs, ours = pair
    for seed in range(3):
        inputs = prompt(range(3 + seed, 12), seed=seed)
        T = inputs["input_ids"].shape[1]
        expected = theirs.generate(**inputs, max_new_tokens=24, min_new_tokens=24, do_sample=False)[0, T:].tolist()
        assert ids_of(ours, inputs, max_new_tokens=24) == expected


def test_one_position_a_token_and_one_look_at_the_picture(pair, monkeypatch):
    _, ours = pair
    counts, inputs = counted(ours, monkeypatch), prompt(range(3, 12))
    assert len(ids_of(ours, inputs, max_new_tokens=7)) == 7
    assert counts == {"positions": inputs["input_ids"].shape[1] + 6, "pictures": 1}


def test_a_kept_cache_runs_only_what_is_new(pair, monkeypatch):
    _, ours = pair
    counts, inputs = counted(ours, monkeypatch), prompt(range(3, 12))
    cache = new_cache(ours, 1, 64)
    first = ids_of(ours, inputs, cache=cache, max_new_tokens=5)
    assert cache.length == inputs["input_ids"].shape[1] + 4  # the last id has not run
    counts.update(positions=0, pictures=0)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([[*first, 2, 7, 9]])], 1)}
    second = ids_of(ours, longer, cache=cache, max_new_tokens=5)
    assert counts == {"positions": 4 + 4, "pictures": 0}
    monkeypatch.undo()
    assert second == ids_of(ours, longer, max_new_tokens=5)


def test_a_cache_that_holds_the_whole_prompt(pair):
    _, ours = pair
    inputs, cache = prompt(), new_cache(ours, 1, 64)
    expected = ids_of(ours, inputs, cache=cache)
    assert ids_of(ours, inputs, cache=cache) == expected  # cut back to the prompt but its last position


def test_the_second_picture_alone_is_encoded_when_the_cache_holds_the_first(pair, monkeypatch):
    _, ours = pair
    two = prompt(pictures=2)
    expected, cache = ids_of(ours, two), new_cache(ours, 1, 64)
    ids_of(
        ours,
        {"input_ids": two["input_ids"][:, :5], "pixel_values": two["pixel_values"][:1]},
        cache=cache,
        max_new_tokens=1,
    )
    counts = counted(ours, monkeypatch)
    assert ids_of(ours, two, cache=cache) == expected and counts["pictures"] == 1


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9, 11])
def test_a_cache_that_ends_inside_a_picture(pair, length):
    """The pictures' placeholders are the positions 1 to 4 and 5 to 8: what is cut runs again as a whole."""
    _, ours = pair
    two, cache = prompt(range(3, 12), pictures=2), new_cache(ours, 1, 64)
    expected = ids_of(ours, two, cache=cache)
    cache.truncate(length)
    assert ids_of(ours, two, cache=cache) == expected


def test_a_prompt_that_ends_in_a_picture_is_asked_again(pair):
    """As in the template plain: the last position has to run again, and it is a part of the picture."""
    _, ours = pair
    inputs, cache = prompt(text_ids=()), new_cache(ours, 1, 64)
    assert ids_of(ours, inputs, cache=cache) == ids_of(ours, inputs, cache=cache)


def test_a_cache_that_is_too_small_for_the_prompt_is_an_error_at_once(pair):
    _, ours = pair
    T = prompt()["input_ids"].shape[1]
    for capacity in (3, T - 1):
        with pytest.raises(ValueError, match=f"holds {capacity} positions, and the prompt has {T}"):
            generate(ours, **prompt(), cache=new_cache(ours, 1, capacity))  # no next()
    assert len(ids_of(ours, prompt(), cache=new_cache(ours, 1, T))) == 1


@pytest.mark.parametrize("capacity", [10**16, 2**62, 10**30])
def test_a_cache_that_does_not_fit_into_memory(pair, capacity):
    with pytest.raises(UserError, match="lower --max-new-tokens"):
        new_cache(pair[1], 1, capacity)


def test_pictures_that_do_not_fit_the_prompt(pair):
    _, ours = pair
    one, two = prompt(), prompt(pictures=2)
    for ids, pixels in (
        (one["input_ids"], two["pixel_values"]),
        (one["input_ids"], None),
        (torch.tensor([[1, 5]]), one["pixel_values"]),
    ):
        with pytest.raises(ValueError, match="image tokens"):
            ids_of(ours, {"input_ids": ids, "pixel_values": pixels})


def test_ends_before_the_end_token(pair):
    _, ours = pair
    whole = ids_of(ours, prompt())
    end = whole[3]
    assert ids_of(ours, prompt(), eos_token_id=end) == whole[: whole.index(end)]
    assert ids_of(ours, prompt(), eos_token_id=[NEVER, end]) == whole[: whole.index(end)]


def test_a_plain_language_model(pair):
    _, ours = pair
    ids = {"input_ids": torch.arange(3, 10)[None]}
    assert ids_of(ours.language_model, ids) == ids_of(ours, ids)


def test_batch_equals_one_by_one(pair):
    _, ours = pair
    rows = [prompt(range(3, 3 + length), seed=length) for length in (11, 4, 7)]
    alone = [ids_of(ours, row) for row in rows]
    assert generate_batch(ours, **collate_prompts(rows), max_new_tokens=12, eos_token_id=NEVER) == alone
    end = alone[0][4]
    expected = [row[: row.index(end)] if end in row else row for row in alone]
    assert generate_batch(ours, **collate_prompts(rows), max_new_tokens=12, eos_token_id=end) == expected


def test_padding_on_either_side(pair):
    """A batch padded on the right, as the trainings pad, gives the same answers as one padded on the left, and as each
    prompt alone.
    """
    _, ours = pair
    rows = [prompt(range(3, 3 + length), seed=length) for length in (11, 4, 7)]
    left = collate_prompts(rows)
    right = {
        **left,
        "input_ids": torch.zeros_like(left["input_ids"]),
        "attention_mask": torch.zeros_like(left["input_ids"]),
    }
    for index, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        right["input_ids"][index, :length], right["attention_mask"][index, :length] = row["input_ids"][0], 1
    alone = [ids_of(ours, row) for row in rows]
    options = dict(max_new_tokens=12, eos_token_id=NEVER)
    assert generate_batch(ours, **right, **options) == generate_batch(ours, **left, **options) == alone
    one = {name: right[name][1:2] for name in right}
    assert ids_of(ours, one) == alone[1]  # a single prompt with padding, too


def test_collated_prompts_are_padded_on_the_left():
    batch = collate_prompts([{"input_ids": torch.tensor([[5, 6]])}, {"input_ids": torch.tensor([[7, 8, 9]])}])
    assert batch["input_ids"].tolist() == [[0, 5, 6], [7, 8, 9]] and batch["attention_mask"].tolist() == [
        [0, 1, 1],
        [1, 1, 1],
    ]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_a_row_of_a_batch_that_ends_first_stays_ended(pair):
    """Its further tokens, which the batch computes for the others' sake, are not part of its answer, whatever they are."""
    _, ours = pair
    rows = [prompt(range(3, 3 + length), seed=length) for length in (11, 4, 7)]
    alone = [ids_of(ours, row) for row in rows]
    ends = [alone[0][2]]
    expected = [row[: row.index(ends[0])] if ends[0] in row else row for row in alone]
    assert len({len(row) for row in expected}) > 1
    assert generate_batch(ours, **collate_prompts(rows), max_new_tokens=12, eos_token_id=ends) == expected


def test_the_model_cannot_say_a_picture(pair, monkeypatch):
    """The placeholder among the ids would ask for a picture that there is not."""
    _, ours = pair
    forward = ours.language_model.logits
    monkeypatch.setattr(
        ours.language_model, "logits", lambda hidden: forward(hidden).index_fill(-1, torch.tensor([IMAGE]), 99.0)
    )
    assert IMAGE not in ids_of(ours, prompt())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_numbers_that_overflow_are_told(pair, monkeypatch, wrong, temperature):
    """One of them is enough, at whichever token; a row that has ended may say what it likes."""
    _, ours = pair
    logits, steps = ours.language_model.logits, []
    rows = collate_prompts([prompt(range(3, 3 + length), seed=length) for length in (11, 4)])
    ends = [generate_batch(ours, **rows, max_new_tokens=1, eos_token_id=NEVER)[0][0]]  # what the first row says first
    options = dict(temperature=temperature, seed=0, max_new_tokens=6)

    def overflowing(hidden):
        steps.append(1)
        out = logits(hidden).clone()
        out[0, -1, 7] = wrong if len(steps) == 3 else out[0, -1, 7]
        return out

    monkeypatch.setattr(ours.language_model, "logits", overflowing)
    ids = generate(ours, **prompt(), eos_token_id=NEVER, **options)
    assert [next(ids), next(ids)]
    with pytest.raises(UserError, match="too large for float32, or its weights are damaged; if --dtype"):
        next(ids)
    steps.clear()
    if temperature == 0:
        assert generate_batch(ours, **rows, eos_token_id=ends, **options)[0] == []


def test_inference_mode_does_not_leak_over_a_yield(pair):
    _, ours = pair
    for _ in generate(ours, **prompt(), max_new_tokens=3, eos_token_id=NEVER):
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        torch.ones(1, requires_grad=True).mul(2).sum().backward()


def test_the_context_ends_the_answer(pair):
    _, ours = pair
    inputs = prompt(range(3, 40))
    context = ours.config.text_config.max_position_embeddings
    assert len(ids_of(ours, inputs, max_new_tokens=1000)) == context - inputs["input_ids"].shape[1]
    # 8 + 2 positions run, and the last id does not
    assert len(ids_of(ours, prompt(), cache=new_cache(ours, 1, 10), max_new_tokens=50)) == 3
    with pytest.raises(UserError, match=r"128 tokens long .* context is 128"):
        ids_of(ours, {"input_ids": torch.ones(1, context, dtype=torch.int64)})


# ------------------------------------------------------------ the end of an answer
@pytest.mark.parametrize("cut", [1, 2, 3, 99])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A cat.###Human: no", "A cat."),
        ("A ## cat # ####", "A ## cat # "),
        ("A cat.##", "A cat.##"),
        ("###", ""),
        ("", ""),
        ("A cat", "A cat"),
    ],
)
def test_text_before_an_end(text, said, cut):
    """However it is cut into pieces; what is shown is never taken back."""
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert "".join(before(iter(pieces), "###")) == said
    shown = ""
    for piece in before(iter(pieces), "###"):
        assert piece
        shown += piece
        assert said.startswith(shown)


def test_what_may_still_become_the_end_is_held_back_and_no_more():
    pieces = before(iter(["A", " #", "#", " b", "#", "##", "never"]), "###")
    assert list(pieces) == ["A", " ", "## b"]


class Words:
    """A processor of a small tokenizer, with or without the control tokens of chatml."""

    def __init__(self, template, *controls):
        self.tokenizer = Tokenizer.train(["user: what is a cat? yes no ### <|im_end|>\n"] * 3, 300)
        self.tokenizer = self.tokenizer.extended(*controls) if controls else self.tokenizer
        self.template = template

    def ids(self, text):
        return self.tokenizer.encode([text])[0]

    def __call__(self, question, picture):
        return {"input_ids": torch.tensor([[5, 6]])}


CHATML = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("template", "controls", "end"),
    [
        ("v1", (), "</s>"),
        ("llama_2", (), "</s>"),
        ("chatml", CHATML, "<|im_end|>"),
        ("chatml", (), "<|im_end|>"),
        ("v0", (), "###"),
        ("plain", (), "\n"),
    ],
)
def test_an_answer_ends_where_its_template_says(pair, monkeypatch, template, controls, end):
    """Whatever end token the model's config names: as a token where the tokenizer has it, else as text."""
    _, ours = pair
    processor = Words(template, *controls)
    tokenizer = processor.tokenizer
    token = tokenizer.controls.get(end)
    yes, no = processor.ids("yes"), processor.ids("no")
    script = [*yes, *([token] if token is not None else processor.ids(end)), *no, *no]
    logits = torch.full((len(script), tokenizer.vocab_size), -9.0)
    logits[range(len(script)), script] = 9.0
    monkeypatch.setattr(ours, "embed", lambda *inputs: None)
    monkeypatch.setattr(ours.language_model, "hidden_states", lambda *inputs: torch.zeros(1, 1, 1))
    step = iter(range(99))
    monkeypatch.setattr(ours.language_model, "logits", lambda hidden: logits[None, [min(next(step), len(script) - 1)]])
    assert "".join(stream(ours, processor, processor("what?", None), max_new_tokens=len(script))).strip() == "yes"
    step = iter(range(99))
    assert answer_all(ours, processor, [("what?", None)], max_new_tokens=len(script)) == ["yes"]


# ------------------------------------------------------------ sampling
LOGITS = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()


def frequencies(draws=20_000, **options):
    generator = torch.Generator().manual_seed(0)
    ids = sample(LOGITS.expand(draws, -1), generator=generator, **options)
    return (torch.bincount(ids, minlength=5) / draws).tolist()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"temperature": 0.0}, [1, 0, 0, 0, 0]),
        ({"temperature": 1.0}, [0.5, 0.2, 0.15, 0.1, 0.05]),
        ({"temperature": 0.5}, [c / 0.325 for c in (0.25, 0.04, 0.0225, 0.01, 0.0025)]),
        ({"temperature": 1.0, "top_k": 2}, [5 / 7, 2 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 99}, [0.5, 0.2, 0.15, 0.1, 0.05]),
        ({"temperature": 1.0, "top_p": 0.6}, [5 / 7, 2 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.75}, [10 / 17, 4 / 17, 3 / 17, 0, 0]),
        ({"temperature": 1.0, "top_p": 1e-9}, [1, 0, 0, 0, 0]),
        # the order: temperature first (0.77 0.12 ...: top-p 0.7 keeps one), then top-k, and top-p of what top-k left
        ({"temperature": 0.5, "top_p": 0.7}, [1, 0, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.6}, [10 / 14, 4 / 14, 0, 0, 0]),
        ({"temperature": 1e-300}, [1, 0, 0, 0, 0]),
        ({"temperature": 1e9}, [0.2] * 5),
    ],
)
def test_distribution_by_hand(options, expected):
    expected = [c / sum(expected) for c in expected]
    assert all(abs(found - wanted) < 0.015 for found, wanted in zip(frequencies(**options), expected, strict=True))


def test_cuts_equal_transformers():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    for p in (0.1, 0.5, 0.9, 0.99):
        assert torch.equal(
            keep_top_p(logits.double(), p) > -math.inf, TopPLogitsWarper(p)(None, logits.double()) > -math.inf
        )
    for k in (1, 5, 39):
        assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


def test_seed(pair):
    _, ours = pair
    hot = {"temperature": 1.5, "max_new_tokens": 20}
    assert ids_of(ours, prompt(), seed=3, **hot) == ids_of(ours, prompt(), seed=3, **hot)
    assert ids_of(ours, prompt(), seed=3, **hot) != ids_of(ours, prompt(), seed=4, **hot)


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": value} for value in (-0.1, math.nan, math.inf)),
        *({"top_p": value} for value in (0.0, 1.1, math.nan)),
        *({"seed": value} for value in (-1, 2**64)),
        {"top_k": -1},
        {"max_new_tokens": 0},
    ],
)
def test_options_out_of_range_are_said_before_the_first_token(pair, options):
    with pytest.raises(UserError, match=next(iter(options))):
        generate(pair[1], **prompt(), **options)  # no next(): the mistake is found at once
    if "max_new_tokens" not in options:
        with pytest.raises(UserError, match=next(iter(options))):
            Sampling(**options)


def test_an_option_that_does_not_exist(pair):
    with pytest.raises(TypeError, match="repetition_penalty"):
        generate(pair[1], **prompt(), repetition_penalty=1.3)


# ------------------------------------------------------------ the package
def test_the_package_holds_its_public_names():
    import minillava

    assert minillava.generate is generate and minillava.generate_batch is generate_batch
    assert callable(minillava.training.loss) and callable(minillava.load) and callable(minillava.answer)
    assert minillava.load_vision_tower and minillava.load_language_model and minillava.save and minillava.stream
    assert minillava.config.LlavaConfig and minillava.model.Llava and minillava.weights.load is minillava.load
    with pytest.raises(AttributeError):
        minillava.nonsense  # noqa: B018
