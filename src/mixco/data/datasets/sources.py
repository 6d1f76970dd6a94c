"""Which images a data set consists of, by its name or its folder, and what their labels are."""

import csv
import difflib
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from mixco.data.datasets.cifar import CIFAR10, CIFAR100, list_cifar
from mixco.data.datasets.folders import labelled_folder, unlabelled_folder
from mixco.data.datasets.imagenet import list_imagenet, list_tiny_imagenet
from mixco.data.datasets.stl10 import list_stl10
from mixco.data.image_list import ImageList as ImageList
from mixco.data.image_list import open_zip
from mixco.runtime.errors import UserError
from mixco.views.augment import Channels

# Of the sample's 1,600 training images.
SAMPLE_MEAN: Channels = (0.3381, 0.3766, 0.4041)
SAMPLE_STD: Channels = (0.1966, 0.1322, 0.1139)

# The sets that lie below --data-path; only STL-10's "pretrain" is more than its train.
BELOW_DATA_PATH: dict[str, Callable[[Path, str, Path | None], ImageList]] = {
    "cifar10": lambda root, split, cache: list_cifar(CIFAR10, root, _labelled(split), cache),
    "cifar100": lambda root, split, cache: list_cifar(CIFAR100, root, _labelled(split), cache),
    "stl10": list_stl10,
    "tiny-imagenet": lambda root, split, cache: list_tiny_imagenet(root, _labelled(split), cache),
    "imagenet": lambda root, split, cache: list_imagenet(root, _labelled(split), cache),
}
NAMED = ("sample", *BELOW_DATA_PATH)


def list_images(
    data: str, data_path: Path | None, split: str, cache: Path | None = None
) -> ImageList:
    """The images of a split: "pretrain", "train" or "test".

    data: "sample", another name (below `data_path`), or a folder.
    "pretrain" is what may be seen without labels: the train split of a named set, of STL-10 the
    unlabelled images too; of a folder its train/, or all of it. Where that split has labels they come
    along, for checks on held-out images. "train" and "test" always have labels.
    cache: where an index of a folder's files is kept for later runs; None for none.

    Raises UserError that names the file, what was expected and what to do.
    """
    if data == "sample":
        return _sample(_labelled(split))
    if data in BELOW_DATA_PATH:
        if data_path is None:
            raise UserError(
                f"--data {data} needs --data-path, the folder that it lies in or is to lie in; "
                "docs/data.md tells how each set is got and laid out"
            )
        return BELOW_DATA_PATH[data](data_path.expanduser(), split, cache)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        near = difflib.get_close_matches(data, NAMED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known sets are {', '.join(NAMED)}"
        raise UserError(f"--data {data}: neither a folder nor a known data set; {hint}")
    if split == "pretrain":
        return unlabelled_folder(folder, cache)
    return labelled_folder(folder, split, cache)


def _labelled(split: str) -> str:
    return "test" if split == "test" else "train"


def _sample(split: str) -> ImageList:
    path = Path(str(resources.files("mixco").joinpath("sample", "eurosat-demo.zip")))
    archive = open_zip(path)
    rows = list(csv.DictReader(io.StringIO(archive.read("eurosat-demo/split.csv").decode())))
    classes = tuple(sorted({row["label"] for row in rows}))
    rows = sorted((r for r in rows if r["split"] == split), key=lambda r: r["path"])
    return ImageList(
        f"sample/{split}",
        path,
        tuple(f"eurosat-demo/{row['path']}" for row in rows),
        tuple(classes.index(row["label"]) for row in rows),
        classes,
        SAMPLE_MEAN,
        SAMPLE_STD,
    )
