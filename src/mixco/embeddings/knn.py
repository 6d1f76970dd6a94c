"""k-nearest-neighbour classification: weighted, as Wu et al. 2018 (1805.01978, section 3.4), or not."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.runtime.device import send

# Queries of a block: few enough that its similarities stay in the processor's cache.
QUERIES = 1024
GROUP, TAKE = 32, 4


def neighbours(
    bank: Tensor, queries: Tensor, k: int, *, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of the bank by cosine similarity, the nearest first.

    bank: [N, D], queries: [M, D], of any length and floating type, on one device. k is cut down to N.
    chunk: rows of the bank that are compared at once, with at most 1024 queries.

    Returns similarities float32 [M, k] and indices int64 [M, k]. Exact; products are in float32. The
    order of equally similar rows is not defined, nor which of them is the last of the k.

    Memory: a float32 copy of the queries, and blocks of less than 100 MiB for a chunk of 4096 and a D
    of up to 2048, whatever N and M are.
    """
    k = min(k, len(bank))
    queries = F.normalize(queries.float(), dim=1)
    best = queries.new_full((len(queries), k), -math.inf)
    where = torch.zeros(best.shape, dtype=torch.int64, device=best.device)
    parts = [torch.split(t, min(chunk, QUERIES)) for t in (queries, best, where)]
    keep = _keep_best if bank.device.type == "cpu" else _keep_best_without_waiting
    for start in range(0, len(bank), chunk):
        rows = F.normalize(bank[start : start + chunk].float(), dim=1)
        for query, *found in zip(*parts, strict=True):
            keep(query @ rows.T, start, *found)
    return best, where


def _keep_best(block: Tensor, start: int, best: Tensor, where: Tensor) -> None:
    """Update the k best so far with a block of similarities, in place.

    block: [m, c], with the bank's rows from `start` on; best: [m, k], falling; where: int64 [m, k].

    Sorting the whole block would take longer than computing it. But most of it is below the k-th best
    already, and the maxima of groups of columns show where it is not. Such groups are merged a few at
    a time, the best first, until no remaining group has a better value.
    """
    if missing := -block.shape[1] % GROUP:  # padding copies the block: only where it is needed
        block = F.pad(block, (0, missing), value=-math.inf)
    block = torch.unflatten(block, 1, (-1, GROUP))
    maxima = block.amax(2)
    within = torch.arange(GROUP, device=block.device)
    while len(row := (maxima.amax(1) > best[:, -1]).nonzero().squeeze(1)):
        highest, group = maxima[row].topk(min(TAKE, maxima.shape[1]), dim=1)  # [r, TAKE]
        maxima[row[:, None], group] = -math.inf
        # Where fewer than TAKE groups are left, the others are merged already, and must not count twice.
        merged = highest[:, :, None] == -math.inf
        members = block[row[:, None], group].masked_fill(merged, -math.inf)
        values = torch.cat([best[row], members.flatten(1)], dim=1)
        columns = start + GROUP * group[:, :, None] + within
        columns = torch.cat([where[row], columns.flatten(1)], dim=1)
        best[row], order = values.topk(best.shape[1], dim=1)
        where[row] = columns.gather(1, order)


def _keep_best_without_waiting(block: Tensor, start: int, best: Tensor, where: Tensor) -> None:
    """As `_keep_best`, but no shape depends on a value, so that the host need not wait for a GPU."""
    highest, column = block.topk(min(best.shape[1], block.shape[1]), dim=1)
    values, order = torch.cat([best, highest], dim=1).topk(best.shape[1], dim=1)
    where.copy_(torch.cat([where, start + column], dim=1).gather(1, order))
    best.copy_(values)


def knn_scores(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float | None = 0.07,
    chunk: int = 4096,
) -> Tensor:
    """Each neighbour votes for its label with exp(similarity / temperature).

    bank: [N, D] with bank_labels int64 [N] in [0, classes), on any device; queries: [M, D].
    temperature: None for equal votes. Then the lowest of classes with as many votes wins, as in
        scikit-learn's KNeighborsClassifier(metric="cosine").

    Returns float32 [M, classes] on the bank's device; higher is likelier. Votes are relative to the
    nearest neighbour's, so that none overflows at any temperature.
    """
    similarities, index = neighbours(bank, queries, k, chunk=chunk)
    if temperature is None:
        votes = torch.ones_like(similarities)
        # Less than a vote, and more for the lower classes.
        scores = torch.linspace(0.5, 0, classes, device=votes.device).repeat(len(queries), 1)
    else:
        votes = torch.exp((similarities - similarities[:, :1]) / temperature)
        scores = votes.new_zeros(len(queries), classes)
    return scores.scatter_add_(1, send(bank_labels, index.device)[index], votes)


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percentage of rows whose label is among the k highest scores; scores [M, C], labels int64 [M].

    The labels may be on any device, and k may exceed C. A tie counts against the label, so that equal
    scores for all classes are no success.
    """
    own = scores.gather(1, send(labels, scores.device)[:, None])
    better = (scores >= own).sum(1) - 1
    return 100 * (better < k).float().mean().item()
