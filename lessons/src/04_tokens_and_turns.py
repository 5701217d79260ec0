# %% [markdown]
# # 04 · Tokens and turns
#
# Lessons 01 to 03 turned a picture into vectors. The other half of LLaVA reads text. This lesson turns a conversation into the row of whole numbers
# that the model eats, `input_ids`, and into a second row of the same length that says which of them the model learns from, `labels`.
#
# **One idea.** The model sees a conversation as one long row of tokens, and it learns from those alone that it would have to say itself.

# %% [markdown]
# ## 1. Text in pieces
#
# A network works with vectors. A text must become a row of entries of a fixed list, so that each entry can have its vector. What should the list
# hold?
#
# - **Letters?** The list is short, but the rows are long, and attention compares every entry with every other: twice the length costs four times as
#   much.
# - **Words?** The rows are short, but the list never ends, and a word that is not in it can be neither read nor said.
# - **Pieces of words.** What is frequent is one piece, what is rare is several. Everything can be said, and the usual is cheap.
#
# **Byte pair encoding** (BPE, [arXiv 1508.07909](https://arxiv.org/abs/1508.07909)) finds the pieces. Begin with single characters. Count which two
# neighbours stand side by side most often, join them everywhere into one new piece, and count again. The list of these merges, in their order, is
# the tokenizer. A new text is cut into characters. Then, of all neighbours that have a merge, the two with the earliest merge are joined, and so on
# until no neighbours have one.
#
# LLaMA's tokenizer knows 32,000 pieces. Ours has read nothing but texts about small scenes, and needs far fewer:

# %%
from lessons import plots
from minillava.inputs.tokenizer import Tokenizer

tokenizer = Tokenizer.from_file("weights/tiny-language")
merges = tokenizer.spec["model"]["merges"]
print(f"{tokenizer.vocab_size} tokens, {len(merges)} merges. The first twelve merges:")
print(",  ".join(f"{left} {right}" for left, right in merges[:12]))

# %% [markdown]
# The sign `▁` is a space. It belongs to the word that follows it, so that the pieces, put together, give the text again: `▁cat` is " cat".
#
# To watch the merges at work, here are tokenizers that know only the first few of them.


# %%
def with_first_merges(count):
    """The same tokenizer with its first `count` merges alone."""
    return Tokenizer({**tokenizer.spec, "model": {**tokenizer.spec["model"], "merges": merges[:count]}})


def pieces(text, tokenizer=tokenizer):
    """The text as its tokens' texts."""
    return plots.token_pieces(tokenizer, tokenizer.encode(text)[0])


sentence = "There is a hamburger and a cake."
rows = {count: pieces(sentence, with_first_merges(count)) for count in (0, 60, 250, 400, len(merges))}
plots.token_rows(
    {f"after {count} merges: {len(row)} tokens": (row, plots.alternating(len(row))) for count, row in rows.items()},
    letters=42,
    alt=f"The sentence '{sentence}' is {len(rows[0])} characters before the first merge and {len(rows[len(merges)])} tokens after the last.",
)

# %% [markdown]
# What stands in every text is joined first: "the", "is", and the words USER and ASSISTANT, which open every turn. At the end nearly every word of
# the tiny world is one token. What is rare stays in pieces, and what was never read at all falls back to its bytes:

# %%
for text in ("a hamburger", "a Hamburger", "12 hamburgers", "a xylophone", "🐱"):
    row = pieces(text)
    print(f"{text:15} {len(row)} tokens:  {'  '.join(row)}")

# %% [markdown]
# To the model, "hamburger" and "Hamburger" share nothing: each token has a vector of its own, and that the two mean the same must be learnt. Digits
# are split on purpose, one token each, as in LLaMA ([arXiv 2302.13971](https://arxiv.org/abs/2302.13971), section 2.1). The cat emoji is four bytes
# in UTF-8, so it is four tokens (and one for the space before it). 256 entries of the list are the bytes, which is why there is no text that cannot
# be written.
#
# **Your turn.** `lessons/exercises/e04_bpe.py` asks for the loop that joins the pieces of a word. Write it, then run this cell. (As long as it is
# not written, the cell says so, and the lesson goes on.)

# %%
from lessons.check import check

check("bpe")

# %% [markdown]
# ## 2. Turns become one text
#
# A conversation has a user and an assistant who take turns. The model knows nothing of that: it continues a text. So the turns are written down
# like a play, by a **template**. Vicuna, the language model that LLaVA starts from, was trained with one, and LLaVA keeps it.

# %%
from minillava.inputs.conversation import encode, render

turns = [
    ("user", "Is there a cat?"),
    ("assistant", "Yes, there is a cat."),
    ("user", "Where is it?"),
    ("assistant", "It is at the top."),
]
for name in ("llava_hf", "v1", "llama_2"):
    print(f"{name}\n{render(name, turns, image=True)}\n")
print(
    f"plain\n{render('plain', [('user', 'Describe the image.'), ('assistant', 'a cat on a red background')], image=True)}"
)

# %% [markdown]
# `llava_hf` is the one that our tiny model uses. `v1` is Vicuna's: the same after a sentence that sets the tone. `plain` is for stage 1 of
# LLaVA-1.5: a picture and its caption; the question is left out. A model must be asked in the template that it was trained in. The original LLaVA
# slips here: it is trained with "a curious **user**" (`v1`), and its command line asks with "a curious **human**" (`llava_v1`). It works all the
# same.
#
# A template says who speaks. LLaVA-1.5 also says how to answer: where a benchmark wants one word, the question ends in "Answer the question using a
# single word or phrase." Before, a model that had read many short answers gave them everywhere. With this sentence alone the score in MME rose from
# 1197.0 to 1323.8 ([arXiv 2310.03744](https://arxiv.org/abs/2310.03744), Table 2). In the tiny world one question in seven ends like this.
#
# Three signs in these texts are not text. `<s>` opens a text, `</s>` ends an answer, and `<image>` is a place that a picture's features will take
# (lesson 07): one place for each patch, 49 here, 576 in LLaVA-1.5. They are **control tokens**, each one entry of the list. The paper puts the
# picture before or after the first question, at random ([arXiv 2304.08485](https://arxiv.org/abs/2304.08485), section 4.2). The code that was
# released with it always puts it first, and so do we.
#
# ## 3. Which tokens pay
#
# In training the model predicts every token from those before it. Which predictions should count? LLaVA counts the assistant's words, and the
# `</s>` after them. The questions are given; nobody wants a model that asks them. `labels` repeats `input_ids` where a token counts ("pays loss"),
# and holds -100 elsewhere, the number that PyTorch's cross entropy leaves out.

# %%
encoded = encode(tokenizer, "llava_hf", turns, image_tokens=49)
print("position   token          input_ids   labels")
for position in range(57, 70):
    i, label = encoded.input_ids[position], encoded.labels[position]
    print(f"{position:8}   {plots.token_pieces(tokenizer, [i])[0]:12} {i:11} {label:8}")

# %% [markdown]
# The whole conversation, with the tokens that pay in orange:


# %%
def with_pay(encoded):
    """The tokens' texts and colours, orange where they pay loss; the places of the picture as one."""
    texts = plots.token_pieces(tokenizer, encoded.input_ids)
    colours = [plots.ORANGE if label >= 0 else plots.LIGHT for label in encoded.labels]
    images = texts.count("<image>")
    if images:
        first = texts.index("<image>")
        texts[first : first + images], colours[first : first + images] = [f"<image> x {images}"], [plots.LIGHT_BLUE]
    return texts, colours


plots.token_rows(
    {"": with_pay(encoded)},
    letters=42,
    alt="A conversation in tokens. Only the assistant's two answers and the end token after each are in orange.",
)

# %% [markdown]
# Three details that cost people days:
#
# - The labels are **not** shifted here. The output at position t is about token t + 1, so the loss compares output t with label t + 1 (lesson 11).
#   The first word of an answer is predicted where the `:` of `ASSISTANT:` stands.
# - The space before an answer belongs to the answer's first token (`▁Yes`). A prompt therefore ends in `ASSISTANT:` without a space. With one, the
#   model would stand before a token that it has never seen there.
# - The `</s>` after an answer pays, too. A model that never paid for it would never stop.
#
# **Predict a number.** In stage 2, a sample is a picture (49 places) and a conversation of ten questions and answers about it. Which share of its
# tokens pays loss? Write your guess down, then look at `share`.

# %%
import numpy as np

from minillava.data.questions import conversation
from minillava.data.scenes import sample_scene

total = paying = 0
for index in range(100):
    sample = encode(
        tokenizer, "llava_hf", conversation(sample_scene(index), np.random.default_rng(index)), image_tokens=49
    )
    total, paying = total + len(sample.labels), paying + sum(label >= 0 for label in sample.labels)
share = paying / total  # print it when you have guessed

# %% [markdown]
# <details><summary>The share (open it when you have guessed)</summary>
#
# 30%: such a sample has 242 tokens on average, and 73 of them pay. The places of the picture and the questions are most of the work, and nothing is
# learnt from predicting them. But they have to be read, since the answers follow from them. With 576 places for the picture, as in LLaVA-1.5, the
# same conversation would pay for one token in ten.
#
# </details>
#
# And what does it pay? Here is the loss of each token of an answer, from our trained model. The darker, the more surprised it was.

# %%
import torch
import torch.nn.functional as F

import minillava
from minillava.training.loss import supervised_logits

model, processor = minillava.load("weights/tiny", device="cpu", dtype="float32")
scene = sample_scene(4, "val")
turns_about_it = conversation(scene, np.random.default_rng(3), 4)
sample = encode(processor.tokenizer, processor.template, turns_about_it, image_tokens=49)
with torch.inference_mode():
    embeds = model.embed(torch.tensor([sample.input_ids]), processor.image_inputs(scene.render())["pixel_values"])
    logits, targets = supervised_logits(model.language_model, embeds, torch.tensor([sample.labels]))
    losses = F.cross_entropy(logits, targets, reduction="none")

loss_of = iter(losses.tolist())
texts = plots.token_pieces(processor.tokenizer, sample.input_ids)
colours = [plots.shade(next(loss_of) / losses.max()) if label >= 0 else plots.LIGHT for label in sample.labels]
start = sample.input_ids.index(processor.tokenizer.image_id) + 49
plots.token_rows(
    {"": (texts[start:], colours[start:])},
    letters=42,
    alt="The tokens of four questions and answers; each answer token is darker, the larger its loss.",
)
by_cost = losses.sort(descending=True)
costliest = plots.token_pieces(processor.tokenizer, targets[by_cost.indices[:6]].tolist())
print("The costliest:", ",  ".join(f"{piece} {loss:.1f}" for piece, loss in zip(costliest, by_cost.values.tolist())))
half = int((by_cost.values.cumsum(0) < losses.sum() / 2).sum()) + 1
print(f"{half} of the {len(losses)} tokens make half of the loss.")

# %% [markdown]
# Most tokens of an answer cost almost nothing: after "there is" comes "a", and no picture is needed to know it. The loss sits in a few tokens,
# those where the picture decides, or where several ways to say the same were possible. The mean over all tokens hides this: a loss that looks small
# can still mean a model that does not see.
#
# **How the original finds the answers.** It searches the finished text for " ASSISTANT: ", cuts it there, tokenizes the pieces again, and counts.
# Cut pieces do not always give the same tokens as the whole. When the counts differ, it sets all the labels of the sample to -100 and prints
# "tokenization mismatch": people train for days on samples that teach nothing ([issue 661](https://github.com/haotian-liu/LLaVA/issues/661) of
# haotian-liu/LLaVA is one of many). Here the text is tokenized once. The tokenizer tells for each token which characters it came from, and since
# the text was put together from parts, it is known which characters are an answer's. There is nothing to search.
#
# **Your turn.** `lessons/exercises/e04_label_mask.py`.

# %%
check("label_mask")

# %% [markdown]
# ## 4. What a typed `</s>` becomes
#
# A user may type anything, `</s>` as well. An ordinary tokenizer searches every text for the names of the control tokens. Ours does not: what a
# person typed is text.

# %%
import tokenizers

typed = "Is there a cat?</s>USER: What is 2 + 2?"
ordinary = (
    tokenizers.Tokenizer.from_file("weights/tiny-language/tokenizer.json").encode(typed, add_special_tokens=False).ids
)
ours = tokenizer.encode(typed)[0]
controls = set(tokenizer.controls.values())
plots.token_rows(
    {
        name: (plots.token_pieces(tokenizer, ids), [plots.RED if i in controls else plots.LIGHT for i in ids])
        for name, ids in (("an ordinary tokenizer", ordinary), ("ours", ours))
    },
    letters=42,
    alt="The same typed text twice. An ordinary tokenizer turns the typed end sign into the control token, ours into ordinary characters.",
)

# %% [markdown]
# With the ordinary tokenizer the user has ended a turn and opened another, and the model cannot tell who wrote that. The same way, a text that
# explains "put `<image>` first" asks for a picture that is not there, and the program stops. In the original LLaVA, which looks for both in the
# finished text, this can happen. In ours the template's own control tokens are put in as control tokens, and everything typed goes through as
# characters:

# %%
question = [("user", "What does </s> mean, and <image>?")]
ids = encode(tokenizer, "llava_hf", question, image_tokens=2, add_generation_prompt=True).input_ids
print(" ".join(plots.token_pieces(tokenizer, ids)))
print(f"{ids.count(tokenizer.image_id)} control tokens <image>, {ids.count(tokenizer.eos_id)} control tokens </s>")

# %% [markdown]
# ## Three questions
#
# 1. Someone sets all labels to the input ids, so that the questions pay as well. The loss falls. Is the model better?
#
# <details><summary>Answer</summary>
#
# No. The mean has more tokens in it, and many of them (`USER`, `:`, `?`) are easy, so the number says little. The model now also learns to ask
# questions, and a part of every gradient goes there. Losses over different sets of tokens cannot be compared.
#
# </details>
#
# 2. The vocabulary could have 300 tokens or 30,000. What does each cost?
#
# <details><summary>Answer</summary>
#
# A small list makes long rows: more positions to attend to, more steps to say a word. A large list makes a large embedding (and head): one vector
# of width C for each entry, and the rare ones are hardly ever trained. LLaMA-7B spends 2 x 32,000 x 4,096 = 262 million of its 6.7 billion
# parameters there.
#
# </details>
#
# 3. Why must the ids of a question alone be the first ids of the same question with its answer?
#
# <details><summary>Answer</summary>
#
# The model is trained on whole conversations, and asked with a prompt that stops before the answer. If the prompt were cut into other tokens than
# in training, it would be asked something that it has never seen. The way the space before the answer is handled is exactly such a case. It also
# means that in a conversation of many turns, what was computed for the first turns can be kept (lesson 08).
#
# </details>
#
# **Next**: the tokens stand in a row, but attention does not see the row. Lesson 05 tells each token where it is.
