"""The contrastive loss: one soft-target cross-entropy over similarities serves every method.

- MoCo's clean term (He et al. 2020, eq. 1): targets are the identity over the keys of the batch,
  and its other keys are excluded, which leaves the own key and the queue.
- NT-Xent (Chen et al. 2020, eq. 1): both views are candidates, each excludes itself, and the target
  is the other view.
- MixCo (Kim et al. 2020, eq. 4): targets are the shares of the mixture, zero for the queue.
"""

import torch
from torch import Tensor

# A finite stand-in for minus infinity: under soft targets 0 x -inf would be NaN. Logits
# are at most 1 / temperature, so its exponential is zero in every dtype.
MASKED = -1e9


def similarity_logits(
    queries: Tensor, candidates: Tensor, temperature: float, exclude: Tensor | None = None
) -> Tensor:
    """Cosine similarities over the temperature.

    queries: [M, C], candidates: [N, C], both of unit length. exclude: bool [M, N], true where a
    candidate must not take part in the query's denominator.

    Returns [M, N] in at least float32, outside autocast: in bfloat16 a similarity errs by about
    0.004, which a temperature of 0.05 turns into a factor of 1.08.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.to(dtype) @ candidates.to(dtype).T / temperature
    return logits if exclude is None else logits.masked_fill(exclude, MASKED)


def soft_infonce(
    queries: Tensor,
    candidates: Tensor,
    targets: Tensor,
    temperature: float,
    exclude: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of softmax(similarities / temperature) against soft targets, query mean.

    queries: [M, C] and candidates: [N, C], both of unit length.
    targets: [M, T] with T <= N; rows sum to one. Column t belongs to candidate t; the candidates
        behind the last column (MoCo's queue) have target zero and are not written out.
    temperature: > 0.
    exclude: bool [M, N], see `similarity_logits`; a candidate with a target must not be excluded.

    Returns a scalar in at least float32.
    """
    logits = similarity_logits(queries, candidates, temperature, exclude)
    # Not log(softmax): that is -inf where the softmax underflows, and 0 x -inf is NaN.
    surprise = torch.logsumexp(logits, dim=1, keepdim=True) - logits[:, : targets.shape[1]]
    return (targets.to(logits.dtype) * surprise).sum(1).mean()
