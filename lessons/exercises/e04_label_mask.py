"""The label mask: which tokens pay loss.

LLaVA learns to answer, not to ask. A token's label is its own id when it lies in an answer or in the end that follows
it; every other label is -100, which cross entropy leaves out. (Labels are not shifted here: the loss does that.)

`ids` are the tokens of a whole conversation, `offsets` says which characters [start, end) of its text each one came
from, and `supervised_at[c]` is True when character c is in an answer or in its end. A token counts by its last
character, number end - 1, since a token may begin with the space before a word. A token without characters (start =
end) is not supervised. Returns a list as long as ids.

    >>> ids, offsets = [7, 8, 9], [(0, 3), (3, 5), (5, 6)]
    >>> label_mask(ids, offsets, [False, False, False, False, True, True])
    [-100, 8, 9]

About 4 lines. Check it: python -m lessons.check label_mask
"""

REPLACES = "minillava.inputs.conversation.label_mask"


def label_mask(ids: list[int], offsets: list[tuple[int, int]], supervised_at: list[bool]) -> list[int]:
    raise NotImplementedError("label_mask has to give the answers their ids and everything else -100")
