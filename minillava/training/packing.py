"""Which samples go together: batches of like length, a sample a row or several packed into one.

Packed, next to nothing is padding: a row holds one sample after the other, and each sees itself alone (tensors.py).
"""

import heapq
from collections.abc import Callable

import numpy as np

from minillava.training.samples import Group


def arrange(samples: list, length: Callable[[object], int], num_batches: int, capacity: int = 0) -> list[list[list]]:
    """The samples of a group as its batches, lists of rows of like length: a sample a row, or with a `capacity` in
    tokens several packed into one.
    """
    if capacity:
        return evenly_cut(pack(samples, length, capacity, num_batches), num_batches)
    return evenly_cut([[sample] for sample in sorted(samples, key=length)], num_batches)


def batches_of(group: Group, samples: list, length: Callable[[object], int], capacity: int = 0) -> list[list[list]]:
    """The same in the order of the group's steps, in which long and short ones are mixed."""
    batches = arrange(samples, length, group.num_batches, capacity)
    return [batches[i] for i in np.random.default_rng(group.key).permutation(group.num_batches)]


def evenly_cut(items: list, parts: int) -> list[list]:
    """`items` in order, in `parts` parts whose sizes differ by at most one."""
    edges = [len(items) * i // parts for i in range(parts + 1)]
    return [items[edges[i] : edges[i + 1]] for i in range(parts)]


def pack(samples: list, length: Callable[[object], int], capacity: int, multiple: int = 1) -> list[list]:
    """Rows of samples that are at most `capacity` tokens long and about equally long; only a sample longer than that
    has a longer row, alone.

    There are as few rows as a multiple of `multiple` allows. The longest sample that is left goes to the row that is
    still the shortest (Graham, Bounds on Multiprocessing Timing Anomalies, 1969): a batch is padded to its longest row,
    so equal rows matter more than full ones.
    """
    ordered = sorted(samples, key=length, reverse=True)
    capacity = max(capacity, length(ordered[0]) if ordered else 0)
    fewest = -(-sum(map(length, samples)) // capacity)
    num_rows = max(1, -(-fewest // multiple)) * multiple
    while True:
        rows = [(0, number, []) for number in range(num_rows)]  # (tokens, number, samples): already a heap
        for sample in ordered:
            tokens, number, row = rows[0]
            row.append(sample)
            heapq.heapreplace(rows, (tokens + length(sample), number, row))
        if max(tokens for tokens, _, _ in rows) <= capacity:
            return [row for _, _, row in sorted(rows) if row]
        num_rows += multiple
