"""Near-duplicates among vectors, block by block: no N x N matrix is ever made."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024  # rows that are compared with each other, and then with all later rows
CHUNK = 4096  # later rows that are compared with a block at once
ROUNDING = 1e-6  # of the product of a unit vector with itself

Group = list[tuple[int, float]]
"""Rows, and the similarity of each to the first of them."""


def near_duplicates(
    vectors: Tensor, threshold: float, on_progress: Callable[[int, int], None] | None = None
) -> list[Group]:
    """Groups of at least two rows, each near the first row of its group.

    vectors: float [N, D], of any length. threshold: the least cosine similarity, in (0, 1].

    In order, each row that is not in a group yet starts one and takes all later free rows near it. So
    every member is near its first row, and no two first rows, including those alone, are near each
    other: they remain when the others are removed. A chain of rows, each near the next, is no group
    unless all are near the first.

    The first row stands first, then the others, the nearest first. The tightest groups come first.
    """
    count = len(vectors)
    free = torch.ones(count, dtype=torch.bool)
    groups: dict[int, Group] = {}

    def take(first: Tensor, members: Tensor, similarities: Tensor) -> None:
        free[members] = False
        for row, member, value in zip(
            first.tolist(), members.tolist(), similarities.clamp(max=1.0).tolist(), strict=True
        ):
            groups.setdefault(row, [(row, 1.0)]).append((member, value))

    for start in range(0, count, BLOCK):
        rows = _free_rows(free, start, start + BLOCK)
        queries = _unit(vectors, rows)
        similarities = queries @ queries.T
        near = (similarities >= threshold - ROUNDING).triu(1)
        for i in range(len(rows)):
            members = (near[i] & free[rows]).nonzero().squeeze(1) if free[rows[i]] else rows[:0]
            if len(members):
                take(rows[i].expand(len(members)), rows[members], similarities[i, members])
        firsts = free[rows]
        rows, queries = rows[firsts], queries[firsts]
        for begin in range(start + BLOCK, count if len(rows) else 0, CHUNK):
            later = _free_rows(free, begin, begin + CHUNK)
            similarities = queries @ _unit(vectors, later).T
            near = similarities >= threshold - ROUNDING
            members = near.any(0).nonzero().squeeze(1)
            first = near[:, members].int().argmax(0)  # the earliest
            take(rows[first], later[members], similarities[first, members])
        if on_progress:
            on_progress(min(start + BLOCK, count), count)
    for group in groups.values():
        group[1:] = sorted(group[1:], key=lambda member: -member[1])
    return sorted(groups.values(), key=lambda group: -group[-1][1])


def _free_rows(free: Tensor, begin: int, end: int) -> Tensor:
    return begin + free[begin:end].nonzero().squeeze(1)


def _unit(vectors: Tensor, rows: Tensor) -> Tensor:
    return F.normalize(vectors[rows].float(), dim=1)
