"""Known mistakes in lessons/exercises/e04_bpe.py."""

from itertools import pairwise

from lessons.mistakes.base import mistake


@mistake(
    "bpe",
    "merge_pieces",
    "you join the leftmost pair that can be joined; the pair of the lowest rank comes first, wherever it stands",
)
def leftmost(pieces, ranks):
    pieces = list(pieces)
    while True:
        at = next((i for i, pair in enumerate(pairwise(pieces)) if pair in ranks), None)
        if at is None:
            return pieces
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def merge_variant(best=min, limit=None, copy=True, key=lambda rank, i: (rank, i)):
    def merge_pieces(pieces, ranks):
        pieces = list(pieces) if copy else pieces
        done = 0
        while limit is None or done < limit:
            pairs = [(*key(ranks[pair], i), i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
            if not pairs:
                break
            i = best(pairs)[-1]
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            done += 1
        return pieces

    return merge_pieces


HIGHEST = "you join the pair of the highest rank; rank 0 was learnt first and goes first"


mistake("bpe", "merge_pieces", HIGHEST)(
    merge_variant(best=lambda pairs: max(pairs, key=lambda pair: (pair[0], -pair[1])))
)


mistake("bpe", "merge_pieces", "you stop after one join; go on until no two neighbours have a rank")(
    merge_variant(limit=1)
)


mistake("bpe", "merge_pieces", "you change the list that you were given; work on a copy of it")(
    merge_variant(copy=False)
)


mistake("bpe", "merge_pieces", "of equal pairs you join the last; it is the leftmost")(
    merge_variant(key=lambda rank, i: (rank, -i))
)


@mistake(
    "bpe",
    "merge_pieces",
    "you go through the ranks once; a join can make a lower rank possible, so begin anew after each",
)
def one_pass(pieces, ranks):
    pieces = list(pieces)
    for pair in sorted(ranks, key=ranks.get):
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == pair:
                pieces[i : i + 2] = ["".join(pair)]
            i += 1
    return pieces


@mistake(
    "bpe",
    "merge_pieces",
    "you join every place of the pair at once and then let a piece be used twice; after a join its pieces are gone",
)
def used_twice(pieces, ranks):
    pieces = list(pieces)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not found:
            return pieces
        lowest = min(found)[0]
        places = {i for rank, i in found if rank == lowest}
        behind = {i + 1 for i in places}
        pieces = [
            pieces[i] + pieces[i + 1] if i in places else pieces[i]
            for i in range(len(pieces))
            if i in places or i not in behind
        ]
