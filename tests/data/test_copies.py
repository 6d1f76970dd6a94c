"""Exact copies between two lists of images: all are found, and nothing else."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sample_images import sample_images, unpack_sample

from mixco.data import copies
from mixco.data.copies import exact_copies
from mixco.data.datasets import list_images
from mixco.data.datasets.folders import whole_folder
from mixco.data.images import Images
from mixco.data.packing import pack
from mixco.data.streaming import stream

HALF = (0, 0, 64, 32)  # of an image of 64 px


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """first/ has 40 photographs, one of them twice, and half of one. second/ has 20 others, and beside
    them a copy of a file, a copy as PNG, the same half, and a photograph with one pixel changed."""
    sample = unpack_sample(tmp_path / "sample", train=4, test=2)
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, split in ((first, "train"), (second, "test")):
        folder.mkdir()
        for number, file in enumerate(sorted((sample / split).rglob("*.jpg"))):
            shutil.copy(file, folder / f"{number:02}.jpg")
    shutil.copy(first / "07.jpg", first / "twice.jpg")
    shutil.copy(first / "07.jpg", second / "copy.jpg")
    picture = Image.open(first / "11.jpg")
    picture.save(second / "saved.png")
    for folder in (first, second):
        picture.crop(HALF).save(folder / "half.bmp")
    changed = picture.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(second / "changed.png")
    return first, second


def packed(folder: Path) -> Images:
    return pack(whole_folder(folder), size=64, cache=folder.parent / "cache")


def test_by_pixels_all_copies_are_found(folders: tuple[Path, Path]) -> None:
    first, second = map(packed, folders)
    found = exact_copies(first, second)
    expected = [("copy.jpg", "07.jpg"), ("half.bmp", "half.bmp"), ("saved.png", "11.jpg")]
    assert sorted(found.pairs) == expected
    assert found.compared == (42, 24)


@pytest.mark.parametrize("second_packed", [True, False])
def test_by_bytes_where_one_is_streamed(folders: tuple[Path, Path], second_packed: bool) -> None:
    first = stream(whole_folder(folders[0]), 0)
    second = packed(folders[1]) if second_packed else stream(whole_folder(folders[1]), 0)
    expected = [("copy.jpg", "07.jpg"), ("half.bmp", "half.bmp")]
    assert sorted(exact_copies(first, second).pairs) == expected


def test_only_so_many_files_are_opened(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MOST_FILES", 30)
    first, second = (stream(whole_folder(folder), 0) for folder in folders)
    assert exact_copies(first, second).compared == (30, 24)


def test_files_that_cannot_be_read_are_copies_of_nothing(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "gone.jpg").symlink_to("nowhere")
    first, second = (stream(whole_folder(folder), 0) for folder in folders)
    found = exact_copies(first, second)
    assert "gone.jpg" not in dict(found.pairs)
    assert found.compared == (42, 24)


def test_images_of_one_colour_are_told_apart_by_all_their_pixels(tmp_path: Path) -> None:
    """Their keys are equal, but for those of the copies."""
    for split in ("first", "second"):
        (tmp_path / split).mkdir()
        for number in range(20):
            page = Image.new("RGB", (48, 40), "white")
            page.putpixel((number, 3), (0, 0, 0) if split == "first" else (0, 0, 9))
            page.save(tmp_path / split / f"{number:02}.png")
    shutil.copy(tmp_path / "first" / "05.png", tmp_path / "second" / "also.png")
    found = exact_copies(packed(tmp_path / "first"), packed(tmp_path / "second"))
    assert found.pairs == [("also.png", "05.png")]


@pytest.mark.parametrize("loading", ["packed", "streamed"])
def test_the_splits_of_the_sample_share_no_image(tmp_path: Path, loading: str) -> None:
    """It lies in an archive. Compared with itself, each image is found."""
    lists = [list_images("sample", None, split) for split in ("train", "test")]
    both = [
        pack(each, size=64, cache=tmp_path) if loading == "packed" else stream(each, 0)
        for each in lists
    ]
    assert exact_copies(both[0], both[1]) == ([], (1600, 400))
    assert exact_copies(both[1], both[1]).pairs == [(name, name) for name in lists[1].files]


def test_16_bits(tmp_path: Path) -> None:
    values = sample_images(12)[:, 0].to(torch.int32) * 257
    for number, image in enumerate(values):
        folder = tmp_path / ("first" if number < 8 else "second")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image.numpy().astype("uint16")).save(folder / f"{number}.png")
    shutil.copy(tmp_path / "first" / "3.png", tmp_path / "second" / "copy.png")
    first, second = (
        pack(whole_folder(tmp_path / name), size=64, cache=tmp_path) for name in ("first", "second")
    )
    assert exact_copies(first, second).pairs == [("copy.png", "3.png")]
