"""The named data sets, and the images of a data set or of a folder.

A new set is a function that lists its images, and a line in DATASETS. The table imports no module of
a set before it is asked for, so that its names cost nothing.
"""

import difflib
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

from mixco.data.datasets import archives
from mixco.data.datasets.archives import Archive
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

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


Data = str | tuple[str, ...]
"""What --data takes: a name, or one or several places."""


class LabelSource(NamedTuple):
    """Where the labels and the splits of your own images are, unless in the usual places."""

    table: Path | None = None
    """A CSV, TSV or Parquet file with a row for each image (see tables.py)."""
    path_column: str | None = None
    label_column: str | None = None
    """A column of the table; without a table, the column or key in shards that has the labels."""
    split_column: str | None = None

    @property
    def in_shards(self) -> str | None:
        """The label column of shards; None for the usual ones."""
        return None if self.table else self.label_column

    def over(self, other: "LabelSource") -> "LabelSource":
        """These columns where they are given, else those of the other. A table replaces the other whole,
        because its columns are its own."""
        if self.table is not None:
            return self
        return LabelSource(
            other.table,
            self.path_column or other.path_column,
            self.label_column or other.label_column,
            self.split_column or other.split_column,
        )


USUAL = LabelSource()


class Wanted(NamedTuple):
    """Which of your own images are to be listed."""

    split: str
    """"pretrain", "train", "test" or "all"."""
    labelled: bool = True
    """Must the images of "train" and "test" have labels?"""
    labels: LabelSource = USUAL
    train_folder: str | None = None
    """Another name of the train split; None for the usual ones."""
    test_folder: str | None = None


class Where(NamedTuple):
    """Images, as `list_images` takes them."""

    data: Data
    data_path: Path | None = None
    labels: LabelSource = USUAL

    def images(self, split: str, cache: Path | None = None, **how: Any) -> "ImageList":
        """`list_images` of them."""
        return list_images(self.data, self.data_path, split, cache, labels=self.labels, **how)

    def settings(self) -> dict[str, Any]:
        """The settings that give them, by their names in every command."""
        table, path_column, label_column, split_column = self.labels
        return {
            "data": self.data,
            "data_path": self.data_path,
            "labels_from": table,
            "path_column": path_column,
            "label_column": label_column,
            "split_column": split_column,
        }


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
    data: Data,
    data_path: Path | None,
    split: str,
    cache: Path | None = None,
    *,
    labelled: bool = True,
    labels: LabelSource = USUAL,
    train_folder: str | None = None,
    test_folder: str | None = None,
) -> "ImageList":
    """The images of a split: "pretrain", "train", "test", or "all" of your own images.

    data: a name of DATASETS; or a set of the Hugging Face hub (see `list_hub`); or one or several
        folders, shards (.tar, .parquet), patterns of such (shards/train-*.tar, train-{0000..0099}.tar),
        or text files that list such (see `list_places`).
    data_path: where a named set lies.
    cache: folder for an index of the files, which later runs read; None for none.
    labelled: must your own "train" and "test" have labels? Those of named sets always have.
    labels: where the labels of your own images are.
    train_folder, test_folder: other names of the two splits of your own images.

    "pretrain" is what may be used without labels: the train split, with the unlabelled images of
    STL-10, or all images where there are no splits. It keeps the labels that there are, for checks on
    held-out images.

    Raises UserError that names the file, what was expected and what to do.
    """
    if not (data and all(text.strip() for text in places_in(data))):
        raise UserError(
            "--data is empty or not given: give a folder of images or the name of a data set; --data "
            "sample is the one that comes with mixco"
        )
    _refuse_unused(labels, train_folder or test_folder)
    if isinstance(data, str) and (named := DATASETS.get(data)):
        if labels != USUAL:
            raise UserError(
                "--labels-from and --label-column are for images of your own; leave them out with "
                f"--data {data}, whose labels are known"
            )
        if train_folder or test_folder:
            raise UserError(
                "--train-folder and --test-folder are for folders of your own; leave them out with "
                f"--data {data}, whose splits are known"
            )
        if named.needs_path and data_path is None:
            raise UserError(
                f"--data {data} needs --data-path, the folder that it lies in or is to lie in; "
                "docs/your-data.md tells how to get each set, and how it is laid out"
            )
        if split == "all":
            split = "pretrain"
        if split == "pretrain" and not named.unlabelled:
            split = "train"
        images: ImageList = resolve_name(named.list_images)(data_path, split, cache)
        return images

    if is_hub(data):
        from mixco.data.datasets.hub_images import list_hub as listed
    else:
        from mixco.data.datasets.places import list_places as listed
    wanted = Wanted(split, labelled, labels, train_folder, test_folder)
    if labels.table is None or split == "all":
        return listed(set_name(data), data, wanted, cache)
    from mixco.data.datasets.tables import apply_table

    everything = listed(set_name(data), data, wanted._replace(split="all"), cache)
    return apply_table(everything, labels, split, labelled=labelled)


def _refuse_unused(labels: LabelSource, folder: str | None) -> None:
    """Raises UserError for what would have no meaning."""
    column = labels.path_column or labels.split_column
    if column and labels.table is None:
        option = "--path-column" if labels.path_column else "--split-column"
        raise UserError(
            f"{option} {column} is a column of a table; give the table by --labels-from"
        )
    if folder and labels.table is not None:
        raise UserError(
            "--train-folder and --test-folder are for folders that are splits; with --labels-from the "
            "table says the split of each image, in --split-column"
        )


def places_in(data: Data) -> tuple[str, ...]:
    return (data,) if isinstance(data, str) else data


def is_hub(data: Data) -> bool:
    """Is it a data set of the hub, "hf:..."? A file or folder of this name comes first."""
    return isinstance(data, str) and data.startswith("hf:") and not Path(data).exists()


def set_name(data: Data) -> str:
    """What images are called: by a data set's name, or by folders, files or patterns of your own."""
    names = sorted(_own_name(text) for text in places_in(data))
    return "+".join(names) if len(names) < 4 else f"{names[0]}+{len(names) - 1}"


def _own_name(text: str) -> str:
    path = Path(text)
    if path.is_dir():
        return shown(path.resolve().name)
    if is_hub(text):
        return shown(re.split("[@:]", text.removeprefix("hf:"))[0].replace("/", "--"))
    if text in DATASETS:
        return text
    start = re.split(r"[*?{\[]", path.name.removesuffix(path.suffix))[0].rstrip("-_.")
    return shown(start or path.absolute().parent.name)


def suggestion(name: str) -> str:
    """What may have been meant by a name that no data set has."""
    near = difflib.get_close_matches(name, DATASETS, n=1)
    return f"did you mean {near[0]}?" if near else f"known sets are {', '.join(DATASETS)}"
