"""Byte-pair encoding: how a word becomes tokens.

A word begins as single characters. Of all neighbours that can be joined, the pair of the lowest rank (the one learnt
first) is joined; of several such pairs, the leftmost. This goes on until no two neighbours have a rank.

`pieces` is the list of the word's characters, `ranks` says which pairs can be joined: {(left, right): rank}. Returns
the list of tokens, which joined give the word again. Leave the list that you were given as it was.

    >>> ranks = {("a", "t"): 0, ("c", "at"): 1, ("c", "a"): 2}
    >>> merge_pieces(["c", "a", "t", "s"], ranks)       # "a" + "t" comes first, although "c" + "a" stands further left
    ['cat', 's']

About 8 lines. Check it: python -m lessons.check bpe
"""

REPLACES = "lessons.bpe.merge_pieces"


def merge_pieces(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    raise NotImplementedError("merge_pieces has to join neighbours, the lowest rank first")
