"""Byte-pair encoding by hand: the merge loop that the product leaves to the `tokenizers` library, and a tokenizer that
runs on it.

The library still cuts the text into words ("▁cat") and turns unknown characters into bytes; `merge_pieces` makes tokens
of each word. Source: Neural Machine Translation of Rare Words with Subword Units (arXiv 1508.07909), section 3.2.
"""

from itertools import groupby, pairwise


def merge_pieces(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Join neighbours, always the pair of the lowest rank first and the leftmost of equals, until no pair has a rank."""
    pieces = list(pieces)
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def merge_ranks(tokenizer) -> dict[tuple[str, str], int]:
    """{(left, right): rank} of a Tokenizer: the merges in the order in which they were learnt."""
    merges = tokenizer.spec["model"]["merges"]
    return {tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair): rank for rank, pair in enumerate(merges)}


def encode(tokenizer, parts) -> tuple[list[int], list[tuple[int, int]]]:
    """`Tokenizer.encode`, its words split by `merge_pieces`."""
    from minillava.inputs.tokenizer import NO_CONTROL, Control

    parts = [parts] if isinstance(parts, str) else parts
    text = "".join(tokenizer._character_of(p) if isinstance(p, Control) else p.translate(NO_CONTROL) for p in parts)
    encoding, ranks, vocabulary = (
        tokenizer._inner.encode(text, add_special_tokens=False),
        merge_ranks(tokenizer),
        tokenizer.spec["model"]["vocab"],
    )
    ids, offsets = [], []
    rows = zip(encoding.word_ids, encoding.tokens, encoding.ids, encoding.offsets, strict=True)
    for _, word in groupby(rows, lambda row: row[0]):
        word = list(word)
        pieces = [token for _, token, _, _ in word]
        # a control token, or the bytes of an unknown character
        if any(piece not in vocabulary or piece.startswith("<") for piece in pieces):
            ids += [tokenizer._official_id.get(i, i) for _, _, i, _ in word]
            offsets += [span for *_, span in word]
            continue
        merged = merge_pieces(list("".join(pieces)), ranks)
        start, end = word[0][3][0], word[-1][3][1]
        at = end - len("".join(pieces))  # before the first word stands a "▁" that no character of the text is
        for piece in merged:
            ids.append(vocabulary[piece] if piece in vocabulary else vocabulary["<unk>"])
            offsets.append((max(start, at), at + len(piece)))
            at += len(piece)
    return ids, offsets
