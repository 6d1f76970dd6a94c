"""Lists the images of a folder, with or without classes and splits."""

import dataclasses
import unicodedata
from collections import Counter
from pathlib import Path

from mixco.data.file_index import Listing, list_files
from mixco.data.formats import ARRAYS, HEIF, endings
from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, Channels

TRAIN = "train"
TESTS = ("test", "val", "valid", "validation")  # a folder beside train/ that makes it a split


def unlabelled_folder(folder: Path, cache: Path | None = None) -> ImageList:
    """The images of a folder for pretraining: those of its train/, if that is a split, else all.

    train/ is a split where a folder of test images lies beside it, or nothing else; else it may be a
    class of that name. The list's notes say what is left aside.

    cache: folder for an index of the files, which later runs read; None for none.

    Raises UserError when there are none.
    """
    listing = _list_folder(folder, cache)
    below = f"{TRAIN}/"
    train = [name for name in listing.files if name.startswith(below)]
    others = Counter(_place(name) for name in listing.files if not name.startswith(below))
    notes = []
    root, part, names = folder, "", listing.files
    if train and (not others or any((folder / name).is_dir() for name in TESTS)):
        root, part = folder / TRAIN, TRAIN
        names = [name.removeprefix(below) for name in train]
        if others:
            notes.append(f"{TRAIN}/ is used; left aside: {_in_words(others)}")
    elif train:
        notes.append(
            f"{TRAIN}/ is taken for one folder among others, since no {TESTS[0]}/ or {TESTS[1]}/ lies "
            f"beside it: all images are used; give --data {folder / TRAIN} to use it alone"
        )
    files, more = _images(names, listing.left_aside(part))
    _refuse_none(root, files, more)
    # If every image of train/ lies in a class folder, these are labels for the kNN check.
    tops = sorted({name.split("/")[0] for name in files})
    labelled = bool(part) and len(tops) > 1 and all("/" in name for name in files)
    index = {top: label for label, top in enumerate(tops)}
    return ImageList(
        f"{shown(folder.resolve().name)}/pretrain",
        root,
        tuple(files),
        tuple(index[name.split("/")[0]] for name in files) if labelled else None,
        tuple(tops) if labelled else (),
        notes=(*notes, *more),
    )


def whole_folder(folder: Path, cache: Path | None = None) -> ImageList:
    """All images of a folder, without labels. Raises UserError when there are none."""
    listing = _list_folder(folder, cache)
    files, notes = _images(listing.files, listing.left_aside())
    _refuse_none(folder, files, notes)
    return ImageList(folder.resolve().name, folder, tuple(files), None, (), notes=notes)


def split_folder(folder: Path, split: str, cache: Path | None = None) -> ImageList:
    """All images of the split "train" or "test" (or val/), without labels, in class folders or not.

    Raises UserError when there is no such folder, or no image in it.
    """
    root = folder / split
    if split == "test" and not root.is_dir():
        root = folder / "val"
    if not root.is_dir():
        raise UserError(
            f"{folder / split}: missing{_folders_of(folder)}; give the folder that has it, or that of "
            "the images itself"
        )
    found = whole_folder(root, cache)
    return dataclasses.replace(found, name=f"{shown(folder.resolve().name)}/{root.name}")


def labelled_folder(
    folder: Path,
    split: str,
    cache: Path | None = None,
    *,
    name: str | None = None,
    train_folder: str | None = None,
    test_folder: str | None = None,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> ImageList:
    """The split "train" or "test" of class folders.

    name: of a named set; its splits are called train and test. Those of other folders are called by
        their folders, "photos/val".
    train_folder, test_folder: their folders; by default train/, and test/ or, where that is missing or
        has no class folders, val/.

    Raises UserError, also when the two have different classes.
    """
    roots = {
        "train": folder / (train_folder or "train"),
        "test": folder / (test_folder or _test_folder(folder, cache)),
    }
    layout = f"{roots['train']}/<class>/... and {roots['test']}/<class>/..."
    other = "" if test_folder else " (or val/)"
    options = "" if name else f"{_folders_of(folder)}; --train-folder and --test-folder name others"
    of_split: dict[str, list[str]] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for one, root in roots.items():
        if not root.is_dir():
            raise UserError(
                f"{root}: missing; evaluation needs labels, laid out as {layout}{other}{options}"
            )
        files, notes[one] = images_below(root, cache)
        loose = [f for f in files if "/" not in f]
        if loose:
            raise UserError(
                f"{root / loose[0]}: lies in no class folder; expected {layout}{other}{options}"
            )
        if not files:
            raise UserError(f"{root}: no image in it; expected {layout}{other}{options}")
        of_split[one] = files
    names = _common_classes(roots, of_split)
    if test_folder is None and roots["test"] != folder / "test" and (folder / "test").is_dir():
        notes["test"] += (
            f"{folder / 'test'} has no class folders; {roots['test']} is the test split",
        )
    index = {each: label for label, each in enumerate(names)}
    files, root = of_split[split], roots[split]
    return ImageList(
        f"{name}/{split}" if name else shown(f"{folder.resolve().name}/{root.name}"),
        root,
        tuple(files),
        tuple(index[f.split("/")[0]] for f in files),
        names,
        mean,
        std,
        notes=notes[split],
    )


def _test_folder(folder: Path, cache: Path | None) -> str:
    """ "test", or "val" where test/ has no labels, as ImageNet and Kaggle give them, or is missing."""
    labelled = any("/" in file for file in walk(folder / "test", cache))
    return "val" if not labelled and (folder / "val").is_dir() else "test"


def _folders_of(folder: Path) -> str:
    """The folders that are there, in words."""
    there = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not there:
        return ", and there is no folder in it"
    return f"; there are {', '.join(map(shown, there[:8]))}{', ...' if len(there) > 8 else ''}"


def _common_classes(roots: dict[str, Path], of_split: dict[str, list[str]]) -> tuple[str, ...]:
    """The classes of both splits, sorted. Raises UserError when one has more than the other."""
    classes = {one: {f.split("/")[0] for f in files} for one, files in of_split.items()}
    for one, other in (("train", "test"), ("test", "train")):
        missing = sorted(classes[one] - classes[other])
        if not missing:
            continue
        more = sorted(classes[other] - classes[one])
        if alike := [name for name in more if plain(name) == plain(missing[0])]:
            raise UserError(
                f"{roots[one]} has the class {missing[0]!a} and {roots[other]} has "
                f"{alike[0]!a}, which look alike but are two names; rename one of the two folders "
                "to the name of the other"
            )
        raise UserError(
            f"{roots[other] / missing[0]}: no image of this class, but {roots[one]} has some; "
            "add images or remove the class from both"
        )
    return tuple(sorted(classes["train"]))


def plain(name: str) -> str:
    """What a person sees of a name: without case, spaces and invisible characters, in one encoding."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    hidden = ("Cc", "Cf")
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in hidden)


def walk(root: Path, cache: Path | None = None) -> list[str]:
    """Images below root, as sorted paths with slashes."""
    return images_below(root, cache)[0]


def images_below(root: Path, cache: Path | None = None) -> tuple[list[str], tuple[str, ...]]:
    """Images below root, as sorted paths with slashes, and notes on what is left aside."""
    listing = _list_folder(root, cache)
    return _images(listing.files, listing.left_aside())


def _list_folder(folder: Path, cache: Path | None) -> Listing:
    return list_files(folder, (*endings(), *ARRAYS), cache)


def _images(files: list[str], aside: Counter[str]) -> tuple[list[str], tuple[str, ...]]:
    """The images among the files, and notes on what is left aside.

    NumPy arrays are images only if there are no others: beside photographs they are something else.
    """
    arrays = [name for name in files if name.lower().endswith(ARRAYS)]
    if arrays and len(arrays) < len(files):
        files = [name for name in files if not name.lower().endswith(ARRAYS)]
        aside = aside + Counter(Path(name).suffix.lower() for name in arrays)
    if not aside:
        return files, ()
    hint = "; pip install pillow-heif, to read .heic" if any(e in aside for e in HEIF) else ""
    return files, (f"left aside: {_in_words(aside)}{hint}",)


def _refuse_none(root: Path, files: list[str], notes: tuple[str, ...]) -> None:
    if not files:
        there = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"{root}: no image in it{there}; expected .jpg, .png, .tif or another of Pillow's formats, "
            f"or {' or '.join(ARRAYS)}, in any folder below"
        )


def _place(name: str) -> str:
    """Where an image lies: the first folder of its path."""
    top, slash, _ = name.partition("/")
    return f"images in {top}/" if slash else "images in no folder"


def _in_words(counts: Counter[str]) -> str:
    """ "images in test/ (20), .txt (3)", the most first; at most ten."""
    order = sorted(counts, key=lambda name: (-counts[name], name))
    words = [f"{shown(name)} ({counts[name]:,})" for name in order[:10]]
    return ", ".join(words) + (", ..." if len(order) > len(words) else "")


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not blank; `what` names it in errors. Raises UserError."""
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {what} is not text; unpack it again") from None
