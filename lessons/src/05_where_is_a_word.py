# %% [markdown]
# # 05 · Where is a word?
#
# "The cat is above the dog" and "the dog is above the cat" are the same words. What tells them apart is where the words stand. This lesson gives
# each token its place, in the way LLaMA does it: by **rotary position embedding**, RoPE ([arXiv 2104.09864](https://arxiv.org/abs/2104.09864)).
#
# **One idea.** Turn each query and each key by an angle that grows with its position. Their product then depends on how far apart the two are, and
# not on where in the text they stand.

# %% [markdown]
# ## 1. Attention does not see the row
#
# A score of attention is the product q · k of two vectors (lesson 02), and each is made from one token by itself. Nothing in it says where the
# token stands. How much does a language model lose without that? The positions of our model can be switched off: set its `frequencies`, the speeds
# that this lesson is about, to 0.

# %%
import torch

import minillava
from minillava.inputs.conversation import encode
from minillava.training.loss import next_token_loss
from minillava.pretrain.language import scene_conversation
from minillava.inputs.tokenizer import Tokenizer

language_model = minillava.load_language_model("weights/tiny-language", device="cpu", dtype="float32")
tokenizer = Tokenizer.from_file("weights/tiny-language")
held_out = [
    encode(tokenizer, "llava_hf", scene_conversation((1 << 33) + index)) for index in range(8)
]  # no training reaches these scenes


def mean_loss():
    """The loss on eight conversations about scenes that are told in words."""
    with torch.inference_mode():
        embeds = [language_model.embed_tokens(torch.tensor([sample.input_ids])) for sample in held_out]
        return sum(
            next_token_loss(language_model, e, torch.tensor([s.labels])).item() for e, s in zip(embeds, held_out)
        ) / len(held_out)


frequencies = language_model.frequencies
print(f"loss with positions     {mean_loss():.2f}")
language_model.frequencies = 0 * frequencies
print(f"loss without positions  {mean_loss():.2f}")
language_model.frequencies = frequencies

# %% [markdown]
# (A loss of 0.2 means that the right token had a probability of e^-0.2 = 82%, in the geometric mean; at 3 it is 5%.)
#
# The vision tower has a learnt vector for each of its positions, and adds it to the patch (lesson 01). The first transformers did so with words,
# too. That has two weak points. A text that is longer than the list of vectors has no positions. And "the word just before me" has to be learnt
# again at each position, from the vectors of each two neighbours. In a text, how far apart two words are matters more than where the text began.
#
# ## 2. Pairs that turn
#
# The query of a head has D numbers, here 64. RoPE takes them in pairs: number i with number i + D/2, which makes 32 pairs. A pair is a point in a
# plane. At position p, pair i is turned by the angle p · θᵢ. Each pair has a speed of its own:
#
# $$\theta_i = 10000^{-2i/D}, \qquad i = 0, 1, \dots, D/2 - 1$$
#
# Below, four of the pairs at the positions 0 to 11. Each begins at the right, at the point (1, 0).

# %%
from matplotlib.patches import Circle

from lessons import plots

from minillava.language_model import apply_rope, rope_tables

D = language_model.config.head_dim
cos, sin = rope_tables(frequencies, 0, 12, torch.float32, "cpu")  # (T, D)
ones = torch.cat([torch.ones(12, D // 2), torch.zeros(12, D // 2)], -1)  # every pair is the point (1, 0)
turned = apply_rope(ones, cos, sin)  # (T, D)

figure, panels = plots.new(2, 2, height=6.2)
for axes, pair in zip(panels.flat, (0, 4, 8, 16)):
    x, y = turned[:, pair], turned[:, pair + D // 2]
    axes.add_patch(Circle((0, 0), 1, fill=False, color=plots.GREY))
    axes.scatter(x, y, color=[plots.shade(0.3 + 0.7 * position / 11) for position in range(12)], s=60, zorder=3)
    for position in range(0, 12, {8: 3, 16: 11}.get(pair, 1)):
        axes.text(1.22 * x[position], 1.22 * y[position], str(position), ha="center", va="center")
    axes.set(title=f"pair {pair}", xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axes.set_axis_off()
plots.show(
    figure,
    "Four circles with the positions 0 to 11 as points. Pair 0 goes round in six positions, pair 4 in 20, pair 8 in 63; pair 16 has hardly moved.",
)

# %% [markdown]
# It is a clock with 32 hands. Pair 0 is the second hand: it tells neighbours apart, but after six or seven positions it comes round, and position 1
# and position 7 look alike. The later pairs are hands for minutes, hours and days: they say whether something is near or far, but not whether it is
# the next word or the one after. Together, they name every position.
#
# **Predict a number.** The slowest hand is pair 31. After how many positions has it been round once? Guess the order of magnitude, then look at the
# last entry of `positions_for_one_turn`.

# %%
positions_for_one_turn = 2 * torch.pi / frequencies

# %% [markdown]
# <details><summary>The answer (open it when you have guessed)</summary>
#
# `positions_for_one_turn[-1]` is 47,117: 2π · 10000^(62/64). `positions_for_one_turn[0]` is 6.28. Within our model's texts, of 400 tokens at most,
# the slowest pair turns by three degrees: it hardly knows of positions at all. Remember that; section 4 shows what the model does with it.
#
# </details>
#
# ## 3. Only the distance counts
#
# Let q be turned by the angle mθ and k by nθ. The product of two vectors does not change when both are turned by the same angle, so turn both back
# by nθ. Now k stands as it was, and q is turned by (m - n)θ. So only m - n is left, in each pair, and so in their sum:
#
# $$ (R_m q) \cdot (R_n k) = (R_{m-n}\, q) \cdot k $$
#
# The picture shows the product for one query and one key, drawn at random, against their distance: once with the key at position 0, once at 100,
# once at 700.

# %%
torch.manual_seed(0)
q, k = torch.randn(2, D)
q = 0.5 * q + 0.5 * k  # somewhat alike, so that there is a score to see
cos, sin = rope_tables(frequencies, 0, 1000, torch.float32, "cpu")
scores = {
    at: torch.stack([apply_rope(q, cos[at + d], sin[at + d]) @ apply_rope(k, cos[at], sin[at]) for d in range(61)])
    / D**0.5
    for at in (0, 100, 700)
}

figure, axes = plots.new()
for (at, score), style in zip(scores.items(), ("-", "--", ":")):
    axes.plot(score, style, linewidth=3, label=f"key at position {at}")
axes.set(xlabel="distance between query and key", ylabel="q · k / √D")
axes.legend()
plots.show(
    figure,
    "Three curves of the score against the distance, for keys at the positions 0, 100 and 700. They lie exactly on one another.",
)
print(f"largest difference between the curves: {max((scores[0] - scores[at]).abs().max() for at in (100, 700)):.6f}")

# %% [markdown]
# Three curves, and you see one. This has a welcome consequence: move a whole text by 500 positions, and the model says the same. That is why a
# batch may be padded on the left (lesson 08), and why a question about a picture may stand anywhere in a conversation.
#
# **Your turn.** `lessons/exercises/e05_rope.py` asks for `rope_tables` and `apply_rope`, about six lines together.

# %%
from lessons.check import check

check("rope")

# %% [markdown]
# ## 4. What a trained head does with it
#
# Often one reads that RoPE makes near words weigh more. What do heads in fact learn? In the first layer a query and a key depend on nothing but
# their own token, so everything can be computed: the score that "cat" gives to "cat", 20 positions before it. Here it is for all names of the tiny
# world, for the head of layer 0 that tells best whether two names are the same.

# %%
from minillava.data.facts import a
from minillava.data.scenes import NAMES

layer, config = language_model.layers[0], language_model.config
ids = [tokenizer.encode(a(name))[0] for name in NAMES]
ids = torch.tensor([row[1] for row in ids if len(row) == 2])  # the names that are one token
distances = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
cos, sin = rope_tables(frequencies, 0, max(distances) + 1, torch.float32, "cpu")
with torch.inference_mode():
    x = layer.input_layernorm(language_model.embed_tokens(ids))  # (N, C)
    q = layer.self_attn.q_proj(x).view(len(ids), -1, D).transpose(0, 1)  # (H, N, D)
    k = layer.self_attn.k_proj(x).view(len(ids), -1, D).transpose(0, 1)  # (K, N, D)
    k = k.repeat_interleave(len(q) // len(k), 0)  # (H, N, D)
    scores = torch.stack(
        [apply_rope(q, cos[d], sin[d]) @ k.transpose(1, 2) / D**0.5 for d in distances]
    )  # (distances, H, N, N)
same = scores.diagonal(dim1=2, dim2=3)  # (distances, H, N)
other = (scores.sum(3) - same) / (len(ids) - 1)  # (distances, H, N): the mean over the other names
head = (same - other).mean((0, 2)).argmax().item()

figure, axes = plots.new(height=4)
for values, colour, label in ((same, plots.ORANGE, "the same name"), (other, plots.BLUE, "another name")):
    mean, spread = values[:, head].mean(1), values[:, head].std(1)
    axes.plot(distances, mean, color=colour, linewidth=3, label=label)
    axes.fill_between(distances, mean - spread, mean + spread, color=colour, alpha=0.25)
axes.set(xlabel="distance, in tokens", ylabel="score", xscale="symlog", xticks=(0, 1, 2, 4, 8, 16, 32, 64, 128, 256))
axes.xaxis.set_major_formatter("{x:.0f}")
axes.legend()
plots.show(
    figure,
    f"Scores of head {head} in layer 0 against distance. The same name scores far above others at a distance, and less at 0.",
)

# %% [markdown]
# Read it from right to left. Whether the word stands 10 tokens back or 100, the same name scores ten more than another, or above, and softmax makes
# of ten a factor of e^10, about 22,000. This head *finds the same word again*, wherever it is: no preference for the near ones. But look at the
# left end. At distance 0, where every word meets itself, the score falls. A word is always the same as itself, and a head that is to answer "did
# this word stand **above**?" must not be content with that.
#
# How can one product ask for both, the same word and not here? The pairs share the work:


# %%
def by_pair(distance):
    """How much each pair adds to the score of a name and itself at this distance: (D / 2,)."""
    products = (apply_rope(q[head], cos[distance], sin[distance]) * k[head]).mean(0) / D**0.5  # (D,)
    return products[: D // 2] + products[D // 2 :]


figure, axes = plots.new()
axes.bar(torch.arange(D // 2) - 0.2, by_pair(0), 0.4, color=plots.GREY, label="itself (distance 0)")
axes.bar(torch.arange(D // 2) + 0.2, by_pair(32), 0.4, color=plots.ORANGE, label="the same name, 32 back")
axes.set(xlabel="pair (0 turns fastest, 31 slowest)", ylabel="part of the score")
axes.legend()
plots.show(
    figure,
    "The score of a name with itself, by pair, at the distances 0 and 32. Slow pairs add the same at both; quick ones take away at 0.",
)

# %% [markdown]
# The slow pairs hardly turn, and carry **what**: they add the same at any distance, if the words are the same. The quick pairs carry **where**, and
# are used to say "not here". The same division of labour was found in large models ([arXiv 2410.06205](https://arxiv.org/abs/2410.06205)), where
# some heads use the quickest pairs alone, to look at the word just before. No one told the model to do so. Lesson 06 shows what this head is for.
#
# ## 5. The wrong layout
#
# Which numbers make a pair is a convention. Meta's LLaMA pairs neighbours: 0 with 1, 2 with 3. Hugging Face's pairs i with i + D/2. Both are RoPE,
# and a model trained with one is as good as with the other. But the weights have to be read as they were trained. Here is our model, read with
# neighbours as pairs:

# %%
from lessons.swap import replaced
from minillava.data.facts import names_text
from minillava.data.scenes import sample_scene


def interleaved_rope(x, cos, sin):
    """RoPE in the other layout: number 2i is paired with number 2i + 1."""
    cos, sin = cos[..., : D // 2], sin[..., : D // 2]
    first, second = x[..., 0::2], x[..., 1::2]  # (B, H, T, D / 2) each
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)  # (B, H, T, D)


model, processor = minillava.load("weights/tiny", device="cpu", dtype="float32")
scene = next(scene for scene in (sample_scene(seed, "val") for seed in range(100)) if len(scene.things) == 2)
picture, questions = (
    scene.render(),
    ("What is in the picture?", "How many objects are there?", "What color is the background?"),
)


def answers():
    return [minillava.answer(model, processor, picture, question, max_new_tokens=30) for question in questions]


right, right_loss = answers(), mean_loss()
with replaced({"minillava.language_model.apply_rope": interleaved_rope}):  # as the check puts your own functions in
    wrong, wrong_loss = answers(), mean_loss()
print(f"A held-out picture: {names_text(thing.name for thing in scene.things)} on a {scene.color} background.\n")
for question, one, other in zip(questions, right, wrong):
    print(f"{question}\n    right layout:  {one}\n    wrong layout:  {other}")
print(f"loss on the told scenes: {right_loss:.2f} and {wrong_loss:.2f}")

# %% [markdown]
# Every shape fits, nothing raises an error, and the text may even look like language. That is why this mistake lives long. Now put the rows of
# `q_proj` and `k_proj` in the other order, so that each pair's two numbers become neighbours, and the wrong function becomes the right one:

# %%
import copy

permuted = copy.deepcopy(language_model)
order = torch.arange(D).view(2, D // 2).T.flatten()  # 0, D/2, 1, D/2 + 1, ...
for block in permuted.layers:
    for projection in (block.self_attn.q_proj, block.self_attn.k_proj):
        rows = projection.weight.data.view(-1, D, config.hidden_size)  # (heads, D, C)
        projection.weight.data = rows[:, order].flatten(0, 1)

prompt = torch.tensor([held_out[0].input_ids])
with torch.inference_mode():
    expected = language_model(prompt)
    with replaced({"minillava.language_model.apply_rope": interleaved_rope}):
        print(f"largest difference of a logit: {(permuted(prompt) - expected).abs().max():.6f}")

# %% [markdown]
# The script that converts LLaMA's weights for Hugging Face does this permutation in the other direction. Who loads Meta's files and forgets it,
# gets what you saw above.
#
# ## 6. And the picture?
#
# A picture's features stand in the same row as the words: 49 positions here, row by row, 576 in LLaVA-1.5. For RoPE they are a line. The patch to
# the right of a patch is 1 position away, the one beneath it is 7 positions away (24 in LLaVA-1.5), and the last patch of a row is the neighbour of
# the first patch of the next. That a picture has two dimensions comes from elsewhere: the tower writes rows and columns into its features (lesson
# 03), and the projector has to hand them on (lesson 07).
#
# The length of the row has a limit all the same, the longest that was trained: 2,048 positions in LLaMA 1, 4,096 in Vicuna 1.5. Beyond it the slow
# pairs come to angles that the model has never seen. A picture in LLaVA-NeXT takes up to 2,928 of the 4,096. Longer texts are had by turning more
# slowly (`rope_scaling` in `minillava.language_model.rope_frequencies`).
#
# ## Three questions
#
# 1. Why are queries and keys turned, but not values?
#
# <details><summary>Answer</summary>
#
# Queries and keys decide how much a position counts, and there the distance is to have a say. Values are what is fetched. If they were turned as
# well, the same word would be fetched as another vector from each distance, and the layer after it would have to undo that.
#
# </details>
#
# 2. The key is stored in the KV cache (lesson 08) after it was turned. Why is that allowed?
#
# <details><summary>Answer</summary>
#
# A key's angle depends on its own position alone, and that does not change when the text grows. The distance to a later query comes about by
# itself, since that query is turned by its own position.
#
# </details>
#
# 3. A friend turns by the formula, but computes the angles in bfloat16, which has 8 significant bits. Where does it go wrong?
#
# <details><summary>Answer</summary>
#
# At large positions. From 256 on, bfloat16 cannot hold every whole number: 257 becomes 256, so two neighbours get the same angle, and at 700 four
# of them do. The quick pairs, which tell neighbours apart, are ruined first. `rope_tables` computes angles in float32, and casts the cosines and
# sines, which lie between -1 and 1.
#
# </details>
#
# **Next**: attention, positions, tokens: now all parts of LLaMA are there but two small ones. Lesson 06 puts them together and looks inside.
