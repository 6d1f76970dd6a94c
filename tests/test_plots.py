"""Pictures are PNG files of a sensible size that show what they were given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_images import sample_images

from mixco.plots.charts import draw_comparison, draw_curves
from mixco.plots.images import draw_groups, draw_neighbours, draw_views, to_image
from mixco.plots.style import BASE, MIXED, RIGHT, SERIES, WRONG

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


def holds(picture: np.ndarray, colour: str) -> bool:
    """Whether there is a patch of about this colour, "#rrggbb"."""
    return (
        int((np.abs(picture.astype(int) - tuple(bytes.fromhex(colour[1:]))).max(2) <= 3).sum())
        > 500
    )


def test_views_and_mixed_images(tmp_path: Path) -> None:
    originals = sample_images(4)
    colours = {"#ff0000": (1.0, 0.0, 0.0), "#0000ff": (0.0, 0.0, 1.0), "#00ff00": (0.0, 1.0, 0.0)}
    q, k, mixed = (torch.tensor(c).view(1, 3, 1, 1).expand(4, 3, 64, 64) for c in colours.values())
    draw_views(tmp_path / "a.png", originals, q, k, mixed[:2], [(0, 2, 0.3), (1, 3, 0.9)])
    picture = read(tmp_path / "a.png")
    assert all(holds(picture, colour) for colour in colours)
    draw_views(tmp_path / "b.png", originals, q, k, None, [])
    plain = read(tmp_path / "b.png")
    assert plain.shape[0] < picture.shape[0]
    assert not holds(plain, "#00ff00")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("checked", [True, False])
def test_curves_with_and_without_knn(tmp_path: Path, checked: bool) -> None:
    mixed = [{**r, "knn": 50.0 + r["epoch"]} if checked else r for r in RECORDS]
    base = [{k: v for k, v in r.items() if k != "mixed"} for r in RECORDS]
    draw_curves(tmp_path / "curves.png", {"simclr": base, "simclr+mixco": mixed})
    assert (read(tmp_path / "curves.png").shape[1] > 1000) == checked


def test_each_run_has_its_own_colour(tmp_path: Path) -> None:
    """Also the second one with mixing; the legend is below the curves and takes none of their room."""
    heights = []
    for names in (["simclr+mixco"], ["simclr", "simclr+mixco", "init+simclr+mixco"]):
        runs = {
            name: [{**record, "clean": record["clean"] - i} for record in RECORDS]
            for i, name in enumerate(names)
        }
        draw_curves(tmp_path / "curves.png", runs)
        picture = read(tmp_path / "curves.png")
        assert [holds(picture, colour) for colour in (MIXED, BASE, SERIES[2])] == [
            True,
            *[len(names) == 3] * 2,
        ]
        heights.append(picture.shape[0])
    assert heights[1] > heights[0]


def test_neighbours_are_framed_by_their_class(tmp_path: Path) -> None:
    queries = sample_images(2)
    neighbours = sample_images(6).view(2, 3, 3, 64, 64)
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
        assert holds(picture, RIGHT) == correct
        assert holds(picture, WRONG) != correct


def test_groups_share_a_line_where_they_fit(tmp_path: Path) -> None:
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 64, 64)
    heights = []
    for sizes in ([2, 2, 2, 2], [2, 2, 2, 2, 2], [8, 2, 8]):
        groups = [[red, *sample_images(8)[: size - 1]] for size in sizes]
        captions = [[("a name of an image that is long.jpg", "0.9990")] * size for size in sizes]
        draw_groups(tmp_path / "g.png", groups, captions, "groups")
        picture = read(tmp_path / "g.png")
        assert holds(picture, "#ff0000"), "no ground lies over the images"
        heights.append(picture.shape[0])
    assert heights[0] < heights[1] < heights[2]


def test_comparison(tmp_path: Path) -> None:
    results = {
        name: {"knn": {"top1": value}, "linear": {"top1": value + 5}}
        for name, value in {"random": 50.0, "moco": 60.0, "moco+mixco": 65.0}.items()
    }
    draw_comparison(tmp_path / "c.png", results)
    assert holds(read(tmp_path / "c.png"), MIXED)


def test_an_image_of_any_number_of_channels() -> None:
    bytes_ = torch.tensor([10, 20, 30, 40], dtype=torch.uint8).view(4, 1, 1)
    for channels, expected in ((1, (10, 10, 10)), (2, (15, 15, 15)), (4, (10, 20, 30))):
        for picture in (bytes_[:channels], bytes_[:channels] / 255):
            assert to_image(picture).getpixel((0, 0)) == expected
