# %% [markdown]
# # 06 · The decoder
#
# Attention, positions, tokens: all parts of LLaMA are there but two small ones. This lesson adds them, stacks the whole, and then looks inside a
# model at work: what each layer already knows, and which single head answers "Is there a cat?".
#
# **One idea.** A decoder is a row of vectors, one for each token, to which every layer adds something. Attention fetches from other positions, the
# MLP works on each position by itself.

# %% [markdown]
# ## 1. A layer is two additions
#
# $$ x \leftarrow x + \text{Attention}(\text{norm}(x)) \qquad\qquad x \leftarrow x + \text{MLP}(\text{norm}(x)) $$
#
# `x` is called the **residual stream**. It runs from the embeddings to the last norm, and no layer replaces it: each of the two parts reads a
# normed copy of it and adds what it found. What an early layer wrote is still there for a late one to read.
#
# LLaVA's decoder is Vicuna: LLaMA, trained further on conversations that people had shared. It has 32 such layers at 7 billion parameters; ours has
# 5. Nothing in this lesson but the sizes differs.
#
# What is added adds up. Here is the mean length of the stream's vectors, as our model reads a scene that is told in words:

# %%
import numpy as np
import torch

import minillava
from lessons import plots
from minillava.inputs.conversation import encode
from minillava.data.facts import a
from minillava.data.scene_in_words import in_words
from minillava.data.scenes import NAMES, sample_scene
from minillava.language_model import rms_norm
from minillava.inputs.tokenizer import Tokenizer

model = minillava.load_language_model("weights/tiny-language", device="cpu", dtype="float32")
tokenizer = Tokenizer.from_file("weights/tiny-language")
config = model.config


def is_one_token(name):
    return len(tokenizer.encode(a(name))[0]) == 2


def told(scene, name, answer=""):
    """The ids of a scene told as prose and "Is there a ...?", with the answer if one is given."""
    text = in_words(scene, "prose", np.random.default_rng(scene.seed))
    turns = [("user", f"{text}\nIs there {a(name)}?")] + [("assistant", answer)] * bool(answer)
    return encode(tokenizer, "llava_hf", turns, add_generation_prompt=not answer).input_ids


scenes = [sample_scene(seed, "val") for seed in range(200)]
scene = next(s for s in scenes if len(s.things) == 3 and all(is_one_token(thing.name) for thing in s.things))
name = scene.things[0].name
ids = told(scene, name, f"Yes, there is {a(name)}.")
print(tokenizer.decode(ids))

streams = [model.embed_tokens(torch.tensor([ids]))]
hooks = [layer.register_forward_hook(lambda layer, inputs, output: streams.append(output)) for layer in model.layers]
with torch.inference_mode():
    model(torch.tensor([ids]))
for hook in hooks:
    hook.remove()
print(
    "\nlength of the vectors:",
    "  ".join(f"{stream.norm(dim=-1).mean():.0f}" for stream in streams),
    " (embeddings, then after each layer)",
)

# %% [markdown]
# A part that read vectors of such different lengths would be hard to train. So each reads through a norm. **RMSNorm** divides a vector by the root
# of the mean of its squares, and multiplies each entry by a learnt weight:
#
# $$ \text{RMSNorm}(x) = \frac{x}{\sqrt{\text{mean}(x^2) + \epsilon}} \cdot w $$
#
# LayerNorm, in the vision tower, also subtracts the mean and adds a bias; it turned out that neither is needed ([arXiv
# 1910.07467](https://arxiv.org/abs/1910.07467)). Three numbers by hand:

# %%
x = torch.tensor([3.0, 0.0, 4.0])
print(rms_norm(x, torch.ones(3), 1e-6), "= x /", x.pow(2).mean().sqrt().item())
print(rms_norm(100 * x, torch.ones(3), 1e-6), "for 100 x: the length is gone, the direction stays")

# %% [markdown]
# Two traps wait here. The ε stands inside the root. And the squares are summed in float32, even when the model runs in bfloat16: the rounding of a
# sum over 4,096 squares would be felt in every layer.
#
# **Your turn.** `lessons/exercises/e06_rms_norm.py`, about three lines.

# %%
from lessons.check import check

check("rms_norm")

# %% [markdown]
# ## 2. The MLP and its gate
#
# The second part is a small network that runs on each position alone. The tower's MLP has two matrices with a bend between (lesson 03). LLaMA's has
# three (SwiGLU, [arXiv 2002.05202](https://arxiv.org/abs/2002.05202)):
#
# $$ \text{MLP}(x) = \text{down}\,\big(\text{silu}(\text{gate}(x)) \cdot \text{up}(x)\big), \qquad \text{silu}(z) = z \cdot \text{sigmoid}(z) $$
#
# `up` proposes a number for each of 640 units, `gate` decides how much of it goes through, and `down` writes the result back into the stream. The
# gate's curve, silu, is nearly 0 for negative numbers and nearly x for positive ones. Each gate looks at the stream in one direction: it is a
# detector. What does one detect? Let us run the model over conversations, and take the unit that stands out most for one word.

# %%
import torch.nn.functional as F

from minillava.pretrain.language import scene_conversation

gates, seen = [[] for _ in model.layers], []
hooks = [
    layer.mlp.gate_proj.register_forward_hook(
        lambda linear, inputs, output, index=index: gates[index].append(output[0])
    )
    for index, layer in enumerate(model.layers)
]
with torch.inference_mode():
    for index in range(12):
        sample = encode(tokenizer, "llava_hf", scene_conversation((1 << 33) + index)).input_ids
        seen += sample
        model(torch.tensor([sample]))
for hook in hooks:
    hook.remove()
gates = torch.stack([torch.cat(rows) for rows in gates])  # (L, tokens, units)

seen = torch.tensor(seen)
tokens, counts = seen.unique(return_counts=True)
tokens = tokens[counts >= 8]
opened = torch.stack(
    [F.silu(gates[:, seen == token]).mean(1) for token in tokens], 1
)  # (L, different tokens, units): how far each gate opens
words = torch.tensor([len(piece) > 4 for piece in plots.token_pieces(tokenizer, tokens.tolist())])
apart = ((opened - opened.mean(1, keepdim=True)) / opened.std(1, keepdim=True))[:, words].amax(1)  # (L, units)
layer, unit = divmod(apart.argmax().item(), apart.shape[1])
best = opened[layer, :, unit].topk(6)

figure, (top, bottom) = plots.new(2, height=6, height_ratios=(1, 1.2))
top.hist(
    gates.flatten()[::97].numpy(),
    bins=80,
    range=(-4, 4),
    color=plots.BLUE,
    density=True,
    alpha=0.5,
    label="gates of all layers, how often",
)
line = torch.linspace(-4, 4, 200)
top.plot(line, F.silu(line) / 4, color=plots.ORANGE, linewidth=3, label="silu(x) / 4")
top.set(xlabel="gate_proj(x)", yticks=())
top.legend(loc="upper left")
names = plots.token_pieces(tokenizer, tokens[best.indices].tolist())
bottom.barh(range(6), best.values, color=plots.ORANGE)
bottom.set(
    yticks=range(6),
    yticklabels=names,
    title=f"layer {layer}, unit {unit}: where its gate opens",
    xlabel="mean of silu(gate)",
)
bottom.invert_yaxis()
plots.show(
    figure,
    f"Above: most gates are near zero or negative. Below: the gate of unit {unit} in layer {layer} opens at {names[0]!r} and hardly at other tokens.",
)
print(f"{100 * (gates < 0).float().mean():.0f}% of all gates are closed (below 0)")

# %% [markdown]
# One unit is easy to read; most are not, and open for mixtures of things. Do not take the readable ones for the whole.
#
# Where are the parameters? Two thirds of a large decoder are its MLPs:


# %%
def share(hidden, mlp, layers, kv_share, vocabulary, matrices):
    """Parameters of attention, MLPs and embeddings, in millions."""
    return (
        layers * hidden**2 * (2 + 2 * kv_share) / 1e6,
        layers * 3 * hidden * mlp / 1e6,
        matrices * vocabulary * hidden / 1e6,
    )


kv_share = config.num_key_value_heads / config.num_attention_heads
for title, sizes in (
    ("LLaMA-7B", share(4096, 11008, 32, 1, 32000, 2)),
    (
        "ours",
        share(config.hidden_size, config.intermediate_size, config.num_hidden_layers, kv_share, config.vocab_size, 1),
    ),
):
    print(
        f"{title:9} attention {sizes[0]:8.2f}   MLP {sizes[1]:8.2f}   embeddings and head {sizes[2]:7.2f}   total {sum(sizes):8.2f} million"
    )

# %% [markdown]
# **Your turn.** `e06_mlp.py` and `e06_decoder_layer.py`, about ten lines together. Your classes then load the trained weights.

# %%
check("mlp")
check("decoder_layer")

# %% [markdown]
# ## 3. What each layer already knows
#
# At the end, a norm and a matrix (the head) turn the stream into one number for each token of the vocabulary: the logits. Nothing forbids to do so
# earlier. Reading the stream after each layer with the last norm and the head is called the **logit lens**. Each line below is a position of the
# question and its answer; each column says what the model would say next if it ended there.

# %%
with torch.inference_mode():
    lens = torch.stack([model.logits(model.norm(stream[0])).softmax(-1) for stream in streams])  # (L + 1, T, V)
likeliest = lens.max(-1)
texts = plots.token_pieces(tokenizer, ids)
first = len(ids) - 13
table = [
    plots.token_pieces(tokenizer, likeliest.indices[:, position].tolist()) for position in range(first, len(ids) - 1)
]
table = [["(itself)" if says == read else says for says in row] for read, row in zip(texts[first:], table)]
plots.table(
    likeliest.values[:, first:-1].T,
    texts=table,
    rows=texts[first:-1],
    columns=["0 layers", *map(str, range(1, len(streams)))],
    alt="The logit lens: a row for each token read, a column for each number of layers, in each cell the likeliest next token.",
)

# %% [markdown]
# With no layer at all, the model can only say the token that it has just read: the head is the embedding matrix itself (`tie_word_embeddings`). One
# layer knows which words often follow one another. Then look at the line of `?`: the word that decides the answer appears there, two tokens before
# the answer begins, and in an early layer. Somewhere between the name and the question mark the model has looked the word up. Where?
#
# ## 4. The look-up head
#
# Something must compare "cat" in the question with the words above. Only attention reads other positions, so it must be one of its heads. Let us
# ask all of them: how much of its attention does each head give, from the name in the question, to the same name above? The product's own
# `eager_attention` tells, if its values are the unit matrix: then what comes out are the weights themselves.

# %%
from lessons.swap import replaced
from minillava.attention import attention, eager_attention


def attention_weights(ids):
    """The attention weights of all heads on one text: (L, H, T, T)."""
    weights, original = [], attention

    def recording(q, k, v, **options):
        unit = torch.eye(k.shape[2]).expand(*k.shape[:3], -1)  # (B, K, S, S)
        weights.append(eager_attention(q, k, unit, causal=True)[0])
        return original(q, k, v, **options)

    with replaced({"minillava.attention.attention": recording}), torch.inference_mode():
        model(torch.tensor([ids]))
    return torch.stack(weights)


once = [
    (s, n) for s in scenes for n in [s.things[0].name] if is_one_token(n) and [t.name for t in s.things].count(n) == 1
][:24]
looks = torch.zeros(config.num_hidden_layers, config.num_attention_heads)
for scene_, name_ in once:
    prompt = told(scene_, name_)
    *above, asked = [position for position, i in enumerate(prompt) if i == tokenizer.encode(a(name_))[0][1]]
    looks += attention_weights(prompt)[:, :, asked, above].sum(-1) / len(once)
layer, head = divmod(looks.argmax().item(), config.num_attention_heads)
print(f"layer {layer}, head {head} gives {100 * looks[layer, head]:.0f}% of its attention to the same name above")

# %% [markdown]
# Here is what that head looks at from the name in the question (in blue): once when the name stands above, once when it does not. The darker, the
# more attention.

# %%
absent = next(n for n in NAMES[::7] if n not in [t.name for t in scene.things] and is_one_token(n))
rows = {}
for asked_for in (name, absent):
    prompt = told(scene, asked_for)
    asked = max(position for position, i in enumerate(prompt) if i == tokenizer.encode(a(asked_for))[0][1])
    weights = attention_weights(prompt)[layer, head, asked]
    colours = [plots.shade(weight) for weight in weights.tolist()]
    colours[asked] = plots.LIGHT_BLUE
    rows[f"the head looks from {asked_for!r}:"] = (plots.token_pieces(tokenizer, prompt), colours)
plots.token_rows(
    rows,
    letters=42,
    alt=f"Attention of the look-up head as shades. From {name!r} it goes to the same word above; {absent!r} is not above.",
)

# %% [markdown]
# The weights of a softmax sum to 1, so a head that finds nothing must look somewhere. Heads learn to leave such attention where it does no harm:
# ours on words that stand there in any case, heads of large models very often on the first token, an *attention sink* ([arXiv
# 2309.17453](https://arxiv.org/abs/2309.17453)).
#
# That it looks is one thing; that the answer depends on it is another. The test is to switch it off. A head writes into the stream through its D
# columns of `o_proj`: set them to 0, and what it fetched is lost, while everything else stays.
#
# **Predict a number.** Here are 24 scenes that do hold the thing asked about. The model says "Yes" to nearly all. One of its 20 heads is switched
# off, this one. To how many does it still say "Yes"?

# %%
from minillava.generation import left_padded

prompts = left_padded([torch.tensor(told(scene_, name_)) for scene_, name_ in once])
yes, no = (tokenizer.encode(f"ASSISTANT: {word}")[0][-1] for word in ("Yes", "No"))


def count_yes():
    with torch.inference_mode():
        logits = model(**prompts, last_only=True)[:, -1]  # (B, V)
    return int((logits[:, yes] > logits[:, no]).sum())


def without(layer, head):
    """How many "Yes" without one head."""
    weight = model.layers[layer].self_attn.o_proj.weight.data
    columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
    kept = weight[:, columns].clone()
    weight[:, columns] = 0
    try:
        return count_yes()
    finally:
        weight[:, columns] = kept


with_all = count_yes()
each = torch.tensor(
    [[without(row, column) for column in range(config.num_attention_heads)] for row in range(config.num_hidden_layers)]
)

# %% [markdown]
# <details><summary>The answer (open it when you have guessed)</summary>
#
# Next to none: without this head the model says "No" to everything. The picture below shows all heads.
#
# </details>

# %%
figure, panels = plots.new(1, 2, height=4)
for axes, values, strength, title in (
    (panels[0], 100 * looks, looks, "attention to the\nsame name above, %"),
    (panels[1], each, 1 - each / with_all, f'"Yes" without this head\n(with all: {with_all} of {len(once)})'),
):
    axes.imshow(0.6 * strength, cmap=plots.SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values.numpy()):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center")
    axes.set(title=title, xlabel="head", xticks=range(values.shape[1]), yticks=range(values.shape[0]))
panels[0].set_ylabel("layer")
plots.show(
    figure,
    f"Two tables of layers and heads. Head {head} of layer {layer} looks at the same name above; without it the model says Yes "
    f"to {each[layer, head]} of {len(once)} scenes.",
)

# %% [markdown]
# Of 20 heads one does the looking-up, and no other can stand in for it. (Another coloured cell on the right is a head that works on with what this
# one found.) In larger models such work is shared by several heads, and such heads have been found there, too: *duplicate token heads*, which look
# at an earlier copy of their own word ([arXiv 2211.00593](https://arxiv.org/abs/2211.00593)), and *induction heads*, which look at what came after
# it ([arXiv 2209.11895](https://arxiv.org/abs/2209.11895)). You have met ours in lesson 05: its slow pairs compare the words, and its quick pairs
# keep it from looking at itself.
#
# This is what LLaVA lives on. In lesson 07 patches take the place of the words above, and "Is there a cat?" is answered by looking for "cat" among
# 49 of them.
#
# ## 5. The step at which it appeared
#
# The head was not built. It came about in training, and not by itself: from conversations alone it did not form. So our language model had a first
# lesson of its own, before any scene: lists of names, and whether a name is in the list. Only the yes or no pays loss. Here is a sample, and the
# loss, step by step.

# %%
import json
import math
from pathlib import Path

from minillava.pretrain.language import name_list

for speaker, text in name_list(0, as_questions=False) + name_list(1, as_questions=True)[:4]:
    print(f"{speaker:9}  {text!r}")

steps = [json.loads(line) for line in Path("weights/tiny-language/look-up.jsonl").read_text().splitlines()]
steps = [(row["step"], row["loss"]) for row in steps if "loss" in row]
step, loss = map(np.array, zip(*steps))

figure, axes = plots.new()
axes.axhline(math.log(2), color=plots.GREY, linestyle="--")
axes.text(step[-1], math.log(2) + 0.03, "guessing: ln 2", ha="right")
axes.plot(step, loss, color=plots.ORANGE, linewidth=2.5)
axes.set(xlabel="step of training (96 lists each)", ylabel="loss of the yes or no", ylim=(0, 1.2))
plots.show(
    figure,
    "The loss of the look-up lesson. It comes down to ln 2 in 30 steps, stays there for 50, and then falls to nearly nothing.",
)

smooth = np.convolve(loss, np.ones(8) / 8, "valid")
found = step[7 + np.argmax(smooth < math.log(2) / 2)]
print(f"The mean of eight steps falls below half of ln 2 at step {found}, after {96 * (found + 1):,} lists.")

# %% [markdown]
# First the model learns in a few steps that the answer is yes or no, one as often as the other: ln 2 = 0.69. Then nothing seems to happen. Queries
# must come to ask for the word, keys to offer it, values to carry "found", and a later layer to read that: each is worth little without the others,
# so there is hardly a slope to follow. Once a little of each is there, each makes the others worth more, and the loss falls. Large models have such
# a step in their training, too, when their induction heads form (arXiv 2209.11895). A loss that stands still need not be a training that has ended.
#
# ## Three questions
#
# 1. With the head off, the model says "No" to everything. Why not "Yes", or one or the other at random?
#
# <details><summary>Answer</summary>
#
# The head brings the message "found". Where the word is not above, no message comes, and the model has learnt that this means "No". To take the
# head away is to never hear a message.
#
# </details>
#
# 2. Half of the questions in a test are to be answered with "No". How many percent does the model without the head score, and what would you think
#    if you saw only this number?
#
# <details><summary>Answer</summary>
#
# About 50: all the noes and none of the yesses. The number looks like "understands half of it", but it is what a model scores that knows nothing of
# the scene. Always compare with the score of blind guessing. In POPE, the benchmark for this question, half of the answers are yes for that reason
# ([arXiv 2305.10355](https://arxiv.org/abs/2305.10355)).
#
# </details>
#
# 3. All layers add to one stream. Could layer 3 undo what layer 1 wrote?
#
# <details><summary>Answer</summary>
#
# Yes, by adding the opposite. Nothing forbids it, and some heads in large models do so. But there is no eraser: a layer that does not know what was
# written cannot remove it.
#
# </details>
#
# **Next**: the decoder can read. Lesson 07 puts a picture in front of it.
