# %% [markdown]
# # 07 · The bridge
#
# Lesson 03 turned a picture into 49 feature vectors. Lessons 04 to 06 built a model that reads vectors, as long as they come from its own table
# of words. The two were trained apart and have never met. This lesson builds what stands between them: a **projector** of two small matrices, and
# a **merge** of three statements.
#
# **One idea.** The projector adds no knowledge. It translates: what the tower already knows, said in vectors that the language model can read.

# %% [markdown]
# ## 1. Two tongues
#
# The tower gives 192 numbers for each patch. The language model reads 256 numbers for each word. The widths differ, and that is the small part of
# the problem. The large part: number 17 of a feature vector and number 17 of a word's embedding have nothing to do with each other. Each model
# invented its own code while it was trained.
#
# In 2023 there were several ways to bring a picture to a language model:
#
# | model | how the picture comes in |
# |---|---|
# | Flamingo ([2204.14198](https://arxiv.org/abs/2204.14198)) | new cross-attention layers inside the language model |
# | BLIP-2 ([2301.12597](https://arxiv.org/abs/2301.12597)) | a small transformer, the Q-Former, which asks the picture 32 questions |
# | **LLaVA** ([2304.08485](https://arxiv.org/abs/2304.08485), section 4.1) | **one matrix**, for each patch by itself |
#
# LLaVA's authors chose the simplest on purpose: with a cheap bridge they could try out many kinds of training data, and the data was what they
# cared about. LLaVA-1.5 ([2310.03744](https://arxiv.org/abs/2310.03744), section 3) put a second matrix after the first, with a GELU between
# them. Here it is, whole:

# %%
import inspect

import torch
import torch.nn.functional as F

import minillava
from lessons import plots
from minillava.projector import Projector
from minillava.training import TrainConfig, starting_point

print(inspect.getsource(Projector))

# %% [markdown]
# > **Predict.** LLaVA-1.5-7B has 7,063,427,072 parameters. Its tower is 1,024 wide, its language model 4,096. What share of all parameters is the
# > projector? Work it out, or guess: 10%, 3%, 1%, 0.3%?
#
# <details><summary>Answer</summary>
#
# 1024 · 4096 + 4096 for the first layer and 4096 · 4096 + 4096 for the second: 20,979,712 parameters, **0.3%**. Two bytes each make 42 MB, the
# size of the file `mm_projector.bin` that the authors published. The one matrix of the first LLaVA had 4,198,400.
#
# </details>
#
# Three models will be compared in this lesson. They have the same tower, and differ in their training:
#
# - `new`: the ready-made tower and the ready-made language model, with a projector of random numbers between them. No training yet.
# - `stage_1`: the projector has been trained on pictures and their descriptions. Nothing else has changed.
# - `stage_2`: projector and language model have been trained on conversations. This is the model that `chat.py` runs.

# %%
new, processor = starting_point(TrainConfig(stage=1))
stage_1, _ = minillava.load("weights/tiny-stage1")
stage_2, _ = minillava.load("weights/tiny")
models = {"new projector": new, "after stage 1": stage_1, "after stage 2": stage_2}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


for part in ("vision_tower", "projector", "language_model"):
    print(f"{part:15} {parameters(getattr(new, part)):10,} parameters")
print(f"the projector's share here: {100 * parameters(new.projector) / parameters(new):.1f}%")

# %% [markdown]
# ## 2. A place for each patch
#
# The picture of this lesson is a scene that no model has seen in training. Since it is made by a program, everything about it is known.

# %%
from minillava.data.scenes import sample_scene, where

scene = sample_scene(2447, "val", max_objects=4)
picture = scene.render()
for thing in scene.things:
    print(f"{thing.name}: {where(thing)}, from pixel {thing.box[:2]} to pixel {thing.box[2:]}")
inputs = processor("Is there a cat?", picture)
print({name: tuple(tensor.shape) for name, tensor in inputs.items()})

# %% [markdown]
# The processor has put 49 copies of one token, `<image>`, where the picture belongs. They are **placeholders**: their embedding is never looked
# up. This is the whole row of positions as the language model will see it:

# %%
texts = plots.token_texts(processor.tokenizer, inputs["input_ids"][0].tolist())
is_image = inputs["input_ids"][0] == new.config.image_token_id
plots.positions(
    picture,
    texts,
    is_image.tolist(),
    alt="The prompt in order: USER:, then 49 patches row by row, then the question's words.",
)

# %% [markdown]
# Look at the proportions. Most of what the model reads is picture. In LLaVA-1.5 it is even more so: 576 positions of picture stand before a
# question of perhaps ten words. And the picture's rows stand in *reading order*, which the language model knows from text.
#
# The merge puts the projected patches in those places. In [`minillava/model.py`](../minillava/model.py) it is three statements and a check:

# %%
from minillava.model import Llava

print(inspect.getsource(Llava.merge))

# %% [markdown]
# Step by step, with real tensors:

# %%
with torch.inference_mode():
    features = stage_2.vision_tower(inputs["pixel_values"])
    image_features = stage_2.projector(features).flatten(0, 1)
    merged = stage_2.merge(inputs["input_ids"], image_features)

print(f"features of the tower   {tuple(features.shape)}")
print(f"after the projector     {tuple(image_features.shape)}")
print(f"merged with the text    {tuple(merged.shape)}")
print("placeholders now hold the patches:", torch.equal(merged[0, is_image], image_features))
words = stage_2.embed_text(inputs["input_ids"][:, ~is_image])
print("all other places hold their words:", torch.equal(merged[0, ~is_image], words[0]))

# %% [markdown]
# From here on the language model cannot tell what was a picture and what was a word. Everything that it receives is a row of 256 numbers, and it
# runs as in lesson 06. That is all there is to LLaVA's architecture.
#
# When the numbers do not fit, the worst thing would be to go on in silence. So `merge` counts:

# %%
try:
    stage_2.merge(inputs["input_ids"], image_features[:-1])
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# ## 3. Which word is nearest to a patch?
#
# The language model knows 256-number vectors of one kind only: the rows of its embedding table, one for each token. A projected patch lies in the
# same space. So we can ask of each patch: **which token's row points most nearly in the same direction?** (The measure is the cosine of the angle
# between two vectors, as in lesson 01.)


# %%
def nearest_words(model, pixel_values):
    """For each patch the text of the token whose embedding is nearest to it by cosine."""
    with torch.inference_mode():
        rows = F.normalize(model.embed_image(pixel_values), dim=-1)  # (P, C)
        table = F.normalize(model.language_model.embed_tokens.weight, dim=-1)  # (V, C)
        nearest = (rows @ table.T).argmax(-1)  # (P,)
    return [processor.tokenizer.token_bytes(i).decode(errors="replace").strip() or "␣" for i in nearest.tolist()]


def draw_words(words, alt):
    """The picture with a word on each patch, bold where the word is the name of a thing in the picture or the background's colour."""
    fitting = {scene.color, *(thing.name for thing in scene.things)}
    plots.words_on_patches(picture, words, {i for i, word in enumerate(words) if word in fitting}, alt=alt)


draw_words(nearest_words(new, inputs["pixel_values"]), "The picture with 49 words that have nothing to do with it.")

# %% [markdown]
# Before any training the projector is a random map. Its vectors point anywhere, and the nearest words are an accident: often the same few words
# everywhere. Now the same tower, the same language model, the same picture, after stage 1. Words in bold name a thing of the picture or the
# colour of its background:

# %%
draw_words(
    nearest_words(stage_1, inputs["pixel_values"]), "The picture with the nearest word on each patch, after stage 1."
)

# %% [markdown]
# Wherever a word fits, nobody told the projector to put it there. In stage 1 it was shown pictures, a request such as "What is in the picture?",
# and the right answer. The only way for it to lower the loss was to send the frozen language model vectors from which that model could speak the
# right answer.
#
# But a vector can be *read* as "cat" without being *near* to the word "cat". The language model never measures an angle to its table. Its first
# layer multiplies the vector by its own matrices, and does not care for the rest. So there is a fairer test: ask the reader. We make a prompt in
# which **one single patch** stands in place of the picture, begin the answer with "There is a", and look which of the world's 144 names the
# language model finds likeliest.

# %%
from minillava.inputs.conversation import encode
from minillava.data.scenes import NAMES

tokenizer = processor.tokenizer
first_token = {name: tokenizer.encode(f"a {name}")[0][1] for name in NAMES}  # of "ice cream" the token "ice"
prompt = encode(
    tokenizer, processor.template, [("user", "What is in the picture?")], image_tokens=1, add_generation_prompt=True
).input_ids
prompt += tokenizer.encode("ASSISTANT: There is a")[0][len(tokenizer.encode("ASSISTANT:")[0]) :]


def words_read(model, pixel_values):
    """For each patch alone the name that the language model finds likeliest after "There is a"."""
    name_ids = torch.tensor([first_token[name] for name in NAMES])
    with torch.inference_mode():
        rows = model.embed_image(pixel_values)  # (P, C)
        embeds = model.merge(torch.tensor([prompt] * len(rows)), rows)  # (P, T, C): each row in a prompt of its own
        logits = model.language_model.logits(model.language_model.hidden_states(embeds)[:, -1])  # (P, V)
    return [NAMES[i] for i in logits[:, name_ids].argmax(-1).tolist()]


draw_words(
    words_read(stage_1, inputs["pixel_values"]),
    "The picture with the name that the language model reads off each patch, after stage 1.",
)

# %% [markdown]
# (Plain background has no name to tell, so there the model says whatever it likes to say.)
#
# How far does this hold beyond one picture? The tiny world knows where each thing's centre lies. Over 40 new scenes we look at the patch there,
# and count how often its word is the thing's name. A word picked blindly from the table would be right once in 1,400 times, a blindly picked name
# once in 144.

# %%
held_out = [sample_scene(seed, "val", max_objects=4) for seed in range(40)]
pictures = [processor.image_inputs(each.render())["pixel_values"] for each in held_out]


def percent_right(model, words_of):
    """Of the things of all scenes, the percent whose centre patch bears the thing's name."""
    right = []
    for each, pixel_values in zip(held_out, pictures, strict=True):
        words = words_of(model, pixel_values)
        for thing in each.things:
            said = words[
                int(thing.y / 16) * 7 + int(thing.x / 16)
            ]  # a patch is 16 pixels wide, and there are 7 in a row
            right.append(said in (thing.name, tokenizer.decode([first_token[thing.name]])))
    return 100 * sum(right) / len(right)


for name, model in models.items():
    print(
        f"{name:15} nearest word right {percent_right(model, nearest_words):5.1f}%    word read right {percent_right(model, words_read):5.1f}%"
    )

# %% [markdown]
# Compare the two columns, and remember two things.
#
# - **The first need not reach 100.** A vector can tell "cat, in the second row, its left edge" and be nearest to no word in particular.
# - **In stage 2 both sides may move.** There the language model learns too, so the two can agree on a code of their own.
#
# And the angle is not all. In length, the rows of a picture need not be like words at all:

# %%
with torch.inference_mode():
    word_length = stage_1.language_model.embed_tokens.weight.norm(dim=-1).mean()
    row_length = stage_1.embed_image(inputs["pixel_values"]).norm(dim=-1).mean()
print(f"mean length of a word's vector {word_length:.1f}, of a projected patch {row_length:.1f}")

# %% [markdown]
# Length does not disturb: each layer begins with an RMSNorm, which divides it away (lesson 06).
#
# ## 4. What it keeps, and what it loses
#
# Lesson 03 used **linear probes**: one linear layer, trained to read a fact off a frozen vector. If the probe finds it, the fact is there to be
# used. We probe each object's centre patch for the object's name and for its row and column, before and behind each projector. (With fewer scenes
# than `python -m minillava.eval.probe` takes, so all figures are lower than in `weights/README.md`. Compare them with one another.)

# %%
from minillava.pretrain.probe import patch_features, probe, probe_scenes

scenes = probe_scenes(1000)
tower_features = patch_features(new.vision_tower, scenes)  # (1000, 49, 192)
figures = {"tower": probe(tower_features, scenes)}
for name, model in models.items():
    with torch.inference_mode():
        projected = model.projector(tower_features)  # (1000, 49, 256)
    figures[name] = probe(projected, scenes)

facts = ("name", "row", "column")
plots.grouped_bars(
    facts,
    {name: [row[fact] for fact in facts] for name, row in figures.items()},
    "percent right, read off an object's centre patch",
    alt="; ".join(
        f"{name}: " + ", ".join(f"{fact} {value}" for fact, value in row.items()) for name, row in figures.items()
    ),
)

# %% [markdown]
# Compare the tower with the **new** projector. A random projector loses little: 192 numbers go into 256, and most of what was there can still be
# read off by a probe that is trained for it. And yet its words were noise. To *keep* what the tower knows is easy. The work of stage 1 is to say
# it **in the right code**, the one that the language model already reads.
#
# Now compare names with places after stage 1. Most of an answer in stage 1 lists things and does not say where they are, so little in its loss
# defends the places. How much gets lost depends on how the projector is trained. When this project tried AdamW at a learning rate of 0.004, a
# probe for the *third* of the picture found the right row in only 70% and the right column in only 64% of cases, where the tower had 99. The
# optimizer Muon, which changes all directions of a matrix about equally, kept them at 99 and 98. (The figure above is stricter: it asks for one
# of seven rows and columns.) A projector can only lose; what is lost here, no language model can bring back. But stage 2 trains the projector,
# too, on questions that ask for places.
#
# ## 5. Erase the cat
#
# If the picture is nothing but 49 rows, we can edit it as rows. The cat covers a few of them. We overwrite those with the row of a patch of plain
# background, and ask again. No pixel changes.


# %%
def covered(thing, side=7, least=0.05):
    """The patches of which the thing's box covers at least this share."""
    x1, y1, x2, y2 = (edge / scene.size * side for edge in thing.box)
    overlap = lambda low, high, cell: max(0, min(high, cell + 1) - max(low, cell))
    return [r * side + c for r in range(side) for c in range(side) if overlap(y1, y2, r) * overlap(x1, x2, c) >= least]


cat = next(thing for thing in scene.things if thing.name == "cat")
busy = {patch for thing in scene.things for patch in covered(thing)}
plain = next(patch for patch in range(49) if patch not in busy)
erased = image_features.clone()
erased[covered(cat)] = image_features[plain]


def ask(question, rows):
    """The answer of stage_2 to a question about these 49 rows."""
    input_ids = processor(question, picture)["input_ids"]
    with torch.inference_mode():
        ids = []
        while len(ids) < 30 and ids[-1:] != [processor.tokenizer.eos_id]:
            embeds = stage_2.merge(torch.cat([input_ids, torch.tensor([ids], dtype=torch.int64)], 1), rows)
            hidden = stage_2.language_model.hidden_states(embeds)
            ids.append(int(stage_2.language_model.logits(hidden[0, -1]).argmax()))
    return processor.tokenizer.decode(ids).strip()


print(f"{len(covered(cat))} of 49 rows overwritten")
for question in ("Is there a cat?", "What is in the picture?"):
    print(f"{question:24} whole: {ask(question, image_features)}")
    print(f"{'':24} erased: {ask(question, erased)}")

# %% [markdown]
# If the answer turns, what the model knew of the cat lay in those rows. If it does not, the tower's attention had carried word of the cat to
# neighbours: try `least=0.0`, or overwrite one ring of patches more.
#
# ## What the paper found
#
# - **The order matters.** Without stage 1, so with a random projector at the start of stage 2, ScienceQA fell from 90.92% to 85.81% (2304.08485,
#   section 5.2). Lesson 11 repeats it at our size.
# - **Two matrices beat one.** In LLaVA-1.5 the step from the linear projector to two layers brought GQA from 46.8 to 47.3, MME from 1323.8 to
#   1355.2 and MM-Vet from 26.3 to 27.8 (2310.03744, table 2).
# - **The limit.** The projector sees each patch by itself and keeps their number: 576 positions for each picture, whether it shows a page of text
#   or a clear sky. A picture costs as much as a long text, in time and in memory (lesson 08).
#
# ## Your turn
#
# Write the two parts of the bridge: `lessons/exercises/e07_projector.py` and `lessons/exercises/e07_merge.py`. Until you do, the checks say so,
# and the course goes on with the reference.

# %%
from lessons.check import check

check("projector")
check("merge")

# %% [markdown]
# ## Three questions
#
# **1.** Why does the embedding of the token `<image>` never need to be learnt?
#
# <details><summary>Answer</summary>
#
# It is never looked up. The token only marks a place; `merge` puts a row of the picture there. In llava-hf's files the rows for it exist only
# because the table was made longer.
#
# </details>
#
# **2.** You double the picture's edge and keep the patch size. What happens to the number of the projector's parameters, and to the number of
# positions?
#
# <details><summary>Answer</summary>
#
# The parameters stay the same, since the projector handles each patch by itself. The positions become four times as many.
#
# </details>
#
# **3.** A linear layer followed by a linear layer is one linear layer. Why does LLaVA-1.5's projector still gain from its second matrix?
#
# <details><summary>Answer</summary>
#
# Because of the GELU between them. It bends the map, so that "this feature *and* that feature" can become a direction of its own. Without it the
# second matrix would indeed be of no use.
#
# </details>
