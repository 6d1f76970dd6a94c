"""Lists the images of a folder, with or without classes and splits."""

from pathlib import Path

from mixco.data.file_index import list_files
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.views.augment import IMAGENET_MEAN, IMAGENET_STD, Channels

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
ARRAYS = (".npy", ".npz")


def unlabelled_folder(folder: Path, cache: Path | None = None) -> ImageList:
    """The images of folder/train if there is one, else of the whole folder, for pretraining.

    cache: folder for an index of the files, which later runs read; None for none.
    """
    root = folder / "train" if (folder / "train").is_dir() else folder
    files = whole_folder(root, cache).files
    # If every image of train/ lies in a class folder, these are labels for the kNN check.
    tops = sorted({name.split("/")[0] for name in files})
    labelled = root != folder and len(tops) > 1 and all("/" in name for name in files)
    index = {top: label for label, top in enumerate(tops)}
    return ImageList(
        f"{shown(folder.resolve().name)}/pretrain",
        root,
        files,
        tuple(index[name.split("/")[0]] for name in files) if labelled else None,
        tuple(tops) if labelled else (),
    )


def whole_folder(folder: Path, cache: Path | None = None) -> ImageList:
    """All images of a folder, without labels. Raises UserError when there are none."""
    files = tuple(walk(folder, cache))
    if not files:
        raise UserError(
            f"{folder}: no image in it; expected {', '.join(EXTENSIONS + ARRAYS)} in all folders below"
        )
    return ImageList(folder.resolve().name, folder, files, None, ())


def labelled_folder(
    folder: Path,
    split: str,
    cache: Path | None = None,
    *,
    name: str | None = None,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> ImageList:
    """The split "train" or "test" of class folders.

    Raises UserError, also when the two have different classes.
    """
    layout = f"{folder}/train/<class>/... and {folder}/test/<class>/... (or val/)"
    splits = {"train": folder / "train", "test": folder / "test"}
    if not splits["test"].is_dir():
        splits["test"] = folder / "val"
    of_split: dict[str, list[str]] = {}
    classes: dict[str, set[str]] = {}
    for one, root in splits.items():
        if not root.is_dir():
            raise UserError(f"{root}: missing; evaluation needs labels, laid out as {layout}")
        files = walk(root, cache)
        loose = [f for f in files if "/" not in f]
        if loose:
            raise UserError(f"{root / loose[0]}: lies in no class folder; expected {layout}")
        if not files:
            raise UserError(f"{root}: no image in it; expected {layout}")
        of_split[one], classes[one] = files, {f.split("/")[0] for f in files}
    for one, other in (("train", "test"), ("test", "train")):
        missing = sorted(classes[one] - classes[other])
        if missing:
            raise UserError(
                f"{splits[other] / missing[0]}: no image of this class, but {splits[one]} has some; "
                "add images or remove the class from both"
            )
    names = tuple(sorted(classes["train"]))
    index = {each: label for label, each in enumerate(names)}
    files = of_split[split]
    return ImageList(
        f"{name or shown(folder.resolve().name)}/{split}",
        splits[split],
        tuple(files),
        tuple(index[f.split("/")[0]] for f in files),
        names,
        mean,
        std,
    )


def walk(root: Path, cache: Path | None = None) -> list[str]:
    """Images below root, as sorted paths with slashes (see `list_files`).

    NumPy arrays count as images only if there are no others: beside photographs they are something else.
    """
    return list_files(root, EXTENSIONS, cache) or list_files(root, ARRAYS, cache)


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not blank; `what` names it in errors. Raises UserError."""
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {what} is not text; unpack it again") from None
