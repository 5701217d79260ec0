# %% [markdown]
# # 01 · A picture becomes words
#
# A language model reads a row of words. A picture has no words. The trick of the vision transformer is simple: cut the picture into squares, and call
# each square a word.
#
# **One idea.** Cut, flatten, multiply by one matrix, add a vector that says where. A picture is then a row of vectors, as a sentence is.

# %% [markdown]
# In the tour (lesson 00) a picture took 49 rows among the words. This lesson makes the 49 rows.
#
# ## 1. From a file to numbers
#
# Pictures come in all sizes. CLIP, whose vision tower LLaVA uses, makes them alike in three steps. The shorter edge is resized to a fixed length (336
# pixels in LLaVA-1.5, 112 here), the middle square is cut out, and each colour is shifted and scaled so that it is about zero on average with a
# standard deviation of about one. The function that does it is `minillava.inputs.image.preprocess`.

# %%
import torch
from PIL import Image

import minillava
from lessons import plots
from minillava.inputs.image import CLIP_MEAN, CLIP_STD, preprocess

cat = Image.open("lessons/images/cat.png").convert("RGB")
pixel_values = preprocess(cat, image_size=112)[None]  # (B, 3, E, E) with B = 1
print(f"file          {cat.width} x {cat.height} pixels, colours from 0 to 255")
print(f"pixel_values  {tuple(pixel_values.shape)}, from {pixel_values.min():.2f} to {pixel_values.max():.2f}")
print(
    f"top left dot  {cat.resize((112, 112)).getpixel((0, 0))} has become {[round(v, 2) for v in pixel_values[0, :, 0, 0].tolist()]}"
)

# %% [markdown]
# Why those three means, 0.481, 0.458 and 0.408? They are the means of red, green and blue over the pictures that CLIP was trained on. A tower that
# was trained on numbers shifted this way must be given numbers shifted this way. With the wrong mean nothing crashes, and the answers get worse: a
# common kind of mistake in this field.
#
# ## 2. Cut it into patches
#
# A square is called a **patch**. Here it has 16 x 16 pixels. This is what the model is given, and the order in which it reads:


# %%
def to_picture(values):
    """(3, height, width), normalized -> (height, width, 3), to be looked at."""
    return (values.permute(1, 2, 0) * torch.tensor(CLIP_STD) + torch.tensor(CLIP_MEAN)).clamp(0, 1).numpy()


figure, axes = plots.new(7, 7, width=5.4, height=5.4, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
patches = pixel_values[0].unfold(1, 16, 16).unfold(2, 16, 16)  # (3, rows, columns, 16, 16)
for row in range(7):
    for column in range(7):
        ax = axes[row, column]
        ax.imshow(to_picture(patches[:, row, column]))
        ax.text(
            0,
            0,
            7 * row + column,
            fontsize=13,
            color="white",
            weight="bold",
            va="top",
            bbox={"fc": "#444444", "lw": 0, "pad": 1},
        )
        ax.set_axis_off()
plots.show(
    figure,
    "The cat picture cut into 7 rows of 7 squares with white gaps, numbered from 0 at the top left to 48 at the bottom right.",
)

# %% [markdown]
# At this size the cat fills about four patches. What the model can know of it must be in those.
#
# **Predict a number.** A patch is flattened into a row of numbers. How many numbers is that? Write it down before you run the next cell.

# %%
from minillava.vision import patchify

rows = patchify(pixel_values, patch_size=16)
print(tuple(rows.shape))

# %% [markdown]
# <details><summary>The answer</summary>
#
# 16 x 16 pixels with 3 colours each: **768**. All 49 patches together hold 49 x 768 = 37,632 numbers, exactly those of `pixel_values`. Nothing is
# lost by cutting; what was lost was lost by resizing.
#
# </details>
#
# Inside such a row the numbers lie in a fixed order: all 256 reds of the patch, then all greens, then all blues, each from left to right and from top
# to bottom. With another order the row holds the same numbers, and the weights, which were learnt for this order, make nonsense of it.
#
# A worked example, small enough to check by eye: one picture with one colour, 4 x 4 pixels, patches of 2 x 2.

# %%
small = torch.arange(16.0).view(1, 1, 4, 4)
print(small[0, 0].int())
print(patchify(small, 2)[0].int())

# %% [markdown]
# **Your turn.** `lessons/exercises/e01_patchify.py` asks for `patchify`, about two lines. Write it, then run this cell. As long as it is not
# finished, the check says so, and the lesson goes on with the product's own.

# %%
from lessons.check import check

check("patchify")

# %% [markdown]
# ## 3. One matrix for all patches
#
# Now each row of 768 numbers is multiplied by a matrix and becomes a vector of the tower's width, 192. It is the same matrix for every patch. One
# column of it is 768 numbers long, as a patch is, so it can be drawn as a patch: such a picture is called a **filter**. A patch that looks like the
# filter gives a large number, its opposite a large negative one.
#
# A single filter looks like noise, since the 192 share the work. So the paper of the vision transformer looks at what they have in common, their
# principal components: the few pictures of which all filters are mixtures. We do the same.

# %%
tower = minillava.load_vision_tower("weights/tiny-vision", device="cpu", dtype="float32")
filters = tower.embeddings.patch_embedding.weight.detach()  # (192, 3, 16, 16)
components = torch.linalg.svd(filters.flatten(1), full_matrices=False).Vh  # (192, 768), the most important first


def sheet(tiles, columns=8):
    """Tiles (N, 3, 16, 16) side by side, with white between; grey where a tile is zero."""
    tiles = tiles / tiles.abs().amax((1, 2, 3), keepdim=True) / 2 + 0.5
    page = torch.ones(18 * (len(tiles) // columns) - 2, 18 * columns - 2, 3)
    for i, tile in enumerate(tiles):
        top, left = 18 * (i // columns), 18 * (i % columns)
        page[top : top + 16, left : left + 16] = tile.permute(1, 2, 0)
    return page.numpy()


figure, axes = plots.new(2, 1, width=5.6, height=4.1, height_ratios=(1, 3))
for ax, tiles, title in zip(
    axes, (filters[:8], components[:24].view(-1, 3, 16, 16)), ("8 of the 192 filters", "their 24 main components")
):
    ax.imshow(sheet(tiles))
    ax.set_title(title)
    ax.set_axis_off()
plots.show(
    figure,
    "Above, eight filters that look like coloured noise. Below, 24 components: smooth blobs of colour, borders of two colours, spots.",
)

# %% [markdown]
# No one drew these. They were learnt from pictures and phrases alone (lesson 03). The first ones answer to a colour, later ones to a border between
# two colours in some direction, or to a spot. The finer, the later. Biology found similar kinds in the first stage of the visual cortex.
#
# Where do they answer? Here are four of them over the picture. Orange is where the product of component and patch differs most from that of the
# background.

# %%
products = rows[0] @ components.T  # (P, 192)
products = (products - products.median(0).values).abs()
chosen = (0, 1, 3, 4)
plots.heat_row(
    cat,
    [products[:, i].view(7, 7) for i in chosen],
    [f"component {i + 1}" for i in chosen],
    alt="Four times the cat picture in grey, with other patches in orange each time, nearly all of them on the four things.",
)

# %% [markdown]
# In the weight files the matrix is stored as a convolution: a filter of 16 x 16 that is moved by 16 pixels at a time. Moved by its own size it never
# overlaps, so it is the same thing. You can check that it is:

# %%
by_matrix = rows @ filters.flatten(1).T  # (B, P, C)
by_convolution = torch.nn.functional.conv2d(pixel_values, filters, stride=16).flatten(2).transpose(1, 2)  # (B, P, C)
print(f"largest difference {(by_matrix - by_convolution).abs().max():.1e}")

# %% [markdown]
# ## 4. Where is a patch?
#
# The next stage, attention (lesson 02), treats its input as a set: it does not know which patch came first. Let us see that. We take away the
# positions, shuffle the patches of the picture, and compare what comes out of the whole tower.

# %%
order = torch.randperm(49, generator=torch.Generator().manual_seed(0))
shuffled = rows[0, order].view(7, 7, 3, 16, 16).permute(2, 0, 3, 1, 4).reshape(1, 3, 112, 112)
positions = tower.embeddings.position_embedding.weight


@torch.inference_mode()
def difference(scale):
    """How far the features of the shuffled picture are from the shuffled features of the picture, compared with their size."""
    kept = positions.clone()
    positions.mul_(scale)
    whole, mixed = tower(pixel_values)[0, order], tower(shuffled)[0]
    positions.copy_(kept)
    return ((whole - mixed).norm() / whole.norm()).item()


both = [to_picture(pixel_values[0]), to_picture(shuffled[0])]
plots.picture_row(both, ["as it is", "shuffled"], alt="The cat picture, and its 49 patches in random order.")
print(f"without positions  {difference(0):.6f}")
print(f"with positions     {difference(1):.2f}")

# %% [markdown]
# Without positions the two pictures are one and the same to the tower: the difference is zero but for rounding. "The cat is at the top" could not be
# said of either. So a vector is added to each patch, one for each of the 49 places. It is learnt with everything else.
#
# What has it learnt? The large square below has a small map for each place. The map shows how similar (cosine) the vector of this place is to the
# vectors of all places, once what all of them share is taken off.

# %%
vectors = positions[1:].detach() - positions[1:].detach().mean(0)  # (P, C), without CLS
vectors = torch.nn.functional.normalize(vectors, dim=-1)
similar = (vectors @ vectors.T).view(7, 7, 7, 7)  # (row, column, other row, other column)
figure, axes = plots.new(7, 7, width=5.4, height=5.6, gridspec_kw={"hspace": 0.02, "wspace": 0.02})
for row in range(7):
    for column in range(7):
        axes[row, column].imshow(similar[row, column], cmap=plots.DIVERGING, vmin=-1, vmax=1)
        axes[row, column].set_axis_off()
plots.show(
    figure,
    "Forty-nine small maps in a grid. In each the place itself is orange, and its row and column are more like it than the rest.",
)
print("similarity to the place in the middle (row 3, column 3), along its row:")
print("  ".join(f"{value:5.2f}" for value in similar[3, 3, 3].tolist()))

# %% [markdown]
# Each place is most like itself, and more like its neighbours and its own row and column than like the rest. So the vectors hold a map of the plane.
# In the paper of the vision transformer ([arXiv 2010.11929](https://arxiv.org/abs/2010.11929), figure 7) the same picture comes out after training on
# millions of photographs, from random vectors. At our size that took too long: the features told names but not places. So our positions begin as
# waves along the rows and the columns ([arXiv 2111.06377](https://arxiv.org/abs/2111.06377)), and training changes them from there.
#
# One more vector stands before the 49, called **CLS**. It belongs to no patch. CLIP uses what becomes of it as a summary of the picture. LLaVA drops
# it, since it wants the patches.

# %%
with torch.inference_mode():
    embedded = tower.embeddings(pixel_values)
print(f"CLS and 49 patches: {tuple(embedded.shape)}")

# %% [markdown]
# ## 5. How large should a patch be?
#
# | | picture | patch | patches |
# |---|---|---|---|
# | this course | 112 | 16 | 49 |
# | LLaVA (2023), CLIP ViT-L/14 | 224 | 14 | 256 |
# | LLaVA-1.5, CLIP ViT-L/14-336 | 336 | 14 | 576 |
#
# LLaVA-1.5 went from 224 to 336 pixels. That alone, with the rest unchanged, brought its score on GQA, questions about photographs, from 50.3 to
# 51.4, and on MME from 1426.5 to 1450 ([arXiv 2310.03744](https://arxiv.org/abs/2310.03744), table 2). The price is 2.25 times as many rows to read
# for each picture. LLaVA-NeXT goes further and cuts a large picture into several views (`minillava/anyres.py`), up to 2,928 rows.
#
# ## Questions
#
# **1.** Two pictures differ only in that the left and right halves of one patch are swapped. Can the model know?
#
# <details><summary>Answer</summary>
#
# Yes. Inside a patch the order of the pixels matters, since each of the 768 numbers has its own weight in the matrix. It is the order *of the
# patches* that only the position vectors tell.
#
# </details>
#
# **2.** You load the weights of a tower for 224 pixels, and give it pictures of 336. The filters fit. What does not?
#
# <details><summary>Answer</summary>
#
# The position vectors: there are 256 (and one for CLS), and 576 are needed. People stretch the 16 x 16 map of vectors to 24 x 24 as one would a
# picture, and train a little further.
#
# </details>
#
# **3.** Why is one matrix used for all patches, and not one matrix for each of the 49 places?
#
# <details><summary>Answer</summary>
#
# A cat looks the same at the top and at the bottom. With one matrix, what is learnt of an edge at one place is known at all places, from 49 times as
# many examples, with a 49th of the weights.
#
# </details>
