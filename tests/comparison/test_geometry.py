"""How features lie: values that are known, and neighbours without oneself."""

import math

import pytest
import torch
import torch.nn.functional as F

from mixco.comparison.geometry import alignment, nearest_others, shared, uniformity


def test_alignment() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert alignment(features, 3 * features) == pytest.approx(0, abs=1e-9)
    assert alignment(features, -features) == pytest.approx(4)
    assert alignment(torch.eye(4), torch.eye(4).roll(1, 0)) == pytest.approx(2)


def test_uniformity() -> None:
    assert uniformity(torch.ones(10, 4)) == pytest.approx(0)
    assert uniformity(torch.eye(6)) == pytest.approx(-4), "all at distance sqrt(2)"
    wide = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    narrow = wide + 5
    assert uniformity(wide) < uniformity(narrow) < 0
    unit = F.normalize(wide.double(), dim=1)
    distances = torch.cdist(unit, unit)[~torch.eye(500, dtype=torch.bool)]
    expected = math.log(float((-2 * distances**2).exp().mean()))
    assert uniformity(wide) == pytest.approx(expected, rel=1e-6)


def test_no_image_is_its_own_neighbour() -> None:
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    features[20:] = features[0]  # eleven equal images, more than k
    found, similarities = nearest_others(features, 4)
    assert found.shape == similarities.shape == (30, 4)
    assert not (found == torch.arange(30)[:, None]).any()
    unit = F.normalize(features, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    assert torch.allclose(similarities, cosines.topk(4).values, atol=1e-5)
    assert nearest_others(features[:3], 20)[0].shape == (3, 2)


def test_shared_neighbours() -> None:
    first = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    other = torch.tensor([[4, 3, 9, 8], [5, 6, 7, 8]])
    assert shared(first, other).tolist() == [0.5, 1.0]
