# %% [markdown]
# # 02 · Attention
#
# We have 49 patches in a row, or ten words in a row. So far each knows only itself. "Is there a cat **above it**?" cannot be answered by a word
# alone: it has to look at others. Attention is how it looks.
#
# **One idea.** Each row asks a question (its query), each row offers an answer to some question (its key) and something to take home (its value). Who
# asks takes home a mean of the values, weighted by how well the keys fit the query.

# %% [markdown]
# The same function serves the vision tower and the language model, so two boxes are filled at once.
#
# ## 1. By hand
#
# Three rows, each with a query, a key and a value of two numbers (D = 2). The score of a query and a key is their product: large where both point the
# same way.

# %%
import math

import torch

from lessons import plots

q = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])  # (T, D)
k = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])  # (S, D)
v = torch.tensor([[10.0, 0.0], [0.0, 20.0], [30.0, 0.0]])  # (S, D)

scores = q @ k.T / math.sqrt(2)  # (T, S)
weights = scores.softmax(-1)  # each row sums to 1
print("scores\n", scores.numpy().round(2))
print("weights\n", weights.numpy().round(2))
print("what each takes home\n", (weights @ v).numpy().round(1))

# %% [markdown]
# Follow the first row. Its query is (2, 0). The keys of rows 0 and 2 are (2, 0) as well, so each of them gets almost half of the weight. It takes
# home nearly the mean of their values, (10, 0) and (30, 0). The second row asks for the other key and takes home most of (0, 20). The third cannot
# decide. The softmax turns any scores into weights that are positive and sum to 1.
#
# That is all of it: **softmax(q kᵀ / √D) v**, from *Attention Is All You Need* ([arXiv 1706.03762](https://arxiv.org/abs/1706.03762)).
#
# ## 2. Why √D?
#
# **Predict a number.** Take two rows of 64 random numbers, each with mean 0 and standard deviation 1, and multiply them: q · k. Do it many times.
# What is the standard deviation of the products?

# %%
generator = torch.Generator().manual_seed(0)
queries, keys = torch.randn(2, 10_000, 64, generator=generator)
products = (queries * keys).sum(-1)
print(f"standard deviation of q · k: {products.std():.1f}")

# %% [markdown]
# <details><summary>The answer</summary>
#
# Each of the 64 products has variance 1, variances add, and the root of 64 is **8**. That is √D. Dividing by it brings the scores back to a standard
# deviation of 1, for any D.
#
# </details>
#
# What is wrong with large scores? Look at the weights of one query over ten keys:

# %%
some = products[:10]
names = [f"key {i}" for i in range(10)]
figure, axes = plots.new(1, 2, height=3.6, sharey=True)
for ax, values, title in zip(axes, ((some / 8).softmax(-1), some.softmax(-1)), ("divided by √D", "as they are")):
    ax.barh(names, values, color=plots.ORANGE)
    ax.set_title(title)
    ax.set_xlim(0, 1)
axes[0].invert_yaxis()
plots.show(
    figure,
    "Two sets of bars over ten keys. Divided by the root of D the weights are spread; undivided, nearly all of it lies on one key.",
)

# %% [markdown]
# Undivided, the largest score takes all. The model has made up its mind before it has learnt anything, and where a weight is 0 or 1 the gradient of
# the softmax is almost 0, so it hardly learns.
#
# ## 3. In the language model
#
# Now a real head. Our language model has five layers. In each, H = 4 heads attend side by side, every one with its own queries of D = 64 numbers. To
# look inside, we put a function that takes notes in the place of the product's attention. The product looks its functions up at each call, so this
# works everywhere.

# %%
import minillava
from lessons.swap import replaced
from minillava.attention import eager_attention, visible
from minillava.inputs.tokenizer import Tokenizer

notes = []


def attention_with_notes(q, k, v, *, causal, start=None, formula=eager_attention):
    """The product's attention, and a note of its scores and mask."""
    shared = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H, S, D): here two query heads share a key head
    scores = q @ shared.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    notes.append((scores, visible(q.shape[2], k.shape[2], causal, start, q.device)))
    return formula(q, k, v, causal=causal, start=start)


language_model = minillava.load_language_model("weights/tiny-language", device="cpu", dtype="float32")
tokenizer = Tokenizer.from_file("weights/tiny-language")
ids, _ = tokenizer.encode("cat, bus, tree. Is there a bus?")
with replaced({"minillava.attention.eager_attention": attention_with_notes}), torch.inference_mode():
    language_model(torch.tensor([ids]))
print(f"{len(notes)} layers, scores {tuple(notes[0][0].shape)}: (B, H, T, S)")

# %% [markdown]
# First the **scores**. A row of the table is a token that asks, a column a token that is asked. We look at the head that looks most at the token just
# before.

# %%
all_weights = torch.cat([scores.masked_fill(~mask, -math.inf).softmax(-1) for scores, mask in notes])  # (L, H, T, S)
to_the_one_before = all_weights.diagonal(-1, 2, 3).mean(-1)  # (L, H)
layer, head = divmod(int(to_the_one_before.argmax()), all_weights.shape[1])
scores, mask = notes[layer][0][0, head], notes[layer][1]
texts = [text.strip() or "·" for text in plots.token_texts(tokenizer, ids)]
print(
    f"layer {layer}, head {head}: on average {100 * to_the_one_before.max():.0f}% of the weight goes to the token before"
)
plots.table(
    scores,
    [[round(value) for value in row] for row in scores.tolist()],
    texts,
    texts,
    "scores",
    plots.DIVERGING,
    (-scores.abs().max(), scores.abs().max()),
    alt="A square table of scores, one for each pair of tokens, positive orange and negative blue, above the diagonal as well as below.",
)

# %% [markdown]
# Next the **mask**. A language model learns to say what comes next, so no token may look at those after it: they would give the answer away. What
# lies above the diagonal is set to minus infinity.

# %%
plots.table(
    scores.masked_fill(~mask, math.nan),
    [[round(value) if seen else "-∞" for value, seen in zip(*rows)] for rows in zip(scores.tolist(), mask)],
    texts,
    texts,
    "after the mask",
    plots.DIVERGING,
    (-scores.abs().max(), scores.abs().max()),
    alt="The same table. Above the diagonal every cell is minus infinity.",
)

# %% [markdown]
# Last the **softmax**, row by row. What was minus infinity becomes exactly 0.

# %%
weights = all_weights[layer, head]
at_the_one_before = int((weights[1:].argmax(-1) == torch.arange(len(ids) - 1)).sum())
plots.table(
    weights,
    [[f"{value:.1f}".lstrip("0") if value > 0.05 else "" for value in row] for row in weights],
    texts,
    texts,
    "after the softmax (below .05 is left out)",
    limits=(0, 1),
    alt="The table of weights, zero above the diagonal. "
    f"In {at_the_one_before} of {len(ids) - 1} rows the largest weight is just below it, at the token before.",
)

# %% [markdown]
# The first token has no choice: it sees only itself, and its weight is 1. No one told this head to look one back. It helped to say the next token, so
# the training made it so. Such heads are found in language models of every size ([arXiv 2209.11895](https://arxiv.org/abs/2209.11895)); others look
# for a word that was said before, and lesson 06 catches one at it.
#
# That the mask keeps the future out can be tested. We change the last token and compare what the model says before it:

# %%
changed = [*ids[:-1], ids[1]]
with torch.inference_mode():
    before, after = language_model(torch.tensor([ids]))[0], language_model(torch.tensor([changed]))[0]  # (T, V)
print("largest change at each position:", [round((a - b).abs().max().item(), 4) for a, b in zip(before, after)])

# %% [markdown]
# ## 4. In the vision tower
#
# A picture has no "next". Every patch may look at every other: no mask. Here we ask a patch that lies on the cat (row 2, column 6) where it looks.
# Three heads near the beginning of the tower, and three near its end:

# %%
from PIL import Image

from minillava.inputs.image import preprocess

cat = Image.open("lessons/images/cat.png").convert("RGB")
tower = minillava.load_vision_tower("weights/tiny-vision", device="cpu", dtype="float32")
notes.clear()
with replaced({"minillava.attention.eager_attention": attention_with_notes}), torch.inference_mode():
    tower(preprocess(cat, image_size=112)[None])
asking = 1 + 7 * 2 + 6  # position 0 is CLS
maps, titles = [], []
for layer in (0, len(notes) - 1):
    for head in range(3):
        maps.append(notes[layer][0][0, head].softmax(-1)[asking, 1:].view(7, 7))
        titles.append(f"layer {layer}, head {head}")
plots.heat_row(
    cat,
    maps,
    titles,
    alt="Six times the cat picture in grey. Orange shows where a patch on the cat looks: three heads of the first layer and three of the last.",
)
on_cat = [(row, column) for row in (1, 2, 3) for column in (5, 6)]
print("share of the weight on the six patches around the cat (12% if it were spread evenly):")
for title, weights in zip(titles, maps):
    print(f"  {title}: {100 * sum(weights[at].item() for at in on_cat):3.0f}%")

# %% [markdown]
# At the beginning the heads look all over the picture, or at what has the same colour. Near the end they know which patches belong together: a patch
# on the cat looks at the cat. A head is not made to mean anything. What it looks for is whatever helped the training.
#
# ## 5. One function, several ways
#
# `minillava/attention.py` has the formula as you have seen it, called "eager". It also has PyTorch's fused version, called "sdpa", which never writes
# the whole table of scores into memory. They are the same function:

# %%
from minillava.attention import attention

q = torch.randn(1, 4, 200, 64, generator=generator)  # (B, H, T, D)
k, v = torch.randn(2, 1, 2, 200, 64, generator=generator)  # (B, K, S, D)
eager, sdpa = (attention(q, k, v, causal=True, implementation=name) for name in ("eager", "sdpa"))
print(f"largest difference {(eager - sdpa).abs().max():.1e}")

# %% [markdown]
# K = 2 heads of keys and values serve H = 4 heads of queries, each of them two (grouped queries, [arXiv
# 2305.13245](https://arxiv.org/abs/2305.13245)). That saves memory where it is scarce, in the cache of keys and values (lesson 08).
#
# The table has T x S numbers in each head and layer. In LLaVA-1.5 a picture takes 576 rows; with a question of 60 tokens the table has 636 x 636 =
# 404,496 numbers, and there are 32 heads in 32 layers: 414 million numbers for one question. This is why the number of patches matters so much, and
# why fused versions exist.
#
# **Your turn.** `lessons/exercises/e02_attention.py` asks for `eager_attention`, about eight lines. Both the tower and the language model then run on
# yours.

# %%
from lessons.check import check

check("attention")

# %% [markdown]
# ## 6. How LLaVA joins picture and words
#
# Other models of that time built something new so that words could look at a picture. Flamingo ([arXiv 2204.14198](https://arxiv.org/abs/2204.14198))
# puts extra attention layers between those of the language model; BLIP-2 ([arXiv 2301.12597](https://arxiv.org/abs/2301.12597)) has a small
# transformer that asks the picture 32 questions. LLaVA adds no attention at all. It puts the patches into the row of words, and the attention that is
# there does the rest: a word that asks finds the patches' keys beside those of the other words. Part of the paper's success is that nothing had to be
# trained for this but one matrix.
#
# ## Questions
#
# **1.** All keys are equal. What does each query take home?
#
# <details><summary>Answer</summary>
#
# All scores in a row are equal, so all weights are: it takes home the plain mean of the values it may see. (With a causal mask, the mean of those so
# far.)
#
# </details>
#
# **2.** A friend sets the masked scores to 0 instead of minus infinity. What happens?
#
# <details><summary>Answer</summary>
#
# exp(0) = 1 and not 0: the future gets weight all the same, more than a visible token with a negative score. In training the model cheats, with a
# fine loss; when it speaks, the future is not there, and it fails.
#
# </details>
#
# **3.** You shuffle the 49 patches (without CLS or positions) before an attention layer without a mask. What changes in its output?
#
# <details><summary>Answer</summary>
#
# The rows of the output are shuffled in the same way, and are otherwise the same: each still sees the same set. This is what lesson 01 measured, and
# why positions must be added.
#
# </details>
