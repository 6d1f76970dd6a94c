"""The named data sets, and the images of a data set or of a folder.

A new set is a function that lists its images, and a line in DATASETS. The table imports no module of
a set before it is asked for, so that its names cost nothing.
"""

import difflib
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

from mixco.data.datasets import archives
from mixco.data.datasets.archives import Archive
from mixco.runtime.errors import UserError

if TYPE_CHECKING:
    from mixco.data.image_list import ImageList


class Dataset(NamedTuple):
    """A data set that has a name."""

    list_images: str
    """Where the function is: (folder or None, split, cache or None) -> ImageList."""
    terms: str
    archive: Archive | None = None
    """What is downloaded; None where a program cannot, and the function's errors say how to get it."""
    needs_path: bool = True
    """Whether it lies below --data-path."""
    unlabelled: bool = False
    """Whether "pretrain" has more images than "train"."""


MAX_UNREADABLE = 0.01  # fraction of the images of a set that may be left out for that
IN = "mixco.data.datasets"
DATASETS = {
    "sample": Dataset(
        f"{IN}.sample:list_sample", "EuroSAT photographs, MIT licence", needs_path=False
    ),
    "cifar10": Dataset(f"{IN}.cifar:list_cifar10", archives.CIFARS_TERMS, archives.CIFAR10),
    "cifar100": Dataset(f"{IN}.cifar:list_cifar100", archives.CIFARS_TERMS, archives.CIFAR100),
    "stl10": Dataset(
        f"{IN}.stl10:list_stl10", archives.STL10S_TERMS, archives.STL10, unlabelled=True
    ),
    "tiny-imagenet": Dataset(
        f"{IN}.imagenet:list_tiny_imagenet", archives.IMAGENETS_TERMS, archives.TINY_IMAGENET
    ),
    "imagenet": Dataset(f"{IN}.imagenet:list_imagenet", archives.IMAGENETS_TERMS),
}


def list_images(
    data: str,
    data_path: Path | None,
    split: str,
    cache: Path | None = None,
    *,
    train_folder: str | None = None,
    test_folder: str | None = None,
) -> "ImageList":
    """The images of a split: "pretrain", "train" or "test".

    data: a name of DATASETS, or a folder. data_path: where a named set lies.
    cache: folder for an index of a folder's files, which later runs read; None for none.
    train_folder, test_folder: where a folder of your own has its splits; None for the usual names.

    "pretrain" is what may be used without labels: the train split of a named set, with the unlabelled
    images of STL-10; the train/ of a folder, or all of it. It keeps the labels that there are, for
    checks on held-out images. "train" and "test" always have labels.

    Raises UserError that names the file, what was expected and what to do.
    """
    if not data.strip():
        raise UserError(
            "--data is empty or not given: give a folder of images or the name of a data set; --data "
            "sample is the one that comes with mixco"
        )
    if named := DATASETS.get(data):
        if train_folder or test_folder:
            raise UserError(
                "--train-folder and --test-folder are for folders of your own; leave them out with "
                f"--data {data}, whose splits are known"
            )
        if named.needs_path and data_path is None:
            raise UserError(
                f"--data {data} needs --data-path, the folder that it lies in or is to lie in; "
                "docs/data.md tells how to get each set, and how it is laid out"
            )
        if split == "pretrain" and not named.unlabelled:
            split = "train"
        images: ImageList = resolve_name(named.list_images)(data_path, split, cache)
        return images

    from mixco.data.datasets.folders import labelled_folder, unlabelled_folder

    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"--data {data}: neither a folder nor a known data set; {suggestion(data)}")
    if split == "pretrain":
        return unlabelled_folder(folder, cache)
    return labelled_folder(folder, split, cache, train_folder=train_folder, test_folder=test_folder)


def suggestion(name: str) -> str:
    """What may have been meant by a name that no data set has."""
    near = difflib.get_close_matches(name, DATASETS, n=1)
    return f"did you mean {near[0]}?" if near else f"known sets are {', '.join(DATASETS)}"
