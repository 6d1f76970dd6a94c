"""CIFAR-10 and CIFAR-100 in their public versions (Krizhevsky 2009), or as class folders.

An image is 3,072 bytes: 32 x 32 red, then green, then blue. The binary version has a record per image:
its label (in CIFAR-100 the coarse one, then the fine one), then the image. The Python version holds the
same in pickles. A pickle can run any code, so only the published file is read, and only NumPy arrays are
built from it.
"""

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixco.data.datasets.folders import labelled_folder, read_lines
from mixco.data.image_list import ImageList
from mixco.data.storage import Arrays
from mixco.runtime.errors import UserError
from mixco.views.augmentation import Channels

PICTURE = 3 * 32 * 32


@dataclass(frozen=True)
class Batch:
    """One file of images."""

    file: str
    """Its name in the Python version; the binary version adds .bin."""
    pictures: int
    md5: str
    """Of the file in the Python version, as in torchvision's datasets."""


@dataclass(frozen=True)
class Cifar:
    """How the two CIFAR sets differ."""

    name: str
    binary: str
    python: str
    """The folders of the two public versions."""
    train: tuple[Batch, ...]
    test: tuple[Batch, ...]
    classes: int
    label_bytes: int
    """Before each image of the binary version; the last one is the class."""
    label_key: str
    """In the pickles."""
    class_names: str
    """File of the class names in the binary version."""
    meta: Batch
    """File of the class names in the Python version."""
    meta_key: str
    mean: Channels
    std: Channels
    """Of the 50,000 training images."""


CIFAR10 = Cifar(
    name="cifar10",
    binary="cifar-10-batches-bin",
    python="cifar-10-batches-py",
    train=(
        Batch("data_batch_1", 10_000, "c99cafc152244af753f735de768cd75f"),
        Batch("data_batch_2", 10_000, "d4bba439e000b95fd0a9bffe97cbabec"),
        Batch("data_batch_3", 10_000, "54ebc095f3ab1f0389bbae665268c751"),
        Batch("data_batch_4", 10_000, "634d18415352ddfa80567beed471001a"),
        Batch("data_batch_5", 10_000, "482c414d41f54cd18b22e5b47cb7c3cb"),
    ),
    test=(Batch("test_batch", 10_000, "40351d587109b95175f43aff81a1287e"),),
    classes=10,
    label_bytes=1,
    label_key="labels",
    class_names="batches.meta.txt",
    meta=Batch("batches.meta", 0, "5ff9c542aee3614f3951f8cda6e48888"),
    meta_key="label_names",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
CIFAR100 = Cifar(
    name="cifar100",
    binary="cifar-100-binary",
    python="cifar-100-python",
    train=(Batch("train", 50_000, "16019d7e3df5f24257cddd939b257f8d"),),
    test=(Batch("test", 10_000, "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
    classes=100,
    label_bytes=2,
    label_key="fine_labels",
    class_names="fine_label_names.txt",
    meta=Batch("meta", 0, "7973b15100ade9c7d40fb424638fde48"),
    meta_key="fine_label_names",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


def list_cifar10(root: Path, split: str, cache: Path | None = None) -> ImageList:
    return list_cifar(CIFAR10, root, split, cache)


def list_cifar100(root: Path, split: str, cache: Path | None = None) -> ImageList:
    return list_cifar(CIFAR100, root, split, cache)


def list_cifar(cifar: Cifar, root: Path, split: str, cache: Path | None = None) -> ImageList:
    """The images of "train" or "test" below root: the binary version, else Python's, else folders.

    Raises UserError that names the file, what was expected and what to do.
    """
    batches = cifar.train if split == "train" else cifar.test
    for folder, suffix, load in (
        (cifar.binary, ".bin", _binary),
        (cifar.python, "", _python),
    ):
        for place in (root / folder, root):
            if (place.name == folder and place.is_dir()) or _any(place, cifar, suffix):
                return _list(cifar, place, split, batches, *load(cifar, place, batches))
    if (root / "train").is_dir():
        return labelled_folder(root, split, cache, name=cifar.name, mean=cifar.mean, std=cifar.std)
    raise UserError(
        f"{root}: no {cifar.name} in it; expected {cifar.binary}, {cifar.python}, or train/<class>/ "
        f"and test/<class>/; get it by: mixco download {cifar.name} --data-path {root}"
    )


Loaded = tuple[tuple[Path, ...], tuple[NDArray[np.uint8], ...], list[int], list[str]]


def _list(
    cifar: Cifar,
    place: Path,
    split: str,
    batches: tuple[Batch, ...],
    paths: tuple[Path, ...],
    parts: tuple[NDArray[np.uint8], ...],
    labels: list[int],
    classes: list[str],
) -> ImageList:
    if len(classes) != cifar.classes or len(set(classes)) != cifar.classes:
        raise UserError(
            f"{place}: {len(set(classes))} names of classes instead of {cifar.classes}; "
            f"unpack {cifar.name} again"
        )
    wrong = [label for label in labels if not 0 <= label < cifar.classes]
    absent = set(range(cifar.classes)) - set(labels)
    if wrong or absent:
        reason = (
            f"{wrong[0]} is the label of an image, expected 0 to {cifar.classes - 1}"
            if wrong
            else f"no image of class {classes[min(absent)]}"
        )
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{place}: {reason} ({names}); unpack {cifar.name} again")
    return ImageList(
        f"{cifar.name}/{split}",
        place,
        tuple(f"{b.file}:{i}" for b in batches for i in range(b.pictures)),
        tuple(labels),
        tuple(classes),
        cifar.mean,
        cifar.std,
        Arrays(paths, parts),
    )


def _any(place: Path, cifar: Cifar, suffix: str) -> bool:
    return any((place / f"{b.file}{suffix}").is_file() for b in (*cifar.train, *cifar.test))


def _binary(cifar: Cifar, place: Path, batches: tuple[Batch, ...]) -> Loaded:
    paths, parts, labels = [], [], []
    for batch in batches:
        path = place / f"{batch.file}.bin"
        record = cifar.label_bytes + PICTURE
        size = _size(path, cifar)
        if size != batch.pictures * record:
            raise UserError(
                f"{path}: {size:,} bytes instead of {batch.pictures * record:,}; "
                f"unpack {cifar.name} again"
            )
        records = np.memmap(path, np.uint8, "r", shape=(batch.pictures, record))
        labels += records[:, cifar.label_bytes - 1].tolist()
        paths.append(path)
        parts.append(_pictures(records[:, cifar.label_bytes :]))
    classes = read_lines(place / cifar.class_names, "the list of classes")
    return tuple(paths), tuple(parts), labels, classes


def _python(cifar: Cifar, place: Path, batches: tuple[Batch, ...]) -> Loaded:
    paths, parts, labels = [], [], []
    for batch in batches:
        content = _published_pickle(place / batch.file, batch.md5, cifar)
        paths.append(place / batch.file)
        parts.append(_pictures(content["data"]))
        labels += content[cifar.label_key]
    meta = _published_pickle(place / cifar.meta.file, cifar.meta.md5, cifar)
    return tuple(paths), tuple(parts), labels, meta[cifar.meta_key]


def _pictures(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, 3072] -> [N, 32, 32, 3], a view."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _size(path: Path, cifar: Cifar) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); unpack {cifar.name} again"
        ) from None


def _published_pickle(path: Path, md5: str, cifar: Cifar) -> Any:
    _size(path, cifar)
    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{path}: not the published file (md5 {found} instead of {md5}), and a pickle of unknown "
            f"origin is not opened; unpack {cifar.name} again, or take its binary version"
        )
    return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()


class _ArraysOnly(pickle.Unpickler):
    """Builds numbers, strings, lists and NumPy arrays only, so nothing else can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            # How NumPy built arrays in 2009; the arguments are always (ndarray, (0,), b"b").
            return lambda *_: np.ndarray((0,), np.uint8)
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            # In these files the flags are integers, which NumPy no longer takes.
            return lambda kind, align, copy: np.dtype(kind, bool(align), bool(copy))
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a pickle of CIFAR")
