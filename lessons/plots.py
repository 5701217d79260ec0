"""The lessons' figures: one palette, and the few kinds of picture that come again. Every figure is shown by
`show(figure, alt)`.

`alt` says in a sentence what is to be seen, for those who cannot see it. A figure is 6.4 inches wide unless it must not
be, and its letters are 13 points: on a phone, where it shrinks to 9 centimetres, they can still be read. Two panels
side by side are the most; more go below one another.

    figure, axes = plots.new(height=3)                # a figure and its axes, as from pyplot.subplots
    plots.show(figure, "A curve that falls.")
    # picture_row, heat_over_picture, heat_row, bars, table and token_rows show themselves
    plots.bars(names, values, alt="Cat has 0.9 ...")
"""

import base64
import io
from pathlib import Path

import matplotlib
import numpy as np
from IPython.display import display
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

# apart for the colour-blind, and in grey print
ORANGE, BLUE, GREEN, RED, GREY = "#d95f02", "#1f6fb4", "#1b8a5a", "#c0272d", "#8a8a8a"
LIGHT, LIGHT_BLUE, LIGHT_ORANGE = "#eeeeee", "#cfe3f5", "#fbdcc0"
COLORS = (ORANGE, BLUE, GREEN, RED, GREY)
# nothing .. much
SEQUENTIAL = LinearSegmentedColormap.from_list("sequential", ["#ffffff", "#fbdcc0", ORANGE, "#6b2a00"])
DIVERGING = LinearSegmentedColormap.from_list("diverging", [BLUE, "#ffffff", ORANGE])  # negative .. zero .. positive
WIDTH, DPI, LARGE = 6.4, 130, 45_000  # inches, dots per inch, bytes from which a picture gets a palette
CAT = Path(__file__).resolve().parent / "images" / "cat.png"

matplotlib.rcParams.update(
    {
        "font.size": 13,
        "axes.titlesize": 13,
        "axes.labelsize": 13,
        "xtick.labelsize": 12,
        "ytick.labelsize": 12,
        "legend.fontsize": 12,
        "figure.figsize": (WIDTH, 3.6),
        "figure.dpi": DPI,
        "lines.linewidth": 2.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=COLORS),
        "legend.frameon": False,
    }
)


def show(figure: Figure, alt: str) -> None:
    """Put the figure into the notebook as a PNG, with `alt` for those who cannot see it."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=DPI, bbox_inches="tight", pad_inches=0.06, facecolor="white")
    pyplot.close(figure)
    with Image.open(drawn) as picture:
        width, picture = round(picture.width * 100 / DPI), picture.convert("RGB")
    picture.save(file, "png", optimize=True)
    if file.tell() > LARGE:
        file = io.BytesIO()
        # a third of the size
        picture.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    png = base64.b64encode(file.getvalue()).decode()
    display({"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)


def new(rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = 3.6, **options):
    """A figure and its axes, as `pyplot.subplots` gives them, laid out so that labels do not overlap."""
    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)


def shade(value: float, color: str = ORANGE) -> str:
    """A colour between white (0) and `color` (1), as a background for black letters."""
    value = min(max(float(value), 0), 1)
    return to_hex(1 - value * (1 - np.array(to_rgb(color))))


def alternating(count: int) -> list[str]:
    """Two pale colours in turn, so that neighbours can be told apart."""
    return [(LIGHT_BLUE, LIGHT_ORANGE)[i % 2] for i in range(count)]


# ------------------------------------------------------------ pictures
def picture_row(pictures, titles=(), columns: int | None = None, *, alt: str) -> None:
    """Pictures (PIL, or arrays (rows, columns[, 3])) beside one another, `columns` in a row, with a title each."""
    columns = columns or len(pictures)
    rows = -(-len(pictures) // columns)
    side = WIDTH / columns
    titled = -(-len(titles) // columns)  # rows of pictures with titles above them
    figure, axes = new(rows, columns, height=rows * side + 0.3 * titled, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, picture, title in zip(axes.flat, pictures, [*titles, *[""] * len(pictures)]):
        ax.imshow(np.asarray(picture))
        ax.set_title(title, pad=4)
    show(figure, alt)


def heat_over_picture(picture, weights, title: str = "", *, axes=None, alt: str = "") -> None:
    """The picture in grey, and over it the weights (rows, columns) of its patches: the more, the more orange. For
    weights >= 0.

    With `axes` it draws into them, and the figure is shown by whoever made it.
    """
    figure, axes = (None, axes) if axes is not None else new(width=3.6, height=3.8)
    weights = np.asarray(weights, dtype=float)
    picture = (
        picture.convert("RGB")
        if isinstance(picture, Image.Image)
        else Image.fromarray(np.asarray(picture)).convert("RGB")
    )
    grey = np.asarray(picture.convert("L"), dtype=float)[..., None] / 255  # (height, width, 1)
    strength = weights / max(weights.max(), 1e-9)
    rows, columns = weights.shape
    over = np.kron(strength, np.ones((-(-grey.shape[0] // rows), -(-grey.shape[1] // columns))))[
        : grey.shape[0], : grey.shape[1], None
    ]
    paper = 0.5 + 0.5 * grey  # pale, so that the heat stands out
    axes.imshow((paper * (1 - 0.75 * over) + np.array(to_rgb(ORANGE)) * 0.75 * over).clip(0, 1))
    for edge in range(1, rows):
        axes.axhline(edge * grey.shape[0] / rows - 0.5, color="white", linewidth=0.6, alpha=0.7)
    for edge in range(1, columns):
        axes.axvline(edge * grey.shape[1] / columns - 0.5, color="white", linewidth=0.6, alpha=0.7)
    axes.set_axis_off()
    axes.set_title(title, pad=4)
    if figure:
        show(figure, alt)


def heat_row(picture, maps, titles, columns: int = 2, *, alt: str) -> None:
    """Several `heat_over_picture` of one picture, `columns` in a row."""
    rows = -(-len(maps) // columns)
    figure, axes = new(rows, columns, height=rows * (WIDTH / columns + 0.35), squeeze=False)
    for ax in axes.flat[len(maps) :]:
        ax.set_axis_off()
    for ax, weights, title in zip(axes.flat, maps, titles):
        heat_over_picture(picture, weights, title, axes=ax)
    show(figure, alt)


def flow(panels: dict, tokens, probabilities, *, alt: str) -> None:
    """Tensors as thumbnails, two in a row: {title: a picture (height, width, 3) or rows of numbers}; the last panel has
    bars of the next tokens.

    Of rows of numbers each is drawn for itself: what is below its mean is blue, above it orange.
    """
    rows = -(-(len(panels) + 1) // 2)
    figure, axes = new(rows, 2, height=2.8 * rows)
    for ax, (title, values) in zip(axes.flat, panels.items()):
        values = np.asarray(values, dtype=float)
        if values.ndim == 2:
            values = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
            values = DIVERGING(values.clip(-3, 3) / 6 + 0.5)
        ax.imshow(values, aspect="auto", interpolation="nearest")
        ax.set_title(title, fontsize=11.5)
        ax.set(xticks=[], yticks=[])
    ax = axes.flat[len(panels)]
    ax.barh(range(len(tokens)), probabilities, color=ORANGE)
    ax.set_yticks(range(len(tokens)), tokens)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xticks=[0, 1])
    ax.set_title(f"{len(panels) + 1}  the next token", fontsize=11.5)
    for ax in axes.flat[len(panels) + 1 :]:
        ax.set_axis_off()
    show(figure, alt)


# ------------------------------------------------------------ numbers
def bars(
    names, values, colors=ORANGE, title: str = "", form: str = "{:.2f}", limit: float | None = None, *, alt: str
) -> None:
    """Horizontal bars, the first name on top, each with its number at its end."""
    figure, axes = new(height=0.6 + 0.38 * len(names))
    values = [float(value) for value in values]
    axes.barh(range(len(values)), values, color=colors)
    axes.set_yticks(range(len(values)), names)
    axes.invert_yaxis()
    axes.set_xlim(min(0, *values) * 1.2, 1.18 * (limit or max(*values, 1e-9)))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_position("zero")
    for row, value in enumerate(values):
        axes.text(max(value, 0), row, " " + form.format(value), va="center")
    axes.set_title(title, loc="left")
    show(figure, alt)


def table(
    values,
    texts=None,
    rows=(),
    columns=(),
    title: str = "",
    colormap=SEQUENTIAL,
    limits: tuple | None = None,
    *,
    alt: str,
) -> None:
    """A heat map (rows, columns) with a text in each cell: `texts`, or the numbers themselves."""
    values = np.asarray(values, dtype=float)
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    texts = texts if texts is not None else [[f"{value:.2f}" for value in row] for row in values]
    figure, axes = new(height=0.7 + 0.4 * len(values))
    axes.imshow(values, cmap=colormap, vmin=low, vmax=high, aspect="auto")
    size = min(
        12, 82 / max(1, values.shape[1]) / max(1, max(len(str(text)) for row in texts for text in row)) / 0.085 / 1.6
    )
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            background = (
                colormap((values[i, j] - low) / max(high - low, 1e-9)) if np.isfinite(values[i, j]) else (1, 1, 1)
            )
            axes.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=size,
                color="black" if np.mean(background[:3]) > 0.45 else "white",
            )
    axes.set_xticks(range(values.shape[1]), columns or [""] * values.shape[1])
    axes.set_yticks(range(values.shape[0]), rows or [""] * values.shape[0])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left")
    show(figure, alt)


# ------------------------------------------------------------ tokens
def token_texts(tokenizer, ids) -> list[str]:
    """What each token id stands for, alone."""
    return [tokenizer.decode([i], skip_special=False) for i in ids]


def token_rows(rows: dict, letters: int = 54, *, alt: str) -> None:
    """Texts cut into tokens, each token a box: {heading: (texts, colours)}. A long row goes on in the next line, as
    text does.

    It is a drawing and not HTML, since code hosts take the colours out of HTML.
    """
    boxes, line = [], 0.0  # (x, line, text, colour), in letters and lines
    headings = []
    for heading, (texts, colours) in rows.items():
        if heading:
            headings.append((line, heading))
            line += 1
        x = 0.0
        for text, colour in zip(texts, colours):
            text = text.replace("\n", "↵").replace(" ", "␣") if not text.strip() else text.replace("\n", "↵")
            width = max(len(text), 1) + 0.7
            if x + width > letters and x > 0:
                x, line = 0.0, line + 1
            boxes.append((x, line, text, colour))
            x += width + 0.25
        line += 1.35
    unit, height = WIDTH / letters, 0.3
    figure = pyplot.figure(figsize=(WIDTH, height * line))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height * line, 0))
    axes.set_axis_off()
    for y, heading in headings:
        axes.text(0, height * (y + 0.5), heading, va="center", fontsize=13, weight="bold")
    for x, y, text, colour in boxes:
        width = (max(len(text), 1) + 0.7) * unit
        box = FancyBboxPatch(
            (x * unit, height * y + 0.02),
            width,
            height - 0.05,
            "round,pad=0,rounding_size=0.04",
            fc=colour,
            ec=GREY,
            lw=0.5,
        )
        axes.add_patch(box)
        dark = np.mean(to_rgb(colour)) < 0.4
        letters_at = (x * unit + width / 2, height * (y + 0.5))
        axes.text(
            *letters_at,
            text,
            ha="center",
            va="center",
            family="monospace",
            fontsize=unit * 72 / 0.61,
            color="white" if dark else "black",
        )
    show(figure, alt)


# ------------------------------------------------------------ what is built so far
# Each box: what it says, left edge, line from the top, width, and the lesson that builds it.
BOXES = [
    ("patches", 1.15, 0, 0.95, 1),
    ("attention", 2.2, 0, 1.1, 2),
    ("layers", 3.4, 0, 0.9, 3),
    ("projector", 5.05, 0, 1.35, 7),
    ("tokens", 1.75, 1, 0.95, 4),
    ("merge", 5.05, 1, 1.35, 7),
    ("decoder", 5.3, 2, 1.0, 6),
    ("attention", 4.05, 2, 1.15, 2),
    ("positions", 2.8, 2, 1.15, 5),
    ("next token", 1.25, 2, 1.25, 8),
    ("training in two stages", 1.25, 3, 5.15, 11),
]


def progress(number: int) -> None:
    """Draw the way from a picture and a question to an answer, the boxes of the lessons before `number` filled, those
    of `number` in orange.
    """
    pitch, box = 0.78, 0.42  # inches from line to line, and a box's height
    figure = pyplot.figure(figsize=(WIDTH, 3 * pitch + 0.72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()

    def rectangle(x, y, width, height, **style):
        axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.06", **style))

    def arrow(start, end):
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        )

    for name, left, width, line in (("vision tower", 1.05, 3.35, 0), ("language model", 2.7, 3.7, 2)):
        rectangle(left, line * pitch - 0.18, width, box + 0.26, fc="#fafafa", ec=GREY, lw=1, ls="--")
        axes.text(left + 0.06, line * pitch - 0.2, name, fontsize=11, color="#555555", va="bottom")
    for text, left, line, width, lesson in BOXES:
        built, now = lesson < number, lesson == number
        face, edge = (ORANGE, ORANGE) if now else (LIGHT_BLUE, BLUE) if built else ("white", GREY)
        rectangle(left, line * pitch - 0.05, width, box, fc=face, ec=edge, lw=1.5)
        color = "white" if now else "black" if built else "#777777"
        axes.text(
            left + width / 2,
            line * pitch + box / 2 - 0.05,
            text,
            ha="center",
            va="center",
            color=color,
            weight="bold" if now else None,
        )
    middle = box / 2 - 0.05
    axes.imshow(
        np.asarray(Image.open(CAT).convert("RGB").resize((120, 120))),
        extent=(0.1, 0.8, middle + 0.35, middle - 0.35),
        zorder=2,
    )
    axes.set(xlim=(-0.05, WIDTH + 0.05), ylim=(3 * pitch + 0.5, -0.22), aspect="auto")
    axes.text(0, pitch + middle, "“What is this?”", va="center")
    axes.text(0, 2 * pitch + middle, "“A cat …”", va="center")
    row = [line * pitch + middle for line in range(4)]
    arrow((0.82, row[0]), (1.05, row[0]))
    arrow((4.4, row[0]), (5.05, row[0]))
    arrow((5.72, row[0] + box / 2), (5.72, row[1] - box / 2))
    arrow((1.42, row[1]), (1.75, row[1]))
    arrow((2.7, row[1]), (5.05, row[1]))
    arrow((5.72, row[1] + box / 2), (5.72, row[2] - box / 2 - 0.12))
    arrow((2.7, row[2]), (2.5, row[2]))
    arrow((1.25, row[2]), (0.95, row[2]))
    done = sorted({text for text, *_, lesson in BOXES if lesson < number})
    today = sorted({text for text, *_, lesson in BOXES if lesson == number})
    show(
        figure,
        "The way from a picture and a question to an answer: a vision tower and a projector for the picture, tokens for the question, a merge, "
        f"a language model, the next token. Built so far: {', '.join(done) or 'nothing'}. In this lesson: {', '.join(today) or 'a tour of it all'}.",
    )


def token_pieces(tokenizer, ids) -> list[str]:
    """Each token as the tokenizer keeps it: "▁" for a space, "<f0>" for a byte that is no character by itself, a
    control token by its name.
    """
    controls = {token_id: name for name, token_id in tokenizer.controls.items()}
    pieces = []
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        try:
            text = data.decode().replace(" ", "▁").replace("\n", "↵")
        except UnicodeDecodeError:
            text = f"<{data.hex()}>"
        pieces.append(controls.get(token_id, text))
    return pieces


# ------------------------------------------------------------ pictures among words
def words_on_patches(picture, words, marked=(), *, alt: str) -> None:
    """A picture, pale, with a word on each of its patches, row by row; those whose numbers are in `marked` are bold and
    orange.
    """
    side = round(len(words) ** 0.5)
    figure, axes = new(height=WIDTH)
    pixels = np.asarray(picture.convert("RGB"), dtype=float) / 255
    axes.imshow(0.6 + 0.4 * pixels, extent=(0, side, side, 0), interpolation="nearest")
    for edge in range(side + 1):
        axes.axhline(edge, color="white", linewidth=1)
        axes.axvline(edge, color="white", linewidth=1)
    for number, word in enumerate(words):
        row, column = divmod(number, side)
        size = min(14, 0.9 * WIDTH / side * 72 / ((0.72 if number in marked else 0.62) * max(len(word), 1)))
        style = {"color": "#a03f00", "weight": "bold"} if number in marked else {"color": "#333333"}
        axes.text(column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=size, **style)
    axes.set_axis_off()
    show(figure, alt)


def positions(picture, texts, is_image, patch: int = 16, letters: int = 50, *, alt: str) -> None:
    """A prompt position by position: each position of the picture as its patch of `patch` pixels, each other one as its
    token in a box.
    """
    pixels, places, x, line = np.asarray(picture.convert("RGB")), [], 0.0, 0
    for text, image in zip(texts, is_image, strict=True):
        width = 2.4 if image else max(len(text), 1) + 0.9  # in letters
        if x + width > letters:
            x, line = 0.0, line + 1
        places.append((x, line, width, text, image))
        x += width + 0.3
    unit, height = WIDTH / letters, 0.36  # inches a letter, inches a line
    figure = pyplot.figure(figsize=(WIDTH, height * (line + 1)))
    axes = figure.add_axes((0, 0, 1, 1))
    side, number = pixels.shape[1] // patch, 0
    for x, line, width, text, image in places:
        left, right, top, bottom = x * unit, (x + width) * unit, line * height + 0.02, (line + 1) * height - 0.02
        if image:
            row, column = divmod(number, side)
            axes.imshow(
                pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch],
                extent=(left, right, bottom, top),
            )
            number += 1
        else:
            axes.add_patch(
                FancyBboxPatch(
                    (left, top),
                    right - left,
                    bottom - top,
                    "round,pad=0,rounding_size=0.04",
                    fc=LIGHT_BLUE,
                    ec=GREY,
                    lw=0.5,
                )
            )
            text = text if text.strip() else text.replace("\n", "↵") or "␣"
            axes.text(
                (left + right) / 2,
                (top + bottom) / 2,
                text,
                ha="center",
                va="center",
                family="monospace",
                fontsize=unit * 72 / 0.61,
            )
    axes.set(xlim=(0, WIDTH), ylim=(places[-1][1] * height + height, 0), aspect="auto")
    axes.set_axis_off()
    show(figure, alt)


def grouped_bars(groups, series: dict, title: str = "", form: str = "{:.0f}", limit: float = 100, *, alt: str) -> None:
    """Horizontal bars in groups: {name: one value for each group}; each bar has its number at its end, each series its
    colour.
    """
    figure, axes = new(height=0.9 + len(groups) * (0.2 + 0.24 * len(series)))
    colours = (GREY, LIGHT_ORANGE, ORANGE, BLUE, GREEN) if len(series) > 3 else (GREY, BLUE, ORANGE)
    step = 0.8 / len(series)
    for index, ((name, values), colour) in enumerate(zip(series.items(), colours)):
        at = np.arange(len(groups)) - 0.4 + step * (index + 0.5)
        axes.barh(at, values, 0.92 * step, color=colour, label=name)
        for y, value in zip(at, values):
            axes.text(value, y, " " + form.format(value), va="center", fontsize=11)
    axes.set_yticks(range(len(groups)), groups)
    axes.tick_params(left=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * limit)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title, loc="left")
    figure.legend(loc="outside upper center", ncols=min(3, len(series)))
    show(figure, alt)
