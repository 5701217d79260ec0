# %% [markdown]
# # 08 · Speaking
#
# All parts are in place: a picture and a question go in at one end, and logits come out at the other, one number for each token of the
# vocabulary. But logits are not an answer. This lesson closes the loop: choose a token, put it behind the others, run again.
#
# **One idea.** The model says one token at a time, and what it has said is from then on part of the question. Everything that is needed to go on
# fits in a cache of keys and values.

# %% [markdown]
# ## 1. From logits to a word
#
# Here is the picture that has been with us since lesson 00, and a question about it.

# %%
import time

import torch

import minillava
from lessons import plots

model, processor = minillava.load("weights/tiny")
tokenizer = processor.tokenizer
inputs = processor("What is in the picture?", "lessons/images/cat.png")
answer_ids = list(minillava.generate(model, **inputs, max_new_tokens=40))
print(tokenizer.decode(answer_ids))

# %% [markdown]
# `generate` yields token ids one by one, and each was chosen from a list of probabilities. We can see all those lists at once: attention is
# causal, so a single run over the prompt *with* the answer gives at each position exactly the logits that the model had when it was there (lesson
# 06).

# %%
with torch.inference_mode():
    whole = torch.cat([inputs["input_ids"], torch.tensor([answer_ids])], 1)  # (1, T)
    logits = model(whole, inputs["pixel_values"])[0].float()  # (T, V)
start = inputs["input_ids"].shape[1] - 1  # the last position of the prompt gives the answer's first token
probabilities = logits[start:].softmax(-1)  # (answer tokens + 1, V)
print("the most likely token was chosen each time:", probabilities[:-1].argmax(-1).tolist() == answer_ids)

# %% [markdown]
# The next-token bars below stand at the four places of this answer where the model was least sure. The text above each group is what it had said
# before.


# %%
def bars_of(axes, chances, title):
    """The five likeliest tokens as bars."""
    best = chances.topk(5)
    axes.barh(range(5), best.values, color=[plots.ORANGE, *[plots.GREY] * 4])
    axes.set_yticks(range(5), plots.token_texts(tokenizer, best.indices.tolist()))
    axes.set(xlim=(0, 1), xticks=(0, 1), ylim=(4.6, -0.6))
    axes.set_title(title, loc="left", fontsize=12)


unsure = sorted(probabilities[:-1].max(-1).values.argsort()[:4].tolist())
figure, panels = plots.new(2, 2, height=5)
for axes, step in zip(panels.flat, unsure):
    said = tokenizer.decode(answer_ids[:step]).split()
    bars_of(axes, probabilities[step], " ".join(["…", *said[-3:], "…"]) if said else "(the beginning)")
plots.show(
    figure,
    "Four groups of five bars: the likeliest next tokens at the four places of the answer where the model was least sure.",
)

# %% [markdown]
# Most of the answer's tokens are no choice at all: after "there" comes "is". What the model has to *see* is decided in a few places, and there
# the alternatives tell how it works. Is a wrong candidate another thing of this picture, said in another order? Then it is no mistake.
#
# ## 2. To choose, or to draw
#
# `sample` in [`minillava/generation.py`](../minillava/generation.py) is all there is to choosing:

# %%
import inspect

from minillava.generation import sample

print(inspect.getsource(sample))

# %% [markdown]
# At **temperature** 0 it takes the likeliest token, always: *greedy* decoding. The same question then always has the same answer. Otherwise the
# logits are divided by the temperature before the softmax. Below 1 this makes large differences larger, above 1 it levels them. Then one token is
# *drawn*.
#
# Far down the list stand more than a thousand tokens that are each unlikely, and together not so unlikely. **Top-k** keeps the k likeliest.
# **Top-p**, or nucleus sampling ([1904.09751](https://arxiv.org/abs/1904.09751)), keeps as many as it takes to reach the probability p: few where
# the model is sure, many where it is not.
#
# Here is the place of the answer where the model was least sure of all, at three temperatures:

# %%
step = int(probabilities[:-1].max(-1).values.argmin())
figure, panels = plots.new(1, 3, height=2.9, sharey=True)
for axes, temperature in zip(panels, (0.5, 1.0, 2.0)):
    bars_of(axes, (logits[start + step] / temperature).softmax(-1), f"temperature {temperature:g}")
plots.show(
    figure,
    "The same five likeliest tokens at three temperatures: at 0.5 one of them has nearly all, at 2 they are more alike.",
)

# %% [markdown]
# What this does to whole answers (each line is one draw, with its own seed):

# %%
question = "Describe the picture."
for temperature in (0.0, 0.7, 1.5, 3.0):
    print(f"temperature {temperature}")
    for seed in range(1 if temperature == 0 else 3):
        print(
            "   ",
            minillava.answer(
                model,
                processor,
                "lessons/images/cat.png",
                question,
                temperature=temperature,
                seed=seed,
                max_new_tokens=40,
            ),
        )

# %% [markdown]
# For LLaVA's benchmarks the authors' scripts decode greedily, so that a figure can be repeated. Their command line talks at temperature 0.2,
# their web demo at 0.2 with top-p 0.7. A question with one right answer wants a low temperature.
#
# ## 3. No way back
#
# What was said is part of the prompt for what comes next. We put two words into the model's mouth, the beginning of an answer, and let it go on
# from there:


# %%
def go_on(question, said):
    """The model's answer to a question about the cat picture when its answer has to begin with these words."""
    prompt = processor(question, "lessons/images/cat.png")
    forced = tokenizer.encode(f"ASSISTANT: {said}")[0][len(tokenizer.encode("ASSISTANT:")[0]) :]
    prompt["input_ids"] = torch.cat([prompt["input_ids"], torch.tensor([forced], dtype=torch.int64)], 1)
    return said + "|" + tokenizer.decode(minillava.generate(model, **prompt, max_new_tokens=30))


print(minillava.answer(model, processor, "lessons/images/cat.png", "Is there a cat?"))
print(go_on("Is there a cat?", "Yes,"))
print(go_on("Is there a cat?", "No,"))

# %% [markdown]
# After "No," the only good sentence is one that denies the cat, so that is what follows, whatever the picture shows. The model does not look
# again and take it back. This is one root of what is called *hallucination*: an early word, chosen on weak grounds, and a fluent continuation
# that has to agree with it. It is also why the benchmark POPE ([2305.10355](https://arxiv.org/abs/2305.10355)) asks plain yes-or-no questions,
# where the first word decides.
#
# ## 4. What is the same in every step
#
# To choose the next token, the model needs the last position's output alone. But attention at that position reads the keys and values of *all*
# positions. Without further thought, each step runs the whole row again: the 49 patches, the question, all words said so far. Almost all of it
# gives the very same numbers as the step before. Nothing at a position ever changes when something is added behind it, again because attention is
# causal.
#
# So we keep what can be asked for again, the **keys and values** of each layer, and run only the new position. The queries are not kept: each is
# used once, at its own position. `KVCache` in [`minillava/kv_cache.py`](../minillava/kv_cache.py) is two tensors and a length:

# %%
from minillava.kv_cache import KVCache

print(inspect.getsource(KVCache.append))

# %% [markdown]
# With and without, token by token. We let the model talk on after its answer has ended (`eos_token_id=-1` is a token that never comes); we only
# want the time.

# %%
COUNT = 160


def without_cache():
    """Yield COUNT ids, each from a run over all positions. The picture is embedded once, so that only the language model is compared."""
    with torch.inference_mode():
        image_features, ids = model.embed_image(inputs["pixel_values"]), inputs["input_ids"]
        for _ in range(COUNT):
            hidden = model.language_model.hidden_states(model.merge(ids, image_features))
            token = model.language_model.logits(hidden[:, -1]).argmax(-1)
            yield token.item()
            ids = torch.cat([ids, token[:, None]], 1)


def with_cache():
    return minillava.generate(model, **inputs, max_new_tokens=COUNT, eos_token_id=-1)


def timed(tokens):
    """The ids, and the milliseconds before each."""
    ids, times, last = [], [], time.perf_counter()
    for token in tokens:
        now = time.perf_counter()
        ids.append(token)
        times.append(1000 * (now - last))
        last = now
    return ids, times


slow_ids, slow = timed(without_cache())
fast_ids, fast = timed(with_cache())
print("the same tokens:", slow_ids == fast_ids)
print(f"without cache {sum(slow):6.0f} ms, with cache {sum(fast):6.0f} ms for {COUNT} tokens")


def quickest(times, window=16):
    """The quickest token of each stretch: other programs on the machine can only make one slower."""
    return [min(times[i : i + window]) for i in range(0, len(times), window)]


figure, axes = plots.new(height=3.4)
for times, color, name in ((slow, plots.GREY, "all positions again"), (fast, plots.ORANGE, "with the cache")):
    axes.plot(range(8, COUNT, 16), quickest(times), "o-", color=color, label=name)
axes.set(xlabel="tokens of the answer so far", ylabel="ms a token", ylim=(0, 1.1 * max(quickest(slow))))
axes.legend()
plots.show(
    figure,
    "Milliseconds a token against the answer's length: without the cache they rise with the length, with it they stay low.",
)

# %% [markdown]
# The first token costs about the same in both: the prompt has to run once (this is called *prefill*; all its positions run in parallel). From
# then on the time of a token grows with the length on one side, and hardly changes on the other. The longer the answer, the wider the gap.
#
# > **Predict.** The cache is paid for in memory. LLaVA-1.5-7B has 32 layers with 32 key/value heads of 128 numbers each, two bytes a number. One
# > picture is 576 positions. How many megabytes of cache does **one picture** fill?
#
# <details><summary>Answer</summary>
#
# Keys and values, so 2 · 32 layers · 32 heads · 128 numbers · 2 bytes = 524,288 bytes, half a MiB, for each position. 576 of them are **288
# MiB**, for one picture, before the first word. That limits how many people a server can talk with at once.
#
# </details>


# %%
def bytes_per_position(config, bytes_per_number):
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number


from minillava.config import TextConfig  # its defaults are LLaMA-7B

tiny = model.config.text_config
for name, config, bytes_per_number, patches in (("LLaVA-1.5-7B", TextConfig(), 2, 576), ("weights/tiny", tiny, 4, 49)):
    each = bytes_per_position(config, bytes_per_number)
    print(f"{name}: {each:7,} bytes a position, {patches * each / 2**20:6.2f} MiB a picture")
    print(f"    {config.num_attention_heads} query heads share {config.num_key_value_heads} key/value heads")

# %% [markdown]
# The tiny model has *grouped queries* ([2305.13245](https://arxiv.org/abs/2305.13245)): several query heads share one key/value head, and the
# cache shrinks by that factor. LLaMA-2-70B has 8 key/value heads for 64 query heads.
#
# ## 5. What it looked at
#
# When the model is about to say "tulip", is it looking at the tulip? Attention weights tell where a head reads. There are many heads, and
# most of them do other things: they look at the word before, or at the question. So we first let the heads compete. On 24 scenes we put the
# *right* answer into the model's mouth, and watch the position before each thing's name, where that name has to be found. How much of its weight
# does each head put on the patches that the thing covers?

# %%
import minillava.language_model as language_module
from minillava.attention import attention, eager_attention
from minillava.data.answers import names_in
from minillava.data.facts import Facts, sentence
from minillava.data.scenes import sample_scene


def attention_weights(input_ids, pixel_values):
    """The attention weights of all heads: (L, H, T, T). The values are replaced by the unit matrix, so that attention's output is its weights."""
    weights = []

    def recording(q, k, v, **options):
        unit = torch.eye(v.shape[2]).expand(*v.shape[:2], -1, -1)
        weights.append(eager_attention(q, k, unit, causal=True)[0])
        return attention(q, k, v, **options)

    language_module.attention = recording
    try:
        with torch.inference_mode():
            model(input_ids, pixel_values)
    finally:
        language_module.attention = attention
    return torch.stack(weights)


def before_names(ids, names):
    """{name: the position before its first token}, for those of the names that are said."""
    first = {name: tokenizer.encode(f"a {name}")[0][1] for name in names}
    return {name: ids.index(token) - 1 for name, token in first.items() if token in ids}


def box_patches(thing, size, side=7):
    """Which of the 49 patches have their middle in the thing's box: (49,) bool."""
    x1, y1, x2, y2 = (edge / size * side for edge in thing.box)
    middle = torch.arange(side) + 0.5
    rows, columns = (y1 <= middle) & (middle <= y2), (x1 <= middle) & (middle <= x2)
    return (rows[:, None] & columns).flatten()


on_thing, area = [], []
for seed in range(24):
    scene = sample_scene(seed, "val", max_objects=4)
    turns = [("user", "What is in the picture?"), ("assistant", sentence(Facts(scene).there_listing()))]
    told = processor(turns, scene.render(), add_generation_prompt=False)
    image = (told["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    weights = attention_weights(**told)
    alone = {thing.name: thing for thing in Facts(scene).single}
    for name, position in before_names(told["input_ids"][0].tolist(), alone).items():
        patches = box_patches(alone[name], scene.size)
        if patches.any():
            on_thing.append(weights[:, :, position, image][:, :, patches].sum(-1))
            area.append(patches.float().mean())
on_thing = torch.stack(on_thing).mean(0)  # (L, H)
layer, head = divmod(on_thing.argmax().item(), on_thing.shape[1])
print(f"{len(area)} names; the things cover {100 * torch.stack(area).mean():.0f}% of the picture on average")
print(
    f"layer {layer}, head {head} puts {100 * on_thing[layer, head]:.0f}% of its weight on the thing that is named next"
)

# %% [markdown]
# Now that head alone, on the cat picture, which was not among the 24 scenes. One panel for each name in the answer: orange patches got much of
# the head's weight at the moment when the name was chosen.

# %%
weights = attention_weights(whole, inputs["pixel_values"])[layer, head]
image = (whole[0] == model.config.image_token_id).nonzero()[:, 0]
named = list(before_names(whole[0].tolist(), names_in(tokenizer.decode(answer_ids))).items())[:4]
maps = [weights[position][image].view(7, 7) for _, position in named]
alt = "The cat picture in grey, once for each name in the answer, with the patches orange that the head looked at."
plots.heat_row(plots.Image.open(plots.CAT), maps, [name for name, _ in named], alt=alt)

# %% [markdown]
# A word of caution. We chose the one head that looks best, out of many. It shows that the model *can* find a thing by attention, and no more:
# other heads add what they read, and a weight says where a head reads, not what it does with it. A stronger test is to take something away and
# see whether the answer changes, as in lesson 07 with the cat's rows, or in lesson 06 with the look-up head.
#
# ## Your turn
#
# Write `KVCache.append` and `sample`: `lessons/exercises/e08_kv_cache.py` and `lessons/exercises/e08_sample.py`.

# %%
from lessons.check import check

check("kv_cache")
check("sample")

# %% [markdown]
# With these two, you have written every part of the way from a picture to a sentence. Talk to a model that runs on your own parts: `python
# chat.py --image lessons/images/cat.png --with lessons/exercises/e08_sample.py --with lessons/exercises/e08_kv_cache.py`.
#
# ## Three questions
#
# **1.** Why are keys and values cached, and queries not?
#
# <details><summary>Answer</summary>
#
# Later positions read the keys and values of earlier ones. A query is used once, by its own position, when that runs.
#
# </details>
#
# **2.** At temperature 0, does top-p change anything? And at a temperature of 1000, what does `sample` do?
#
# <details><summary>Answer</summary>
#
# No: the likeliest token is always among those that are kept. At 1000 all logits become nearly equal, so every token that top-k and top-p leave
# is about equally likely: noise.
#
# </details>
#
# **3.** Ten people ask different questions about the same picture. Which part of the work can be shared?
#
# <details><summary>Answer</summary>
#
# The vision tower, the projector, and the prefill of everything up to the end of the picture, since it stands before the question: the cache of
# those positions is the same for all. `generate` takes such a cache and runs only what it does not hold yet.
#
# </details>
