"""STL-10 in its public binary version (Coates, Ng and Lee 2011), or as class folders.

An image is 27,648 bytes: 96 x 96 red, then green, then blue, each column by column. Labels begin with
1. Besides 5,000 training and 8,000 test images, 100,000 without labels, from a wider distribution, are
meant for pretraining.
"""

import dataclasses
from pathlib import Path

import numpy as np

from mixco.data.datasets.folders import labelled_folder, read_lines, walk
from mixco.data.image_list import ImageList
from mixco.data.storage import Arrays
from mixco.runtime.errors import UserError
from mixco.views.augmentation import Channels

FOLDER = "stl10_binary"
IMAGES = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
PICTURE = 3 * 96 * 96
CLASSES = 10
# Of the 5,000 training images.
MEAN: Channels = (0.4467, 0.4398, 0.4066)
STD: Channels = (0.2603, 0.2566, 0.2713)


def list_stl10(root: Path, split: str, cache: Path | None = None) -> ImageList:
    """The images of "train", "test" or "pretrain" (unlabelled and train, without labels).

    Raises UserError that names the file, what was expected and what to do.
    """
    place = root / FOLDER if (root / FOLDER).is_dir() else root
    if place.name != FOLDER and not any((place / f"{s}_X.bin").is_file() for s in IMAGES):
        return _class_folders(root, split, cache)
    parts = ("unlabeled", "train") if split == "pretrain" else (split,)
    classes = read_lines(place / "class_names.txt", "the list of classes")
    if len(classes) != CLASSES:
        raise UserError(
            f"{place / 'class_names.txt'}: {len(classes)} classes instead of {CLASSES}; "
            "unpack stl10 again"
        )
    arrays = Arrays(
        tuple(place / f"{part}_X.bin" for part in parts),
        tuple(
            _map(place / f"{part}_X.bin", IMAGES[part] * PICTURE)
            .reshape(-1, 3, 96, 96)
            .transpose(0, 3, 2, 1)
            for part in parts
        ),
    )
    return ImageList(
        f"stl10/{split}",
        place,
        tuple(f"{part}_X.bin:{i}" for part in parts for i in range(IMAGES[part])),
        None if split == "pretrain" else _labels(place, split, classes),
        () if split == "pretrain" else tuple(classes),
        MEAN,
        STD,
        arrays,
    )


def _labels(place: Path, split: str, classes: list[str]) -> tuple[int, ...]:
    path = place / f"{split}_y.bin"
    numbers = _map(path, IMAGES[split]).tolist()
    wrong = [number for number in numbers if not 1 <= number <= CLASSES]
    absent = set(range(1, CLASSES + 1)) - set(numbers)
    if wrong or absent:
        reason = (
            f"{wrong[0]} is the label of an image, expected 1 to {CLASSES}"
            if wrong
            else f"no image of class {classes[min(absent) - 1]}"
        )
        raise UserError(f"{path}: {reason}; unpack stl10 again")
    return tuple(number - 1 for number in numbers)


def _map(path: Path, size: int) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); unpack stl10 again") from None
    if found != size:
        raise UserError(f"{path}: {found:,} bytes instead of {size:,}; unpack stl10 again")
    return np.memmap(path, np.uint8, "r")


def _class_folders(root: Path, split: str, cache: Path | None) -> ImageList:
    """train/<class>/, test/<class>/ and optionally unlabeled/."""
    if not (root / "train").is_dir():
        raise UserError(
            f"{root}: no stl10 in it; expected {FOLDER}, or train/<class>/ and test/<class>/; "
            f"get it by: mixco download stl10 --data-path {root}"
        )
    if split != "pretrain":
        return labelled_folder(root, split, cache, name="stl10", mean=MEAN, std=STD)
    train = labelled_folder(root, "train", cache, name="stl10", mean=MEAN, std=STD)
    unlabelled = [f"unlabeled/{name}" for name in walk(root / "unlabeled", cache)]
    if not unlabelled:
        return dataclasses.replace(train, name="stl10/pretrain")
    files = (*(f"train/{name}" for name in train.files), *unlabelled)
    return dataclasses.replace(
        train, name="stl10/pretrain", root=root, files=files, labels=None, classes=()
    )
