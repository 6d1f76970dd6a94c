"""Maps and what is shown on them."""

import numpy as np
import pytest
import torch

from mixco.report.embedding import (
    HEIGHT,
    SCALES,
    THUMBNAIL,
    WIDTH,
    pca,
    place,
    spread_thumbnails,
    umap,
)


def test_thumbnails_do_not_overlap_at_any_scale() -> None:
    generator = np.random.default_rng(0)
    clumps = generator.normal(size=(5, 1, 2)) * 3 + generator.normal(size=(5, 200, 2))
    places = place(clumps.reshape(-1, 2).astype(np.float32))
    levels = spread_thumbnails(places, most=300, seed=0)
    shown: list[int] = []
    for scale, level in zip(SCALES, levels, strict=True):
        shown += level
        apart = np.abs(places[shown, None] - places[None, shown]).max(2)
        np.fill_diagonal(apart, np.inf)
        assert apart.min() >= THUMBNAIL / scale
    assert len(shown) == len(set(shown)) == 300
    assert len(levels[0]) > 5


def test_images_at_one_place_get_one_thumbnail() -> None:
    assert sum(map(len, spread_thumbnails(np.zeros((9, 2), np.float32), 300, 0))) == 1


def test_a_map_lies_within_its_frame() -> None:
    places = place(np.array([[0, 0], [1, 5], [3, 2]], np.float32))
    assert (places > 0).all()
    assert (places < [WIDTH, HEIGHT]).all()
    assert places[1, 1] < places[0, 1], "upwards is up"
    assert np.isfinite(place(np.ones((3, 2), np.float32))).all()


def test_pca_of_fewer_images_than_features_is_that_of_more_images() -> None:
    draws = torch.Generator().manual_seed(0)
    few = torch.randn(20, 64, generator=draws) * torch.linspace(3, 0.1, 64)
    points, share = pca(few)
    again, same = pca(few.repeat(4, 1))  # 80 images: decomposed by features
    assert np.allclose(points, again[:20], atol=1e-4)
    assert share == pytest.approx(same)


def test_pca_finds_the_plane_that_points_lie_in() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(16, 2, generator=generator)).Q.T
    inside = torch.randn(200, 2, generator=generator) * torch.tensor([5.0, 1.0])
    points, share = pca(inside @ plane + 3)
    assert share == pytest.approx(1, abs=1e-4)
    distances = torch.pdist(torch.from_numpy(points))
    assert torch.allclose(distances, torch.pdist(inside), atol=1e-3)
    assert points[:, 0].std() > points[:, 1].std()


@pytest.mark.slow
def test_umap_keeps_groups_apart() -> None:
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(3, 1, 32, generator=generator) * 4
    features = (groups + torch.randn(3, 40, 32, generator=generator)).flatten(0, 1)
    points = umap(features, seed=0)
    assert points is not None
    centres = points.reshape(3, 40, 2).mean(1)
    within = np.linalg.norm(points.reshape(3, 40, 2) - centres[:, None], axis=2).max()
    between = min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert between > within
    assert umap(features[:20], seed=0) is None, "of few images it would be a picture of noise"
