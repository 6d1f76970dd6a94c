"""The losses. One soft-target cross-entropy over similarities serves every method with negatives.

- MoCo's clean loss (He et al. 2020, eq. 1): the target is the query's own key. Other keys of the batch
  are excluded, so that the candidates are the own key and the queue.
- NT-Xent (Chen et al. 2020, eq. 1): both views of all images are candidates, a query excludes itself,
  and its target is the other view.
- MixCo (Kim et al. 2020, eq. 4): the targets are lambda and 1 - lambda for the two sources, and zero for
  all others and the queue.

Un-Mix on MoCo has a loss of its own, `own_cross_entropy`. Below are the losses without negatives: the
cosines of BYOL and SimSiam, and the cross-correlations of Barlow Twins.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A finite stand-in for minus infinity: under soft targets 0 x -inf would be NaN. Logits
# are at most 1 / temperature, so its exponential is zero in every dtype.
MASKED = -1e9


def similarity_logits(
    queries: Tensor, candidates: Tensor, temperature: float, exclude: Tensor | None = None
) -> Tensor:
    """Cosine similarities over the temperature.

    queries: [M, C], candidates: [N, C], both of unit length. temperature: > 0.
    exclude: bool [M, N], true where a candidate is left out of the query's denominator.

    Returns [M, N] in at least float32, computed outside autocast: bfloat16 rounds a similarity by about
    0.004, which a temperature of 0.05 turns into a factor of 1.08.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.to(dtype) @ candidates.to(dtype).T / temperature
    return logits if exclude is None else logits.masked_fill(exclude, MASKED)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of softmax(logits) against soft targets, the mean over the rows, a scalar.

    logits: [M, N]. targets: [M, T] with T <= N; rows sum to one. Column t is for candidate t. Candidates
    T to N - 1 (MoCo's queue) have target zero and need no column.
    """
    # Not log(softmax): that is -inf where the softmax underflows, and 0 x -inf is NaN.
    surprise = torch.logsumexp(logits, dim=1, keepdim=True) - logits[:, : targets.shape[1]]
    return (targets.to(logits.dtype) * surprise).sum(1).mean()


def soft_infonce(
    queries: Tensor,
    candidates: Tensor,
    targets: Tensor,
    temperature: float,
    exclude: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of softmax(similarities / temperature) against soft targets, query mean.

    queries: [M, C] and candidates: [N, C], both of unit length.
    targets: [M, T], see `soft_cross_entropy`. temperature: > 0.
    exclude: bool [M, N], see `similarity_logits`; a candidate with a target must not be excluded.

    Returns a scalar in at least float32.
    """
    return soft_cross_entropy(similarity_logits(queries, candidates, temperature, exclude), targets)


def own_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in which each key has a denominator of its own: the key itself and the queue.

    mean_i sum_j t_ij (log(exp(l_ij) + sum_n exp(l_in)) - l_ij), j over the keys and n over the queue.
    So the other keys of the batch are no negatives, as in MoCo's clean loss (Un-Mix: Shen et al. 2022).

    logits: [M, B + K], of B keys and the K of the queue. targets: [M, B]; rows sum to one. A scalar.
    """
    batch = targets.shape[1]
    keys, negatives = logits[:, :batch], torch.logsumexp(logits[:, batch:], dim=1, keepdim=True)
    surprise = torch.logaddexp(keys, negatives) - keys
    return (targets.to(logits.dtype) * surprise).sum(1).mean()


def at_least_float32(outputs: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def unit(outputs: Tensor) -> Tensor:
    """Rows of unit length, in at least float32."""
    return F.normalize(at_least_float32(outputs), dim=1)


def mixtures(targets: Tensor, values: Tensor) -> Tensor:
    """sum_j t_ij v_j: [M, N], in at least float32.

    targets: t [M, T], how much of each source a mixed image holds. values: v [T, N], of the sources.
    Computed outside autocast: bfloat16 would round a part of 0.3 to 0.30078.
    """
    values = at_least_float32(values)
    with torch.autocast(values.device.type, enabled=False):
        return targets.to(values.dtype) @ values


def mean_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean of the products of rows, a scalar in [-1, 1]: of cosines, where targets have unit length.

    predictions: [M, C], of any length. targets: [M, C].
    BYOL's loss is 2 - 2 x this (Grill et al. 2020, eq. 2), SimSiam's minus it (Chen and He 2021, eq. 1).
    """
    return (unit(predictions) * targets).sum(1).mean()


def mixed_targets(projections: Tensor, targets: Tensor, *, mix_first: bool = False) -> Tensor:
    """What the predictions of mixed images should point to: [M, C], in at least float32.

    sum_j t_ij z_j / |z_j|, so that its product with a prediction of unit length is the mixture of the
    cosines (i-Mix and Un-Mix on BYOL). mix_first: u / |u| with u = sum_j t_ij z_j: projections are mixed
    before they are normalised, so that longer ones weigh more (MYOL).

    projections: z [T, C], of any length. targets: t [M, T].
    """
    if mix_first:
        return unit(mixtures(targets, projections))
    return mixtures(targets, unit(projections))


def standardised(projections: Tensor, eps: float = 1e-5) -> Tensor:
    """Each dimension with mean 0 and variance 1 over the batch, as by a batch norm without weights.

    projections: [B, D]. Returns [B, D] in at least float32.
    """
    z = at_least_float32(projections)
    variance, mean = torch.var_mean(z, dim=0, correction=0)
    return (z - mean) * torch.rsqrt(variance + eps)


def barlow_twins(first: Tensor, second: Tensor, off_diagonal: float) -> Tensor:
    """How far the cross-correlation of two views is from the identity (Zbontar et al. 2021, eq. 1).

    sum_i (1 - c_ii)^2 + off_diagonal x sum_(i != j) c_ij^2, with c = first' second / B, a scalar.

    first, second: [B, D], standardised. off_diagonal: the paper's lambda, >= 0.
    """
    with torch.autocast(first.device.type, enabled=False):
        correlation = first.T @ second / len(first)
    own = correlation.diagonal()
    others = correlation.square().sum() - own.square().sum()
    return (own - 1).square().sum() + off_diagonal * others


def mixed_residue(
    mixed: Tensor, sources: Tensor, targets: Tensor, views: Sequence[Tensor]
) -> Tensor:
    """How much the views tell of what a mixed image has beyond its sources (Bandara et al. 2023).

    sum_v |r' s_v|^2 / M^2 with r = mixed - t sources, a scalar. So the cross-correlation of mixed
    images with a view should be the mixture of their sources' cross-correlations.

    mixed: [M, D], sources: [T, D], all standardised. targets: t [M, T]. views: s_v, [M, D] each: row i
    belongs to the first source of mixed image i.
    """
    residue = mixed - mixtures(targets, sources)
    with torch.autocast(mixed.device.type, enabled=False):
        found = [(residue.T @ view / len(mixed)).square().sum() for view in views]
    return torch.stack(found).sum()


@torch.no_grad()
def contrastive_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Percentage of queries whose positive is more similar than every negative.

    logits: [M, N], N > 1. targets: [M, T], one 1 a row, at the positive. A tie counts as wrong, so that
    the accuracy of collapsed outputs is 0. Returns a scalar in [0, 100]; nothing waits for the device.
    """
    own = logits.gather(1, targets.argmax(1, keepdim=True))
    # Counting, which includes the positive itself: a GPU sorts for topk, in a dozen kernels.
    return 100 * ((logits >= own).sum(1) == 1).to(logits.dtype).mean()
