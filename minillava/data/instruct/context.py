"""What the teacher reads of a picture: captions and, for two of the three kinds, boxes (arXiv 2304.08485, section 3,
"symbolic representations").
"""

from minillava.data.instruct.sources import Picture

KINDS = ("conversation", "detail", "reasoning")
WITH_BOXES = ("detail", "reasoning")  # a conversation is written from captions alone, as in LLaVA's prompt files


def symbolic_context(picture: Picture, kind: str) -> str:
    """The captions, a line each; for detail and reasoning then an empty line and the boxes, "category: [x1, y1, x2,
    y2]" in thousandths.
    """
    lines = list(picture.captions)
    if kind in WITH_BOXES and picture.instances:
        lines += ["", *(f"{name}: [{', '.join(f'{edge:.3f}' for edge in box)}]" for name, box in picture.instances)]
    return "\n".join(lines)
