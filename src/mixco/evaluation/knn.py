"""Weighted k-nearest-neighbour classification (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbours(
    bank: Tensor, queries: Tensor, k: int, *, chunk: int = 4096
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of the bank by cosine similarity, the nearest first.

    bank: [N, D], queries: [M, D], of any length. k is cut down to N.

    Returns similarities float32 [M, k] and indices int64 [M, k]. Exact, in the memory of a chunk x
    chunk block of similarities, whatever N and M are.
    """
    k = min(k, len(bank))
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    similarities, indices = [], []
    for query in torch.split(queries, chunk):
        best = query.new_full((len(query), 0), 0.0)
        where = torch.zeros(len(query), 0, dtype=torch.int64, device=query.device)
        for start in range(0, len(bank), chunk):
            block = query @ bank[start : start + chunk].T
            number = torch.arange(start, start + block.shape[1], device=query.device)
            best = torch.cat([best, block], dim=1)
            where = torch.cat([where, number.expand(len(query), -1)], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, order)
        similarities.append(best)
        indices.append(where)
    return torch.cat(similarities), torch.cat(indices)


def knn_scores(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> Tensor:
    """Each neighbour votes for its label with exp(similarity / temperature).

    bank: [N, D] with bank_labels int64 [N] in [0, classes); queries: [M, D].

    Returns float32 [M, classes]; higher is likelier. Votes are relative to the nearest neighbour's,
    which keeps them from overflowing at any temperature.
    """
    similarities, index = neighbours(bank, queries, k, chunk=chunk)
    votes = torch.exp((similarities - similarities[:, :1]) / temperature)
    scores = votes.new_zeros(len(queries), classes)
    return scores.scatter_add_(1, bank_labels[index], votes)


def topk_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows whose label is among the k highest scores; scores [M, C], labels int64 [M].

    With fewer than k classes, k is their number. A tie counts against the label, so that equal
    scores for all classes are not a success.
    """
    own = scores.gather(1, labels[:, None])
    better = (scores >= own).sum(1) - 1
    return 100 * (better < k).float().mean().item()
