"""The one loss against the papers' formulas, written out, and its properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.losses import MASKED, contrastive_accuracy, mixtures, soft_infonce
from mixco.mixing import Pairs, soft_targets

T = 0.2


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 16, dtype=torch.float64, generator=generator), dim=1)


def infonce_reference(queries: Tensor, keys: Tensor, queue: Tensor, t: float) -> Tensor:
    """He et al. 2020, eq. 1: -log exp(q.k+ / t) / sum over k+ and the queue of exp(q.k / t)."""
    losses = []
    for q, positive in zip(queries, keys, strict=True):
        others = torch.stack([torch.exp(q @ k / t) for k in queue])
        own = torch.exp(q @ positive / t)
        losses.append(-torch.log(own / (own + others.sum())))
    return torch.stack(losses).mean()


def nt_xent_reference(z_i: Tensor, z_j: Tensor, t: float) -> Tensor:
    """Chen et al. 2020, eq. 1, over all 2B outputs."""
    z, batch = torch.cat([z_i, z_j]), len(z_i)
    losses = []
    for a in range(2 * batch):
        partner = (a + batch) % (2 * batch)
        denominator = sum(torch.exp(z[a] @ z[b] / t) for b in range(2 * batch) if b != a)
        losses.append(-torch.log(torch.exp(z[a] @ z[partner] / t) / denominator))
    return torch.stack(losses).mean()


def mixco_reference(mixed: Tensor, keys: Tensor, queue: Tensor, lam: Tensor, t: float) -> Tensor:
    """Kim et al. 2020: -[lam log p(i) + (1 - lam) log p(i + B/2)], p over keys and queue."""
    half = len(mixed)
    losses = []
    for i, m in enumerate(mixed):
        denominator = sum(torch.exp(m @ k / t) for k in torch.cat([keys, queue]))
        first = torch.log(torch.exp(m @ keys[i] / t) / denominator)
        second = torch.log(torch.exp(m @ keys[i + half] / t) / denominator)
        losses.append(-(lam[i] * first + (1 - lam[i]) * second))
    return torch.stack(losses).mean()


def clean_moco(queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
    own = torch.eye(len(queries), dtype=torch.float64)
    exclude = F.pad(own == 0, (0, len(queue)))
    return soft_infonce(queries, torch.cat([keys, queue]), own, T, exclude)


def lambdas(pairs: int) -> Tensor:
    return torch.rand(pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def targets_of(lam: Tensor) -> Tensor:
    first = torch.arange(len(lam))
    return soft_targets(Pairs(first, first + len(lam), lam), lam, 2 * len(lam))


def test_moco_is_the_papers_formula() -> None:
    queries, keys, queue = unit(6, 1), unit(6, 2), unit(24, 3)
    torch.testing.assert_close(
        clean_moco(queries, keys, queue), infonce_reference(queries, keys, queue, T)
    )


def test_simclr_is_the_papers_formula() -> None:
    z_i, z_j = unit(6, 1), unit(6, 2)
    z, itself = torch.cat([z_i, z_j]), torch.eye(12, dtype=torch.bool)
    ours = soft_infonce(z, z, itself.roll(6, 1).double(), T, exclude=itself)
    torch.testing.assert_close(ours, nt_xent_reference(z_i, z_j, T))


def test_mixco_is_the_papers_formula() -> None:
    mixed, keys, queue, lam = unit(3, 1), unit(6, 2), unit(24, 3), lambdas(3)
    ours = soft_infonce(mixed, torch.cat([keys, queue]), targets_of(lam), T)
    torch.testing.assert_close(ours, mixco_reference(mixed, keys, queue, lam, T))


def test_lambda_of_one_gives_the_hard_loss_of_that_image() -> None:
    mixed, keys, queue = unit(3, 1), unit(6, 2), unit(24, 3)
    candidates = torch.cat([keys, queue])
    ours = soft_infonce(mixed, candidates, targets_of(torch.ones(3, dtype=torch.float64)), T)
    hard = F.cross_entropy(mixed @ candidates.T / T, torch.arange(3))
    torch.testing.assert_close(ours, hard)


def test_permuting_the_batch_permutes_the_result() -> None:
    queries, keys, queue = unit(6, 1), unit(6, 2), unit(24, 3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    gradients = []
    for index in (torch.arange(6), order):
        q = queries[index].clone().requires_grad_()
        loss = clean_moco(q, keys[index], queue)
        loss.backward()
        assert q.grad is not None
        gradients.append((loss.detach(), q.grad))
    torch.testing.assert_close(gradients[1][0], gradients[0][0])
    torch.testing.assert_close(gradients[1][1], gradients[0][1][order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_temperature_stays_finite(dtype: torch.dtype) -> None:
    queries = torch.cat([unit(4, 1), -unit(4, 1)]).to(dtype).requires_grad_()
    candidates = torch.cat([unit(4, 1), -unit(4, 1), unit(8, 3)]).to(dtype)
    targets = torch.full((8, 8), 1 / 8)  # far from every softmax
    itself = torch.eye(8, 16, dtype=torch.bool)
    loss = soft_infonce(queries, candidates, targets.roll(1) * ~itself[:, :8], 0.01, itself)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss > 10  # a probability of exp(-200) keeps its size
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


def test_mixtures_are_not_rounded_by_autocast() -> None:
    targets = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.1, 0.9]])
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixtures(targets, values)
    torch.testing.assert_close(found, targets @ values)


def test_similarities_are_not_rounded_by_autocast() -> None:
    queries, candidates = unit(4, 1).float(), unit(9, 2).float()
    targets = torch.eye(4)
    plain = soft_infonce(queries, candidates, targets, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = soft_infonce(queries, candidates, targets, 0.05)
    assert torch.equal(plain, cast)


def test_equal_similarities_cost_the_logarithm_of_their_number() -> None:
    same = F.normalize(torch.ones(5, 8), dim=1)
    assert soft_infonce(same, same, torch.eye(5), T).item() == pytest.approx(math.log(5))


def test_accuracy_counts_the_queries_whose_own_key_is_nearest() -> None:
    logits = torch.tensor(
        [
            [3.0, MASKED, 1.0],  # won
            [MASKED, 1.0, 2.0],  # a key of the queue is nearer
            [MASKED, 2.0, 2.0],  # a tie is not won
            [-1.0, MASKED, -2.0],  # won
        ]
    )
    own = torch.eye(2)[[0, 1, 1, 0]]
    assert contrastive_accuracy(logits, own).item() == 50
    assert contrastive_accuracy(torch.ones(4, 3), own).item() == 0, "all outputs are one"
