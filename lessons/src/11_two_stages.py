# %% [markdown]
# # 11 · Two stages
#
# All parts of the model are written. Two of them come trained: the vision tower and the language model. Between them stands a projector of random
# numbers. How do the three become one model that follows instructions about pictures? This is the part of the paper that gave it its name:
# *Visual Instruction Tuning*.
#
# **One idea.** First teach the bridge alone, with everything else frozen. Then teach bridge and language model together, on conversations.

# %% [markdown]
# ## 1. What learns when
#
# | | stage 1: feature alignment | stage 2: visual instruction tuning |
# |---|---|---|
# | learns | the projector | the projector and the language model |
# | frozen | tower, language model | tower |
# | reads | pictures with a short description | pictures with conversations |
# | is for | a patch of a cat gets a vector that the language model can read | the model does what it is asked to do |
#
# The paper's own settings (2304.08485, sections 4.2 and appendix; LLaVA-1.5 in 2310.03744, table 9):
#
# | | LLaVA stage 1 | LLaVA stage 2 | LLaVA-1.5 stage 1 | LLaVA-1.5 stage 2 |
# |---|---|---|---|---|
# | samples | 595,000 | 158,000 | 558,000 | 665,000 |
# | epochs | 1 | 3 | 1 | 1 |
# | samples a step | 128 | 32 | 256 | 128 |
# | learning rate | 0.002 | 0.00002 | 0.001 | 0.00002 |
# | on 8 A100 | 4 hours | 10 hours | 5.5 hours (13B) | 20 hours (13B) |
#
# Look at the learning rates. The projector begins as noise and may move fast. The language model knows its trade, and gets steps 50 to 100 times
# smaller: it is to learn something new without forgetting what it can do.
#
# In this project a stage is two lines of data: which parameters learn, and the settings. `set_trainable` does the freezing.

# %%
import inspect
import json
import math
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch

import minillava
from lessons import plots
from minillava import training
from minillava.training import STAGES, TrainConfig, set_trainable, starting_point

print(inspect.getsource(set_trainable))
new, processor = starting_point(TrainConfig(stage=1))  # tiny-vision, tiny-language, and a new projector between them
for stage, name in ((1, "stage 1"), (2, "stage 2")):
    set_trainable(new, stage)
    learning = sum(p.numel() for p in new.parameters() if p.requires_grad)
    total = sum(p.numel() for p in new.parameters())
    print(
        f"{name}: {learning:9,} of {total:,} parameters learn, {100 * learning / total:.1f}%: {', '.join(STAGES[stage].trained)}"
    )

# %% [markdown]
# A frozen parameter costs no optimizer state and gets no gradient. But the gradient still has to pass *through* the frozen language model to
# reach the projector in front of it. Only the tower's backward pass is saved.
#
# ## 2. What is read
#
# One picture, as it is told of in each stage:

# %%
from minillava.training.samples import SceneSamples

captions, conversations = SceneSamples(stage=1), SceneSamples(stage=2)
sample_1, sample_2 = captions[8], conversations[8]  # two samples about one scene
plots.picture_row([sample_1.picture], columns=2, alt="A scene of the tiny world, of which both samples tell.")
print("STAGE 1")
for role, text in sample_1.turns:
    print(f"  {role}: {text}")
print("STAGE 2")
for role, text in sample_2.turns:
    print(f"  {role}: {text}")

# %% [markdown]
# LLaVA's first stage used 595,000 web pictures with their captions, and its conversations were written by GPT-4, which never saw a picture: it
# was given captions and boxes as text, and asked to write what a person and an assistant might say. Our conversations come from a program that
# knows the scene.
#
# ## 3. The loss, and its schedule
#
# Both stages have the same loss: at each position the model predicts the next token, and the tokens of the **answers** are counted, nothing else
# (lesson 04 drew which those are).

# %%
from minillava.training.loss import next_token_loss, supervised_logits, supervised_states

for function in (next_token_loss, supervised_logits, supervised_states):
    print(inspect.getsource(function))

# %% [markdown]
# `labels[:, 1:]` against `hidden[:, :-1]`: that is the shift by one. Without it the model would be asked to predict the token that it is just
# reading. It could, perfectly, and would learn nothing.
#
# > **Predict.** The model with the new projector has never seen a picture. On its first batch of stage 1, what is the loss for a token, on
# > average? The vocabulary has about 1,400 tokens. One that knew nothing would have a loss of ln 1400 = 7.2. One that is sure and right, 0.
#
# <details><summary>Answer</summary>
#
# About 2, far below 7. The language model knows how such answers sound: "There is a", then some thing, then " and a". It has to guess the things
# (one of 144 is ln 144 = 5.0) and the colour, while the words between them are nearly free. What stage 1 can win is this last part: *which*
# things. The next cell measures it.
#
# </details>

# %%
from minillava.training import Batches, loss

with torch.inference_mode():
    batch = Batches(
        captions, processor, TrainConfig(stage=1, batch_size=32), new.config.text_config.max_position_embeddings
    )[0]
    print(
        f"the new projector: {loss(new, batch):.2f}      a model that knows nothing: {math.log(len(new.language_model.embed_tokens.weight)):.2f}"
    )
    loss_after_stage_1 = loss(minillava.load("weights/tiny-stage1")[0], batch)
    print(f"after stage 1:     {loss_after_stage_1:.2f}")

# %% [markdown]
# The learning rate follows the paper's schedule: a short linear rise (3% of the steps), in which the optimizer gets to know the sizes of the
# gradients, then half a cosine down to zero.

# %%
from minillava.training.optimizers import learning_rate

figure, axes = plots.new(height=2.8)
for stage, color in ((1, plots.BLUE), (2, plots.ORANGE)):
    config = TrainConfig(stage=stage, **STAGES[stage].defaults)
    steps = np.arange(config.max_steps)
    label = f"stage {stage}: {config.max_steps} steps"
    axes.plot(100 * steps / config.max_steps, [learning_rate(step, config) for step in steps], color=color, label=label)
axes.set(xlabel="percent of the training", ylabel="learning rate")
axes.legend()
plots.show(
    figure,
    "Two curves of the learning rate. Each rises in a short straight line and then falls along half a cosine to zero.",
)

# %% [markdown]
# Our rates are much higher than the paper's, for two reasons: the model is a thousand times smaller, and its matrices are trained by Muon
# ([2502.16982](https://arxiv.org/abs/2502.16982)) instead of AdamW.
#
# ## 4. The loop
#
# All of this comes together in one loop, which both stages run. It is printed here as it stands in `minillava/training/__init__.py`:

# %%
source = inspect.getsource(training.train_on)
print(textwrap.dedent(source[source.index("    # The loop.") :]))

# %% [markdown]
# Read it from top to bottom. A step's batch may be too large to be computed at once, so it comes in parts, and each part counts by its share of the
# answers' tokens: their gradients add up to that of the whole batch. `autocast` lets the matrix products run in bfloat16 where the machine is faster
# with it. `run.update` is the other half of a step: it clips the gradients to a length of 1, sets the learning rate of the schedule above, lets the
# optimizers change the weights by the gradients, and forgets these. At each save the model is asked a few questions; that is a luxury, and an error
# in it ends no training. ([`run.py`](../minillava/training/run.py) holds what the loop uses: checkpoints, Ctrl-C, the log.)
#
# ## 5. Both losses
#
# Each training of this project writes a line for each step into `metrics.jsonl`. These are the lines of the models in `weights/` (neighbouring
# steps averaged):


# %%
def read_metrics(folder):
    """The rows of a training: those with a loss, and those with scores."""
    rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row], [
        row["scores"] | {"step": row["step"]} for row in rows if "scores" in row
    ]


losses_1, scores_1 = read_metrics("weights/tiny-stage1")
losses_2, scores_2 = read_metrics("weights/tiny")
figure, panels = plots.new(1, 2, height=3, sharey=True)
for axes, rows, title, color in (
    (panels[0], losses_1, "stage 1", plots.BLUE),
    (panels[1], losses_2, "stage 2", plots.ORANGE),
):
    steps, values = [row["step"] for row in rows], np.array([row["loss"] for row in rows])
    window = max(1, len(values) // 60)
    axes.plot(
        steps[::window],
        [values[max(0, i - window) : i + window + 1].mean() for i in range(0, len(values), window)],
        color=color,
    )
    axes.set(
        title=title,
        xlabel="step",
        yscale="log",
        yticks=(0.1, 0.2, 0.5, 1, 2),
        yticklabels=("0.1", "0.2", "0.5", "1", "2"),
    )
    axes.minorticks_off()
panels[0].set(ylabel="loss a token")
ends = [f"from {rows[0]['loss']:.2f} to {rows[-1]['loss']:.2f}" for rows in (losses_1, losses_2)]
plots.show(figure, f"Two falling curves: stage 1 {ends[0]}, stage 2 {ends[1]}.")

# %% [markdown]
# Do not compare the two curves with each other: they count different tokens. The answers of stage 1 are lists of things, hard to guess. Those of
# stage 2 are full of words that cost nothing ("Yes, there is a"), so its loss starts low and small differences mean much.
#
# A loss says little about what a model *can do*. So the training also asks questions now and then, about scenes that are not trained on. This is
# stage 2:

# %%
through_stage_2 = [{**scores_1[-1], "step": -1}, *scores_2]  # it begins where stage 1 ended
shown = {
    "existence": "is there an X?",
    "count": "how many objects?",
    "where": "where is the X?",
    "relation": "X relative to Y",
}
figure, axes = plots.new(height=3.8)
for kind, color in zip(shown, (plots.BLUE, plots.GREEN, plots.ORANGE, plots.RED)):
    percent = [100 * row.get(kind, math.nan) for row in through_stage_2]
    axes.plot([row["step"] + 1 for row in through_stage_2], percent, "o-", markersize=4, color=color, label=shown[kind])
axes.set(xlabel="step of stage 2", ylabel="percent right", ylim=(0, 104))
figure.legend(loc="outside upper center", ncols=2)
plots.show(figure, "Percent right against the steps of stage 2, for four kinds of question.")

# %% [markdown]
# Abilities do not come all at once. What can be read off a single patch comes first. What needs a comparison of several places comes last: where
# something stands, and where it stands *relative to* another thing.
#
# ## 6. Nothing, stage 1, stage 2
#
# The main picture of this lesson. Three models with the same parts are asked the same questions about the same picture.

# %%
stage_1, _ = minillava.load("weights/tiny-stage1")
stage_2, _ = minillava.load("weights/tiny")
models = {"nothing": new, "stage 1": stage_1, "stage 2": stage_2}
asked = (
    "What is in the picture?",
    "Is there a cat?",
    "Is there a dog?",
    "How many objects are there?",
    "What color is the background?",
    "Where is the cat?",
)

for question in asked:
    print(question)
    for name, model in models.items():
        print(
            f"   {name:8} {minillava.answer(model, processor, 'lessons/images/cat.png', question, max_new_tokens=40)}"
        )

# %% [markdown]
# And the same as figures, on 40 scenes that were never trained on. For the two trained models they stand in the last line of `metrics.jsonl`:

# %%
from minillava.training.scoring import TITLES, cases, score_pictures

scores = {"nothing": score_pictures(new, processor, cases("val", 40)), "stage 1": scores_1[-1], "stage 2": scores_2[-1]}
kinds = [kind for kind in TITLES if all(kind in row for row in scores.values())]
plots.grouped_bars(
    [TITLES[kind] for kind in kinds],
    {name: [100 * row[kind] for kind in kinds] for name, row in scores.items()},
    alt="; ".join(
        f"{name}: " + ", ".join(f"{TITLES[kind]} {100 * row[kind]:.0f}" for kind in kinds)
        for name, row in scores.items()
    ),
)

# %% [markdown]
# Stage 1 brings what its descriptions are made of: the names of things and colours. The frozen language model still answers in the form that the
# question asks for, as it learnt from text, but what its answer needs was never practised on pictures: a yes or no about one thing, a number of
# one kind, a place. That is what stage 2 is for.
#
# The paper measured the same step on its own benchmark, where GPT-4 judges the answers relative to those of a GPT-4 that reads captions: 21.5
# without instruction tuning, 85.1 with all three kinds of instruction data (2304.08485, table 4).
#
# ## 7. Which weights moved
#
# The relative change of a group of weights is the length of its difference divided by its length before. From stage 1 to stage 2:


# %%
def group_of(name):
    """The part of the model that a parameter belongs to."""
    if not name.startswith("language_model.layers."):
        return {"vision_tower": "tower", "projector": "projector"}.get(
            name.split(".")[0], "embeddings" if "embed_tokens" in name else "last norm"
        )
    part = "attention" if "attn" in name else "MLP" if "mlp" in name else "norms"
    return f"layer {name.split('.')[2]} {part}"


def change(before, after):
    """{group: relative change}."""
    moved, length = {}, {}
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        group = group_of(name)
        moved[group] = moved.get(group, 0) + (b - a).detach().square().sum().item()
        length[group] = length.get(group, 0) + a.detach().square().sum().item()
    return {group: math.sqrt(moved[group] / length[group]) for group in moved}


by_stage_1, by_stage_2 = change(new, stage_1), change(stage_1, stage_2)
print(
    "moved in stage 1:",
    ", ".join(f"{group} {100 * value:.0f}%" for group, value in by_stage_1.items() if value) or "nothing",
)
order = [
    "tower",
    "projector",
    "embeddings",
    *(group for group in by_stage_2 if group.startswith("layer") and "norms" not in group),
]
plots.bars(
    order,
    [100 * by_stage_2[group] for group in order],
    [plots.GREY if group == "tower" else plots.BLUE if group == "projector" else plots.ORANGE for group in order],
    "relative change in stage 2, percent",
    "{:.0f}",
    alt="; ".join(f"{group} {100 * by_stage_2[group]:.1f} percent" for group in order),
)

# %% [markdown]
# The tower's bar is exactly zero. LLaVA trusted CLIP and never trained it, in either version. (Later models, LLaVA-NeXT among them, unfreeze it
# in the end.) Everything else moves, also the projector, which has to keep up with a language model that changes.
#
# ## 8. What each part is worth
#
# An **ablation** takes one decision back and trains again. The paper's own, on ScienceQA (2304.08485, section 5.2):
#
# | | accuracy | |
# |---|---|---|
# | LLaVA 13B | 90.92 | |
# | features of the last layer in place of the last but one | 89.96 | -0.96 |
# | the answer before the reasoning | 89.77 | -1.15 |
# | no stage 1 | 85.81 | -5.11 |
# | 7B in place of 13B | 89.84 | -1.08 |
#
# And ours, small enough to be repeated on a laptop (`python -m minillava.eval.ablations`):

# %%
from IPython.display import Markdown

from minillava.eval.ablations import table

Markdown(table(json.loads(Path("lessons/ablations.json").read_text())["rows"]))

# %% [markdown]
# Compare rows of the same kind:
#
# - **No stage 1**: after the same 200 steps of stage 2, the model that skipped stage 1 names almost nothing. Yes and no, which are half right by
#   chance, do not show it.
# - **AdamW in place of Muon**: after 100 steps the projector names half as much, and has lost more of the places.
# - **A linear projector** keeps more of name, row and column for a probe, but the frozen language model makes less of it. What a probe finds is not
#   yet in the language model's words.
# - **Layer -1 in place of -2**: no difference here, where the paper found one. CLIP's last layer is made for its one pooled vector. Our tower was
#   trained on its patches (lesson 03), so its last layer is as good as the one before.
# - **Positions that start as waves**: in the same 80 steps the tower knows where its patches are. Names need longer than that with either start.
# - **The look-up lesson**: with it, "is there a cat?" is answered from the text above. Without it, by chance.
#
# Read such a table with care. These are short trainings, one run each. A difference of a few points can be luck; run one row again with another
# `--seed` before you believe it.
#
# ## 9. A stage 1 of your own
#
# Now train. A new projector, 60 steps of 16 pictures: about a tenth of the full stage 1. This is the very call behind `python train.py --stage
# 1`, into a folder that is thrown away.

# %%
from minillava.training import train

with tempfile.TemporaryDirectory() as folder:
    settings = {**STAGES[1].defaults, "out": folder, "max_steps": 60, "batch_size": 16, "save_every": 60}
    train(TrainConfig(stage=1, **settings))
    mine, _ = minillava.load(folder)
    losses, _ = read_metrics(folder)

figure, axes = plots.new(height=3)
for rows, color, label in (
    (losses_1, plots.GREY, "the project's stage 1, 32 pictures a step"),
    (losses, plots.ORANGE, "yours, 16 pictures a step"),
):
    rows = [row for row in rows if row["step"] < 60]
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color=color, label=label)
axes.set(xlabel="step", ylabel="loss a token")
axes.legend()
plots.show(figure, f"The loss of 60 steps: from {losses[0]['loss']:.2f} to {losses[-1]['loss']:.2f}.")

# %%
for question in asked:
    print(f"{question:32} {minillava.answer(mine, processor, 'lessons/images/cat.png', question, max_new_tokens=40)}")

# %% [markdown]
# 960 pictures, in about the time it takes to read this page. To go on: `python train.py --stage 1`, then `python train.py --stage 2 --weights
# runs/stage1`.
#
# ## Your turn
#
# Write what decides a training: which parameters learn, the learning rate of each step, and the loss, in `lessons/exercises/e11_*.py`. Then
# `python train.py --stage 1 --with lessons/exercises/e11_loss.py` trains on your own.

# %%
from lessons.check import check

check("trainable")
check("schedule")
check("loss")

# %% [markdown]
# ## Three questions
#
# **1.** Why not train everything at once from the start, with the projector still random?
#
# <details><summary>Answer</summary>
#
# A random projector sends noise. The language model would have to move away from what it knows to make sense of it, and its first, large
# gradients would be about that noise. The ablations show what it costs, in the paper and here.
#
# </details>
#
# **2.** In stage 1 only 115,000 parameters learn. Why is a step of stage 1 not fifty times faster than one of stage 2?
#
# <details><summary>Answer</summary>
#
# The forward pass is the same, and the gradient has to pass back through the whole language model to reach the projector. Only the gradients of
# the frozen weights themselves and their optimizer steps are saved.
#
# </details>
#
# **3.** After stage 2 you want the model to read X-ray pictures, of which the tower has never seen one. Which stage helps, and what cannot help?
#
# <details><summary>Answer</summary>
#
# If the tower's features do not hold what distinguishes one X-ray from another, no projector and no language model can bring it back (lesson 07).
# Then the tower has to be trained, too.
#
# </details>
