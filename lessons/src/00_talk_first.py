# %% [markdown]
# # 00 · Talk to it first
#
# This course builds LLaVA, a program that you can show a picture and talk to about it. Before we build it, let us use it. You will see a small model
# answer, follow one question through it from the first pixel to the first word, and find out where it goes wrong.
#
# **One idea.** A picture becomes rows of numbers, a question becomes rows of numbers, and the model reads them as one text.
#
# You need Python and a little PyTorch: what a tensor is, what a `Linear` does. Nothing else.

# %% [markdown]
# This is what the course builds, and nothing of it is done yet. Each lesson begins with this figure: what is done is blue, what comes next is orange.
#
# ## 1. A conversation

# %%
from PIL import Image

import minillava
from lessons import plots

cat = Image.open("lessons/images/cat.png").convert("RGB")
plots.picture_row([cat], alt="A tulip, a canoe and a cat on a cloudy pink background.", columns=2)

# %%
model, processor = minillava.load("weights/tiny", device="cpu", dtype="float32")

questions = [
    "What is in the picture?",
    "Is there a cat?",
    "Is there a dog?",
    "How many objects are there?",
    "What color is the background?",
]
for question in [*questions, "Where is the cat?"]:
    print(f"you    {question}\nmodel  {minillava.answer(model, processor, cat, question)}\n")

# %% [markdown]
# Read the answers with the picture beside you. How many of the six are right? Change the questions, and run the cell again. Its world is small: 144
# kinds of things on coloured backgrounds. Outside of it, it knows nothing.
#
# In a terminal the same model talks to you with `python chat.py --image lessons/images/cat.png`.
#
# How small is it?

# %%
parts = {"vision tower": model.vision_tower, "projector": model.projector, "language model": model.language_model}
for name, part in parts.items():
    print(f"{name:15} {sum(p.numel() for p in part.parameters()):10,} numbers")

# %% [markdown]
# LLaVA-1.5 with 7 billion numbers has the same three parts, of the same code, only wider and deeper: 303,507,456 in the vision tower, 20,979,712 in
# the projector and 6,738,415,616 in the language model. The functions in this course load those weights, too. What is learnt about the small one
# holds for the large one.
#
# ## 2. One question, from pixel to word
#
# We ask "What is this?" and stop at each arrow of the figure above to look at what goes through.
#
# **Predict a number.** The picture is cut into squares of 16 x 16 pixels, after it has been made 112 x 112 pixels small. Each square becomes one row
# of numbers that stands among the words. How many rows does the picture take? Write your number down, then run the cell.

# %%
import torch

inputs = processor("What is this?", cat)
with torch.inference_mode():
    features = model.vision_tower(inputs["pixel_values"])
    image_features = model.projector(features)
    inputs_embeds = model.merge(inputs["input_ids"], image_features.flatten(0, 1))
    logits = model(**inputs)

steps = {"pixel_values": inputs["pixel_values"], "features": features, "image_features": image_features}
steps |= {"input_ids": inputs["input_ids"], "inputs_embeds": inputs_embeds, "logits": logits}
for name, tensor in steps.items():
    print(f"{name:15} {tuple(tensor.shape)}")

# %% [markdown]
# <details><summary>The answer</summary>
#
# 112 / 16 = 7, so there are 7 x 7 = **49** rows: the second number of `features` and of `image_features`. The words of the question are the few
# others in `inputs_embeds`. In LLaVA-1.5 a picture has 336 x 336 pixels and a square 14 x 14: 24 x 24 = 576 rows. That is more than most questions
# have words.
#
# </details>
#
# Now the same with a thumbnail for each.

# %%
mean, std = torch.tensor(processor.mean), torch.tensor(processor.std)
pixels = (inputs["pixel_values"][0].permute(1, 2, 0) * std + mean).clamp(0, 1)  # (112, 112, 3), to be looked at
probabilities, best = logits[0, -1].softmax(-1).topk(4)
plots.flow(
    {
        f"1  pixel_values {tuple(inputs['pixel_values'].shape)}": pixels,
        f"2  features {tuple(features.shape)}": features[0],
        f"3  image_features {tuple(image_features.shape)}": image_features[0],
        f"4  inputs_embeds {tuple(inputs_embeds.shape)}": inputs_embeds[0],
        f"5  logits {tuple(logits.shape)}": logits[0],
    },
    plots.token_texts(processor.tokenizer, best),
    probabilities,
    alt="Six thumbnails: the picture at 112 pixels; 49 rows of features from the vision tower; 49 wider rows from the projector; the same rows with "
    "those of the question below them; a row of scores for each position; and bars of the likeliest next tokens after the last one.",
)

# %% [markdown]
# Read it in the order of the numbers. In every panel from 2 on, a line from left to right belongs to one square of the picture or to one token of the
# text.
#
# 1. **pixel_values**: the picture as the model gets it, 112 x 112 pixels. Where is the detail gone? (Lesson 01.)
# 2. **features**: the vision tower has turned each square into a row of 192 numbers (lessons 02 and 03).
# 3. **image_features**: the projector has turned each of them into 256 numbers, the width of the language model (lesson 07).
# 4. **inputs_embeds**: the rows stand among those of the words, which you see at the top (`USER:`) and at the bottom (the question). From here on the
#    language model makes no difference between them (lessons 04 to 07).
# 5. **logits**: at each position a score for each token of the vocabulary. Only the last row is needed to go on.
# 6. **the next token**: the likeliest tokens after `ASSISTANT:`. One is taken, put at the end, and everything from 4 on runs again (lesson 08).
#
# That the answer grows by one token at a time can be watched:

# %%
ids = list(minillava.generate(model, **inputs, max_new_tokens=12))
for length in range(1, len(ids) + 1):
    print(processor.tokenizer.decode(ids[:length]))

# %% [markdown]
# ## 3. Where it goes wrong
#
# A model that is only shown its best side teaches nothing. So let us ask many questions about pictures that it has never seen. The scenes are made by
# a program (`minillava/data/scenes.py`), so for each question the true answer is known.

# %%
from minillava.data.answers import parse_answer
from minillava.generation import answer_all
from minillava.training.scoring import F1_KINDS, TITLES, cases, score

asked = cases("val", 24, max_objects=5, each=6)
answers = answer_all(model, processor, [(case.question.text, case.scene.render()) for case in asked])
percents = {TITLES[kind]: 100 * value for kind, value in score(asked, answers).items()}
plots.bars(
    percents,
    percents.values(),
    form="{:.0f}",
    limit=100,
    title="right answers, of 100",
    alt="Bars for each kind of question: " + ", ".join(f"{name} {value:.0f}" for name, value in percents.items()),
)

# %%
wrong = [
    (case, answer)
    for case, answer in zip(asked, answers)
    if case.question.kind not in F1_KINDS and parse_answer(case.question.kind, answer) != case.question.short
]
print(f"{len(wrong)} of {len(asked)} answers are wrong. Some of them:\n")
some = list({case.scene.seed: (case, answer) for case, answer in wrong}.values())[:3]  # from three scenes
plots.picture_row(
    [case.scene.render() for case, _ in some],
    [f"scene {letter}" for letter in "abc"],
    alt="Three scenes that it answered wrongly about: "
    + "; ".join(", ".join(thing.name for thing in case.scene.things) for case, _ in some),
)
for letter, (case, answer) in zip("abc", some):
    print(f"{letter}  {case.question.text}\n   it says  {answer}\n   true is  {case.question.answer}\n")

# %% [markdown]
# Are the mistakes of one kind? Counting what is crowded, and telling places and relations, are harder than colours. They are for large models, too.
#
# And here are pictures that do not belong to its world at all: nothing, a circle, and noise. What does it say that they show?

# %%
import numpy as np
from PIL import ImageDraw

grey, circle = Image.new("RGB", (112, 112), (122, 116, 104)), Image.new("RGB", (112, 112), "white")
ImageDraw.Draw(circle).ellipse((30, 30, 82, 82), outline="black", width=4)
noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))
plots.picture_row(
    [grey, circle, noise],
    ["grey", "circle", "noise"],
    alt="A grey square, a black circle on white, and coloured noise.",
)
for name, picture in {"grey": grey, "circle": circle, "noise": noise}.items():
    print(f"{name:7} {minillava.answer(model, processor, picture, 'What is in the picture?', max_new_tokens=40)}")

# %% [markdown]
# It was never taught to say "I do not know", so it names something. The large models do this as well; it is called **hallucination**, and the paper
# names it among the risks of its own model (appendix A). A sentence that sounds sure is no sign that anything was seen.
#
# ## 4. Where this comes from
#
# The paper is *Visual Instruction Tuning* by Haotian Liu, Chunyuan Li, Qingyang Wu and Yong Jae Lee ([arXiv
# 2304.08485](https://arxiv.org/abs/2304.08485), April 2023). At that time there were vision towers that knew which text fits which picture (CLIP),
# and language models that could chat (Vicuna). The paper joins the two by a projector, one linear map, and teaches the pair to talk about pictures in
# two stages: 595 thousand captions teach the projector, then 158 thousand conversations teach projector and language model. The two stages took 4 and
# 10 hours on eight A100 GPUs.
#
# The conversations were written by GPT-4, which saw no picture: it was given captions and the places of the objects in words. On a benchmark of
# everyday pictures, LLaVA-Bench (In-the-Wild), the result scored 67.3, where BLIP-2 had 38.1 and OpenFlamingo 19.1 (arXiv 2304.08485, section 5.1).
# The judge of these scores is GPT-4 again, so read them as a comparison and not as a measure of truth.
#
# Everything in `weights/` was made by this repository on two cores of a CPU, by the same recipe: a small "CLIP" and a small "Vicuna" first, then the
# two stages. What took eight A100s a day takes a few hours here, since the world is 144 things and not everything.
#
# ## Questions
#
# **1.** The picture of section 2 takes 49 rows. What would happen to that number with squares of 8 x 8 pixels, and what would you gain and pay?
#
# <details><summary>Answer</summary>
#
# 14 x 14 = 196 rows, four times as many. Small things would be told apart better. The language model would have to read four times as many rows for
# each picture, and attention compares each row with each (lesson 02), so that part grows by about sixteen.
#
# </details>
#
# **2.** You ask "Is there a dog?" and the model says "No". Does that show that it looked at the picture?
#
# <details><summary>Answer</summary>
#
# No. A model that always says "No" is right for most animals in most pictures. A fair test asks as many questions whose answer is yes, and compares
# with the same model shown a grey picture. `python -m minillava.eval.scenes` does both, and calls the second column "blind".
#
# </details>
#
# **3.** Which of the panels 1 to 6 would change if you asked another question about the same picture, and which would not?
#
# <details><summary>Answer</summary>
#
# Panels 1 to 3 know nothing of the question and stay the same. In 4 the rows of the words change, and with them 5 and 6. (So a chat about one picture
# can keep the picture's rows and need not compute them again.)
#
# </details>
