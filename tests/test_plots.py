"""The pictures are PNG files of a sensible size that show what they were given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import sample_images

from mixco.plots import draw_comparison, draw_curves, draw_neighbours, draw_views

RECORDS = [
    {"epoch": e, "loss": 9 - e / 5, "clean": 4 - e / 10, "mixed": 5 - e / 10} for e in range(1, 11)
]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        assert file.format == "PNG"
        pixels = np.asarray(file.convert("RGB"))
    assert 300 < pixels.shape[0] < 2500
    assert 500 < pixels.shape[1] < 2500
    return pixels


def holds(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    """Is there a patch of about this colour?"""
    return int((np.abs(picture.astype(int) - colour).max(2) <= 3).sum()) > 500


def test_views_and_mixtures(tmp_path: Path) -> None:
    originals = sample_images(4)
    colours = {"q": (1.0, 0.0, 0.0), "k": (0.0, 0.0, 1.0), "mixed": (0.0, 1.0, 0.0)}
    q, k, mixed = (torch.tensor(c).view(1, 3, 1, 1).expand(4, 3, 64, 64) for c in colours.values())
    draw_views(tmp_path / "a.png", originals, q, k, mixed[:2], [(0, 2, 0.3), (1, 3, 0.9)])
    picture = read(tmp_path / "a.png")
    assert all(holds(picture, tuple(int(255 * v) for v in c)) for c in colours.values())
    draw_views(tmp_path / "b.png", originals, q, k, None, [])
    plain = read(tmp_path / "b.png")
    assert plain.shape[0] < picture.shape[0]
    assert not holds(plain, (0, 255, 0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("checked", [True, False])
def test_curves_with_and_without_knn(tmp_path: Path, checked: bool) -> None:
    mixed = [{**r, "knn": 50.0 + r["epoch"]} if checked else r for r in RECORDS]
    base = [{k: v for k, v in r.items() if k != "mixed"} for r in RECORDS]
    draw_curves(tmp_path / "curves.png", {"simclr": base, "simclr+mixco": mixed})
    assert (read(tmp_path / "curves.png").shape[1] > 1000) == checked


def test_neighbours_are_framed_by_their_class(tmp_path: Path) -> None:
    queries = sample_images(2)
    neighbours = sample_images(6).view(2, 3, 3, 64, 64)
    green, orange = (0, 158, 115), (213, 94, 0)
    for correct in (True, False):
        draw_neighbours(
            tmp_path / "n.png",
            queries,
            neighbours,
            torch.rand(2, 3, generator=torch.Generator().manual_seed(0)),
            torch.full((2, 3), correct),
            ["River", "HerbaceousVegetation"],
            "an encoder",
        )
        picture = read(tmp_path / "n.png")
        assert holds(picture, green) == correct
        assert holds(picture, orange) != correct


def test_comparison(tmp_path: Path) -> None:
    results = {
        name: {"knn": {"top1": value}, "linear": {"top1": value + 5}}
        for name, value in {"random": 50.0, "moco": 60.0, "moco+mixco": 65.0}.items()
    }
    draw_comparison(tmp_path / "c.png", results)
    assert holds(read(tmp_path / "c.png"), (0, 114, 178))
