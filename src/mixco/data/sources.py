"""Which files a data set consists of, and what their labels are; nothing is decoded here."""

import csv
import difflib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from mixco.data.index import list_files
from mixco.data.views import IMAGENET_MEAN, IMAGENET_STD, Channels
from mixco.errors import UserError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
NAMED = ("sample", "tiny-imagenet")

# Of the sample's 1,600 training images.
SAMPLE_MEAN: Channels = (0.3381, 0.3766, 0.4041)
SAMPLE_STD: Channels = (0.1966, 0.1322, 0.1139)


@dataclass(frozen=True)
class ImageList:
    """The files of one split, before anything is decoded."""

    name: str
    """"sample/train", "tiny-imagenet/test", "photos/pretrain" """
    root: Path
    """A folder, or the sample's zip file."""
    files: Sequence[str]
    """Paths below root (or members of the zip), with slashes, sorted."""
    labels: tuple[int, ...] | None
    """Indices into `classes`, one a file; None where there are none."""
    classes: tuple[str, ...]
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    """For normalisation, of pixels in [0, 1]."""

    def read(self, index: int) -> bytes:
        """The bytes of a file. Raises OSError."""
        if self.root.suffix == ".zip":
            return _open_zip(self.root).read(self.files[index])
        return (self.root / self.files[index]).read_bytes()


@lru_cache(maxsize=4)
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def list_images(
    data: str, data_path: Path | None, split: str, cache: Path | None = None
) -> ImageList:
    """The images of a split: "pretrain", "train" or "test".

    data: "sample", "tiny-imagenet" (below `data_path`), or a folder.
    "pretrain" is what may be seen without labels: the train split of a named set; of a folder its
    train/, or all of it. Where that split has labels they come along, for checks on held-out images.
    "train" and "test" always have labels.
    cache: where an index of a folder's files is kept for later runs; None for none.

    Raises UserError that names the file, what was expected and what to do.
    """
    if data == "sample":
        return _sample("test" if split == "test" else "train")
    if data == "tiny-imagenet":
        return _tiny_imagenet(data_path, "test" if split == "test" else "train")
    folder = Path(data).expanduser()
    if not folder.is_dir():
        near = difflib.get_close_matches(data, NAMED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known sets are {', '.join(NAMED)}"
        raise UserError(f"--data {data}: neither a folder nor a known data set; {hint}")
    if split == "pretrain":
        return _unlabelled_folder(folder, cache)
    return _labelled_folder(folder, split, cache)


def _sample(split: str) -> ImageList:
    path = Path(str(resources.files("mixco").joinpath("sample", "eurosat-demo.zip")))
    archive = _open_zip(path)
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


def _tiny_imagenet(data_path: Path | None, split: str) -> ImageList:
    """The public layout: train/<wnid>/images, val/images with val_annotations.txt, wnids.txt.

    The public test split has no labels, so "test" is val. When only some classes lie under train/,
    the set is those classes, and val is cut down to them.
    """
    if data_path is None:
        raise UserError("--data tiny-imagenet needs --data-path, the folder of tiny-imagenet-200")
    root = data_path.expanduser()
    if (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    known = _lines(root / "wnids.txt", "the list of classes of tiny-imagenet-200")
    train = root / "train"
    if not train.is_dir():
        raise UserError(f"{train}: missing; expected tiny-imagenet-200's folder of classes")
    present = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
    strange = sorted(set(present) - set(known))
    if strange:
        raise UserError(f"{train / strange[0]}: this class is not in wnids.txt; remove or add it")
    classes = tuple(present)
    if split == "train":
        files, labels = [], []
        for label, wnid in enumerate(classes):
            of_class = list_files(train / wnid / "images", EXTENSIONS, None)
            if not of_class:
                raise UserError(f"{train / wnid / 'images'}: no image of this class; unpack again")
            files += [f"train/{wnid}/images/{name}" for name in of_class]
            labels += [label] * len(of_class)
    else:
        files, labels = _tiny_imagenet_val(root, known, classes)
    if not files:
        raise UserError(f"{root}: no image in its {split} split; unpack tiny-imagenet-200 again")
    return ImageList(f"tiny-imagenet/{split}", root, tuple(files), tuple(labels), classes)


def _tiny_imagenet_val(
    root: Path, known: list[str], classes: tuple[str, ...]
) -> tuple[list[str], list[int]]:
    path = root / "val" / "val_annotations.txt"
    annotated: dict[str, str] = {}
    for number, line in enumerate(_lines(path, "the labels of val"), 1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in known:
            raise UserError(
                f"{path}, line {number}: expected a file and one of wnids.txt's classes with a tab "
                f"between them, found {line[:60]!r}; unpack tiny-imagenet-200 again"
            )
        annotated[name] = rest[0]
    there = set(list_files(root / "val" / "images", EXTENSIONS, None))
    for missing, message in (
        (annotated.keys() - there, "val_annotations.txt names it, but it is missing"),
        (there - annotated.keys(), "val_annotations.txt does not name it"),
    ):
        if missing:
            example = root / "val" / "images" / sorted(missing)[0]
            raise UserError(f"{example}: {message}; unpack tiny-imagenet-200 again")
    index = {wnid: label for label, wnid in enumerate(classes)}
    files = [name for name in sorted(annotated) if annotated[name] in index]
    absent = set(classes) - {annotated[name] for name in files}
    if absent:
        raise UserError(f"{path}: no image of class {sorted(absent)[0]}; unpack it again")
    return [f"val/images/{name}" for name in files], [index[annotated[name]] for name in files]


def _unlabelled_folder(folder: Path, cache: Path | None) -> ImageList:
    root = folder / "train" if (folder / "train").is_dir() else folder
    files = tuple(list_files(root, EXTENSIONS, cache))
    if not files:
        raise UserError(
            f"{root}: no image in it; looked for {', '.join(EXTENSIONS)} in all folders below"
        )
    # A train folder whose every image lies in a class folder can be checked by its labels.
    tops = sorted({name.split("/")[0] for name in files})
    index = {top: label for label, top in enumerate(tops)}
    labelled = root != folder and len(tops) > 1 and all("/" in name for name in files)
    return ImageList(
        f"{folder.resolve().name}/pretrain",
        root,
        files,
        tuple(index[name.split("/")[0]] for name in files) if labelled else None,
        tuple(tops) if labelled else (),
    )


def _labelled_folder(folder: Path, split: str, cache: Path | None) -> ImageList:
    layout = f"{folder}/train/<class>/... and {folder}/test/<class>/... (or val/)"
    splits = {"train": folder / "train", "test": folder / "test"}
    if not splits["test"].is_dir():
        splits["test"] = folder / "val"
    of_split: dict[str, list[str]] = {}
    classes: dict[str, set[str]] = {}
    for name, root in splits.items():
        if not root.is_dir():
            raise UserError(f"{root}: missing; evaluation needs labels, laid out as {layout}")
        files = list_files(root, EXTENSIONS, cache)
        loose = [f for f in files if "/" not in f]
        if loose:
            raise UserError(f"{root / loose[0]}: lies in no class folder; expected {layout}")
        if not files:
            raise UserError(f"{root}: no image in it; expected {layout}")
        of_split[name], classes[name] = files, {f.split("/")[0] for f in files}
    for name, other in (("train", "test"), ("test", "train")):
        missing = sorted(classes[name] - classes[other])
        if missing:
            raise UserError(
                f"{splits[other] / missing[0]}: no image of this class, but {splits[name]} has some; "
                "add images or remove the class from both"
            )
    names = tuple(sorted(classes["train"]))
    index = {name: label for label, name in enumerate(names)}
    files = of_split[split]
    return ImageList(
        f"{folder.resolve().name}/{split}",
        splits[split],
        tuple(files),
        tuple(index[f.split("/")[0]] for f in files),
        names,
    )


def _lines(path: Path, what: str) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {what} is not text; unpack it again") from None
