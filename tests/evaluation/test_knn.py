import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixco.evaluation.knn import knn_scores, neighbours, topk_accuracy


def clusters(n: int, seed: int, classes: int = 5, dim: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + torch.randn(n, dim, generator=generator), labels


def reference(
    bank: Tensor, labels: Tensor, query: Tensor, classes: int, k: int, t: float
) -> Tensor:
    """Wu et al. 2018, section 3.4, word for word, in float64: one query."""
    similarity = torch.stack([F.cosine_similarity(query, b, dim=0) for b in bank.double()])
    scores = torch.zeros(classes, dtype=torch.float64)
    for i in similarity.argsort(descending=True)[:k]:
        scores[labels[i]] += torch.exp(similarity[i] / t)
    return scores / torch.exp(similarity.max() / t)


def test_scores_are_the_papers() -> None:
    bank, labels = clusters(80, 0)
    queries, _ = clusters(12, 1)
    scores = knn_scores(bank, labels, queries, classes=5, k=7, temperature=0.07)
    for query, score in zip(queries, scores, strict=True):
        expected = reference(bank, labels, query.double(), 5, 7, 0.07).float()
        torch.testing.assert_close(score, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 90), m=st.integers(1, 40), k=st.integers(1, 100), chunk=st.integers(1, 100))
def test_chunks_change_nothing(n: int, m: int, k: int, chunk: int) -> None:
    bank, _ = clusters(n, 2)
    queries, _ = clusters(m, 3)
    whole, of_whole = neighbours(bank, queries, k)
    parts, of_parts = neighbours(bank, queries, k, chunk=chunk)
    assert whole.shape == (m, min(k, n))
    torch.testing.assert_close(whole, parts)
    found = F.normalize(bank, dim=1)[of_parts] @ F.normalize(queries, dim=1)[:, :, None]
    torch.testing.assert_close(found.squeeze(2), whole)
    assert torch.equal(of_whole.sort(1).values, of_parts.sort(1).values)


def test_lengths_do_not_matter() -> None:
    bank, labels = clusters(60, 0)
    queries, _ = clusters(10, 1)
    lengths = torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) * 100 + 0.01
    scores = knn_scores(bank, labels, queries, classes=5)
    torch.testing.assert_close(knn_scores(bank * lengths, labels, queries * 50, classes=5), scores)


def test_it_stays_finite_at_any_temperature() -> None:
    bank, labels = clusters(60, 0)
    scores = knn_scores(bank, labels, bank, classes=5, k=3, temperature=1e-4)
    assert scores.isfinite().all()
    assert topk_accuracy(scores, labels, 1) == 100.0, "each finds itself"


def test_equal_scores_are_no_success() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    assert topk_accuracy(torch.zeros(4, 3), labels, 1) == 0.0


def test_accuracies() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    labels = torch.tensor([0, 1, 2])
    assert topk_accuracy(scores, labels, 1) == pytest.approx(100 / 3)
    assert topk_accuracy(scores, labels, 2) == pytest.approx(200 / 3)
    assert topk_accuracy(scores, labels, 5) == 100.0
