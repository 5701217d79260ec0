# %% [markdown]
# # 03 · The vision tower
#
# Lesson 01 gave each patch a vector, lesson 02 lets the patches look at one another. Do that several times, one after the other, and you have the
# vision tower. Its input knows colours and edges. Its output knows cats.
#
# **One idea.** Each layer adds a little to every patch. Where the meaning comes from is not the layers, but what they were trained for: to tell which
# phrase is true of which picture.

# %% [markdown]
# ## 1. One layer
#
# A layer has two parts. First the patches look at one another (attention); then each patch thinks for itself (an MLP: a matrix to four times the
# width, a bend, a matrix back). Each part reads a normalised copy of its input and **adds** its result:
#
# $$x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{mlp}(\mathrm{norm}(x))$$
#
# What flows from bottom to top is only ever added to. How much does each layer add?

# %%
import torch
from PIL import Image

import minillava
from lessons import plots
from minillava.inputs.image import preprocess

cat = Image.open("lessons/images/cat.png").convert("RGB")
tower = minillava.load_vision_tower("weights/tiny-vision", device="cpu", dtype="float32")
depth = len(tower.layers)


@torch.inference_mode()
def features_of(pictures):
    """The patches' features before the first layer and after each one: (1 + layers) x (B, P, C)."""
    pixel_values = torch.stack([preprocess(picture, image_size=tower.config.image_size) for picture in pictures])
    outputs, used = [], tower.feature_layer
    hooks = [
        part.register_forward_hook(lambda *call: outputs.append(call[2][:, 1:]))
        for part in (tower.pre_layrnorm, *tower.layers)
    ]
    tower.feature_layer = -1  # all layers
    tower(pixel_values)
    tower.feature_layer = used
    for hook in hooks:
        hook.remove()
    return outputs


layers = features_of([cat])
print("lengths, on average over the patches\nlayer   after it   added by it")
for number in range(1, depth + 1):
    before, after = layers[number - 1], layers[number]
    print(f"{number:5} {after.norm(dim=-1).mean():10.1f} {(after - before).norm(dim=-1).mean():13.1f}")

# %% [markdown]
# Our tower has six such layers of width 192. CLIP's ViT-L/14 has 24 of width 1024, with 12,596,224 weights in each; our `VisionLayer` loads those,
# too.
#
# **Your turn.** `lessons/exercises/e03_vision_layer.py` asks for `VisionLayer`, about six lines. Attention and MLP are given.

# %%
from lessons.check import check

check("vision_layer")

# %% [markdown]
# ## 2. What the patches know, layer by layer
#
# A patch is 192 numbers, too many to look at. We look along three directions only, those in which the patches of objects differ most (their
# **principal components**), and show them as red, green and blue. Two patches of the same colour are alike to the tower. The directions are found on
# 96 pictures, anew for each layer; what is usual at a place in all pictures is taken off first.

# %%
from minillava.data.scenes import sample_scene

FIRST = 1 << 33  # scenes from here on are in no training
many = [sample_scene(FIRST + index, max_objects=4) for index in range(96)]
at_objects = torch.zeros(len(many), 7, 7, dtype=torch.bool)
for picture, scene in enumerate(many):
    for thing in scene.things:
        at_objects[picture, int(7 * thing.y / scene.size), int(7 * thing.x / scene.size)] = True
shown = [cat, many[3].render(), many[9].render()]
of_many, of_shown = features_of([scene.render() for scene in many]), features_of(shown)


def as_colors(features, of_many):
    """(B, P, C) -> (B, 7, 7, 3): along the first three principal components of the patches of objects, each from 0 to 1."""
    usual = of_many.mean(0)  # (P, C)
    objects = (of_many - usual)[at_objects.flatten(1)]  # (objects, C)
    directions = torch.linalg.svd(objects - objects.mean(0), full_matrices=False).Vh[:3]
    low, high = (objects @ directions.T).quantile(torch.tensor([0.02, 0.98]), dim=0)
    return (((features - usual) @ directions.T - low) / (high - low)).clamp(0, 1).view(-1, 7, 7, 3).numpy()


columns = [0, 2, depth - 2, depth - 1]
colored = [as_colors(of_shown[layer], of_many[layer]) for layer in columns]
plots.picture_row(
    [picture for row, own in enumerate(shown) for picture in (own, *(colors[row] for colors in colored))],
    ["picture", *(f"layer {layer}" for layer in columns)],
    columns=5,
    alt="Three pictures, each followed by its 7 by 7 patches as colours after layers 0, 2, 4 and 5. At first the colours follow the background; "
    "later the three backgrounds are much alike, and the objects stand out from them, the four taxis in one colour.",
)

# %% [markdown]
# At layer 0 the colours follow the picture's own, and most of all the background. Going up, the three backgrounds become alike, pink, grey or purple,
# and what stands out are the objects. Look at the four taxis: they stand in four places, two are cut up by the grid in another way than the others,
# and yet they come out in much the same colour.
#
# ## 3. Who taught it? Pictures and phrases
#
# No one ever showed the tower a label. CLIP ([arXiv 2103.00020](https://arxiv.org/abs/2103.00020)) learnt from 400 million pictures with the texts
# beside them on the web. The game is: here are some pictures and some texts, which belongs to which? It is called **contrastive** learning. Here is a
# small round of it:

# %%
from minillava.data.phrases import true_phrases

scenes = [sample_scene(FIRST + index, max_objects=3) for index in (3, 4, 5, 7)]
phrases = [next(phrase for phrase in sorted(true_phrases(scene)) if len(phrase.split()) == 2) for scene in scenes]
phrases += [f"a{'n' * (scene.color[0] in 'aeiou')} {scene.color} background" for scene in scenes[:2]]
truth = torch.tensor([[phrase in true_phrases(scene) for phrase in phrases] for scene in scenes])
plots.picture_row(
    [scene.render() for scene in scenes],
    "ABCD",
    alt="Four scenes: " + "; ".join(", ".join(t.name for t in s.things) for s in scenes),
)
print(f"{'':21}A   B   C   D")
for phrase, row in zip(phrases, truth.T):
    print(f"{phrase:20}", *(f"{'yes' if true else '-':3}" for true in row))

# %% [markdown]
# The tower turns each picture into vectors, a small text encoder turns each phrase into a vector, and the two are pushed together where the table
# says yes, and apart where it does not. There are two ways to keep score:
#
# - CLIP compares one vector for the picture (from CLS) with one for the text, and lets each picture *choose* among the texts of the batch (softmax).
# - Here, "a cat" may be true of many pictures at once, so each cell of the table is a yes or no of its own (sigmoid, as in SigLIP, [arXiv
#   2303.15343](https://arxiv.org/abs/2303.15343)). And each phrase is compared with every patch, where the best ones count (as in FILIP, [arXiv
#   2111.07783](https://arxiv.org/abs/2111.07783)): LLaVA reads the patches, so it is they who have to know.
#
# **Your turn.** `lessons/exercises/e03_contrastive.py` asks for the scores and the loss, about five lines.

# %%
check("contrastive")

# %% [markdown]
# ### A text encoder in half a minute
#
# After the training the text encoder is thrown away; LLaVA has no use for it. For this lesson we train another one, on the finished tower, which
# stays as it is (this is known as locked-image tuning, [arXiv 2111.07991](https://arxiv.org/abs/2111.07991)). It learns the 144 names and the
# background colours, as phrases, with the loss that you have just written.

# %%
import torch.nn.functional as F

from minillava.pretrain import vision as pretrain
from minillava.data.facts import a
from minillava.data.scenes import COLOR_NAMES, NAMES
from minillava.inputs.tokenizer import Tokenizer

tokenizer = Tokenizer.from_file("weights/tiny-vision")
phrases = [a(name) for name in NAMES] + [f"{a(color)} background" for color in COLOR_NAMES]
ids = [torch.tensor(tokenizer.encode(phrase)[0]) for phrase in phrases]
ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id)  # (N, T)
lesson_scenes = [sample_scene(2 * FIRST + index) for index in range(800)]
lesson_features = features_of([scene.render() for scene in lesson_scenes])[
    -1
].clone()  # (pictures, P, C), computed once: the tower stays
lesson_truth = torch.tensor(
    [[phrase in true for phrase in phrases] for true in map(true_phrases, lesson_scenes)]
)  # (pictures, N)

torch.manual_seed(0)
width = tower.config.hidden_size
encoder, projection = pretrain.PhraseEncoder(tokenizer.vocab_size, out=width), torch.nn.Linear(width, width)
log_scale, bias = torch.nn.Parameter(torch.tensor(10.0).log()), torch.nn.Parameter(torch.tensor(-10.0))
weights = [*encoder.parameters(), *projection.parameters(), log_scale, bias]
epochs, losses = 16, []
steps = epochs * len(lesson_features) // 50
optimizer = torch.optim.AdamW(weights, lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
for _ in range(epochs):
    for rows in torch.randperm(len(lesson_features)).split(50):
        scores = pretrain.phrase_scores(
            projection(lesson_features[rows]), encoder(ids), log_scale.exp(), bias
        )  # (50, N)
        loss = pretrain.contrastive_loss(scores, lesson_truth[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
print(f"{steps} steps, loss from {losses[0]:.1f} to {sum(losses[-16:]) / 16:.2f}")

# %% [markdown]
# ### Naming without labels
#
# Now any picture can be compared with any phrase. To name what is in the cat picture, take the phrases that score highest. This is what CLIP is
# famous for as **zero-shot** classification: the list of names can be written down after the training. (Our text encoder has met these names; CLIP's
# has read so many texts that it has met most names.)

# %%
with torch.inference_mode():
    patches = projection(features_of([cat])[-1])  # (1, P, C)
    texts = encoder(ids)  # (N, C)
    scores = pretrain.phrase_scores(patches, texts, log_scale.exp(), bias)[0]  # (N,)
best = scores.topk(7)
plots.bars(
    [phrases[i] for i in best.indices],
    best.values.sigmoid(),
    limit=1,
    title="is it true of the cat picture?",
    alt="The seven phrases with the highest scores: "
    + ", ".join(f"{phrases[i]} {p:.2f}" for i, p in zip(best.indices, best.values.sigmoid())),
)

# %% [markdown]
# And since each phrase is compared with each patch, we can ask where it is true:

# %%
with torch.inference_mode():
    similar = F.normalize(patches[0], dim=-1) @ F.normalize(texts, dim=-1).T  # (P, N)
    fits = (log_scale.exp() * similar).softmax(0)
shown_phrases = ["a cat", "a canoe", "a tulip", "a dog"]
plots.heat_row(
    cat,
    [fits[:, phrases.index(phrase)].view(7, 7) for phrase in shown_phrases],
    shown_phrases,
    alt="Four times the cat picture in grey, with the patches in orange that fit best: for a cat, a canoe, a tulip and a dog, which is not there.",
)

# %% [markdown]
# ## 4. Which layer should the language model read?
#
# LLaVA does not read the last layer of the tower but the one before it, "layer -2". Why? A **probe** shows what can be read off a layer with the
# simplest of means: one linear map, trained on frozen features. We ask it three things about each object, of the patch at its centre: which of 144
# names, which of 7 rows, which of 7 columns.
#
# **Predict a number.** At layer 0 a patch knows only its own 16 x 16 pixels and its place. For what share of the objects will a linear map find the
# name there? (Guessing is right in 0.7%.)

# %%
from minillava.pretrain.probe import probe, probe_scenes

probed = probe_scenes(600)
by_layer = [probe(features, probed) for features in features_of([scene.render() for scene in probed])]
figure, axes = plots.new(height=3.8)
for what, color, marker in (("name", plots.ORANGE, "o"), ("row", plots.BLUE, "s"), ("column", plots.GREEN, "^")):
    axes.plot([row[what] for row in by_layer], color=color, marker=marker, label=what)
axes.axvline(depth - 1, color=plots.GREY, linestyle="--", linewidth=1.5)
axes.text(depth - 1.05, 4, "layer -2", ha="right", color="#555555")
axes.set(ylim=(0, 103), xlabel="after layer", ylabel="read off, percent")
axes.legend(loc="center right", bbox_to_anchor=(1, 0.35))
in_words = {what: ", ".join(f"{row[what]:.0f}" for row in by_layer) for what in ("name", "row", "column")}
plots.show(
    figure, "Percent right against the layer. " + "; ".join(f"{what}: {values}" for what, values in in_words.items())
)

# %% [markdown]
# <details><summary>What to see in it</summary>
#
# Of the patch by itself, about one name in ten: through one linear map the pixels tell little more than colours. Then the share rises with every
# layer, as the patches of an object are brought together. Row and column can be read from the beginning, since the position vector has just been
# added. They rise a little and then fade.
#
# (With more scenes the names come out higher, since the probe has 144 of them to learn: `python -m minillava.eval.probe` prints the figures for
# 4,000.)
#
# </details>
#
# The last layer serves the tower's own training. In CLIP that is one vector for the whole picture, and the patches of the last layer need not say
# anything any more, as no one reads them. One layer earlier they still do. The paper tried both on ScienceQA: 90.92 with the layer before the last,
# 89.96 with the last ([arXiv 2304.08485](https://arxiv.org/abs/2304.08485), section 5.2). The authors' guess is the same: the last layer may look at
# the whole, the one before at local detail.
#
# Our own tower was trained on patches up to its last layer, so the last layer is not lost here. Compare:

# %%
for layer in (-1, -2):
    print(f"layer {layer}: ", "  ".join(f"{what} {value:.1f}" for what, value in by_layer[layer].items()))

# %% [markdown]
# The last layer knows the names best and has begun to let go of the places. One layer earlier both are there. A language model that is asked both
# "What is it?" and "Where is it?" wants both.
#
# A limit to remember: in LLaVA the tower is frozen. What it does not tell apart, no training of the projector or of the language model brings back.
# CLIP was trained on short texts from the web, which seldom say where a thing is or how many there are, and LLaVA inherits that. Our first tower had
# the same weakness: the probe read only 31% of the rows. Place phrases in the training and positions that begin as waves mended it.
#
# ## Questions
#
# **1.** Without a projector and a language model, could you find out whether there is a dog in a picture?
#
# <details><summary>Answer</summary>
#
# Yes: compare the score of "a dog" with a threshold, as above. But each question needs its own phrase and its own meaning of the score. "How many are
# left of the tree?" is not a phrase to be compared; for that LLaVA joins the tower to a language model.
#
# </details>
#
# **2.** In a batch, two pictures both show a cat, and the phrase "a cat" was made for the first. What goes wrong if the table says "true" only for
# the first?
#
# <details><summary>Answer</summary>
#
# The second picture is pushed away from "a cat", against the truth. With 64 pictures of 144 kinds of things this happens at every step. That is why
# the truth is looked up for each picture and each phrase (`true_phrases`). CLIP cannot do that with texts from the web; its texts are long, so two
# seldom fit the same picture.
#
# </details>
#
# **3.** A probe finds the row of 95% of the objects. Does that show that the language model will answer "Where is the cat?" well?
#
# <details><summary>Answer</summary>
#
# No. It shows that the answer is there to be read. Whether the projector keeps it (lesson 07) and the language model learns to use it (lesson 11) are
# further questions. The other way round it is a proof: what a probe cannot find, hardly anything after it will.
#
# </details>
