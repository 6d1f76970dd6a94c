import subprocess
import sys
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_images import sample_images
from torch import Tensor

from mixco.embeddings import knn
from mixco.embeddings.features import extract_features
from mixco.embeddings.knn import knn_scores, neighbours, topk_accuracy
from mixco.models.encoder import build_backbone
from mixco.runtime.device import Compute
from mixco.views.augment import evaluation_view
from mixco.views.augmentation import Input


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


def test_equal_votes_are_counted_and_the_lowest_class_wins_a_tie() -> None:
    """As scikit-learn's KNeighborsClassifier(n_neighbors=k, metric="cosine") does."""
    bank, labels = clusters(80, 0)
    queries, _ = clusters(200, 1)
    scores = knn_scores(bank, labels, queries, classes=5, k=6, temperature=None)
    _, index = neighbours(bank, queries, 6)
    counts = F.one_hot(labels[index], 5).sum(1)
    assert torch.equal(scores.floor().long(), counts)
    tied = (counts == counts.amax(1, keepdim=True)).sum(1) > 1
    assert tied.any()
    lowest = [row.index(max(row)) for row in counts.tolist()]
    assert scores.argmax(1).tolist() == lowest
    own = torch.tensor(lowest)
    assert topk_accuracy(scores, own, 1) == 100, "a tie is decided, not counted against the label"


@pytest.mark.parametrize("k", [5, 21, 120])
@pytest.mark.parametrize("n", [33, 130, 160, 250, 400])
def test_a_small_bank_is_searched_exactly_and_no_row_found_twice(n: int, k: int) -> None:
    """A few groups of columns, of which the last are fewer than are merged at once."""
    bank, _ = clusters(n, 2)
    queries, _ = clusters(9, 3)
    similarities, rows = neighbours(bank, queries, k)
    exact = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    torch.testing.assert_close(similarities, exact.topk(min(k, n)).values)
    assert all(len(row.unique()) == min(k, n) for row in rows)


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


@pytest.mark.parametrize("k", [1, 20, 300])
@pytest.mark.parametrize("chunk", [7, 100, 4096])
def test_the_way_of_gpus_finds_the_same(
    k: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bank, _), (queries, _) = clusters(237, 2), clusters(1500, 3)
    found, index = neighbours(bank, queries, k, chunk=chunk)
    monkeypatch.setattr(knn, "_keep_best", knn._keep_best_without_waiting)
    values, rows = neighbours(bank, queries, k, chunk=chunk)
    assert torch.equal(values, found) and torch.equal(rows, index)


@lru_cache
def sample_features() -> Tensor:
    """float32 [300, 512] of real images."""
    extents = torch.full((300, 2), 64)
    seen = evaluation_view(sample_images(300), extents, Input(32))
    backbone = build_backbone("resnet18", 32)
    return extract_features(backbone, seen.split(100), Compute(torch.device("cpu"), torch.float32))


@pytest.mark.parametrize("k", [1, 20, 237, 500])
@pytest.mark.parametrize("chunk", [7, 64, 100, 4096])
def test_features_of_images_find_what_one_product_finds(k: int, chunk: int) -> None:
    queries, bank = sample_features()[:63], sample_features()[63:]
    found, index = neighbours(bank, queries, k, chunk=chunk)
    everything = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    expected = everything.topk(min(k, 237), dim=1).values.float()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(everything.gather(1, index).float(), expected, atol=1e-6, rtol=0)
    assert (index.sort(1).values.diff(dim=1) > 0).all(), "none comes twice"
    assert (found.diff(dim=1) <= 0).all(), "the nearest first"


@pytest.mark.parametrize("order", ["rising", "falling", "all equal"])
def test_any_order_of_the_bank_will_do(order: str) -> None:
    angles = torch.linspace(0, 1.5, 600)
    bank = torch.stack([angles.cos(), angles.sin()], dim=1)
    bank = {"rising": bank.flip(0), "falling": bank, "all equal": bank[:1].expand(600, 2)}[order]
    found, index = neighbours(bank, torch.tensor([[2.0, 0.0]]), 50, chunk=96)
    torch.testing.assert_close(found[0], (bank @ torch.tensor([1.0, 0.0])).topk(50).values)
    assert len(index.unique()) == 50


def test_halves_are_compared_in_float32() -> None:
    bank, queries = clusters(80, 2)[0].half(), clusters(9, 3)[0].bfloat16()
    found, index = neighbours(bank, queries, 5)
    whole, of_whole = neighbours(bank.float(), queries.float(), 5)
    assert torch.equal(found, whole) and torch.equal(index, of_whole)


def test_memory_is_that_of_a_block() -> None:
    """All similarities at once would take 1.6 GB, and a sorted copy of them more."""
    script = """
import resource, torch
from mixco.embeddings.knn import neighbours
torch.set_num_threads(1)
bank, queries = torch.randn(200_000, 16), torch.randn(2000, 16)
neighbours(bank[:100], queries[:100], 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
neighbours(bank, queries, 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    pytest.importorskip("resource", reason="only Unix reports the peak memory of a process")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 100 * 2**20


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
