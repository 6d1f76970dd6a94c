"""Subsets of labelled images: fixed lists, the same for everybody."""

import hashlib
import re
from importlib import resources
from pathlib import Path

from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

PERCENTS = {"1%": 1, "10%": 10}


def subset_name(labels: str) -> str:
    """The name in results and files: "1percent", or the name of the user's list."""
    if labels in PERCENTS:
        return f"{PERCENTS[labels]}percent"
    return re.sub(r"[^\w.]+", "-", Path(labels).stem)


def with_labels(source: ImageList, labels: str | None) -> ImageList:
    """The train split cut down to the images whose labels may be used.

    labels: None for all; "1%" or "10%" for the published subsets (`choose`); else the path of a text
        file, one of `source.files` a line.

    Raises UserError when a list names a missing image or leaves a class without images, and when the
    copy of a data set differs from the one whose list is published.
    """
    if labels is None:
        return source
    if labels in PERCENTS:
        chosen = choose(source, PERCENTS[labels])
        listed = set(published(source.name.split("/")[0], PERCENTS[labels]))
        strange = sorted(set(chosen) - listed)
        # A user's folder may have a known set's name; then it shares no file name with the list.
        if strange and not listed.isdisjoint(source.files):
            raise UserError(
                f"--labels {labels}: {strange[0]} belongs to the subset but is not in the published "
                f"list; the copy at {source.root} is incomplete: unpack it again"
            )
    else:
        chosen = _read_list(source, Path(labels), labels)
    kept = sorted(set(chosen))
    assert source.labels is not None  # a train split has labels
    position = {name: i for i, name in enumerate(source.files)}
    index = [position[name] for name in kept]
    found = source.take(index)
    assert found.labels is not None
    missing = sorted(set(range(len(source.classes))) - set(found.labels))
    if missing:
        raise UserError(
            f"--labels {labels}: no image of class {source.classes[missing[0]]}; each class needs one"
        )
    return found


def choose(source: ImageList, percent: int) -> tuple[str, ...]:
    """The rule behind the published lists, for any labelled set; sorted names.

    It takes from each class the first ceil(percent / 100 * images) by SHA-256 of "mixco/<data>/<name>".
    So classes keep their proportions, with at least one image each, and a smaller subset lies within a
    larger one.
    """
    assert source.labels is not None
    data = source.name.split("/")[0]
    of_class: dict[int, list[str]] = {}
    for name, label in zip(source.files, source.labels, strict=True):
        of_class.setdefault(label, []).append(name)

    def key(name: str) -> bytes:
        text = f"mixco/{data}/{name}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

    chosen: list[str] = []
    for names in of_class.values():
        count = -(-percent * len(names) // 100)  # rounded up, in integers
        chosen += sorted(names, key=key)[:count]
    return tuple(sorted(chosen))


def published(data: str, percent: int) -> tuple[str, ...]:
    """The list that comes with mixco; empty if this data set has none."""
    path = resources.files("mixco").joinpath("labels", f"{data}-{percent}percent.txt")
    return tuple(path.read_text("utf-8").splitlines()) if path.is_file() else ()


def _read_list(source: ImageList, path: Path, labels: str) -> tuple[str, ...]:
    try:
        # Names may be any bytes, after a byte order mark, with either line ending.
        lines = path.read_text("utf-8-sig", "surrogateescape").split("\n")
    except (OSError, ValueError):  # ValueError: not a possible path
        raise UserError(
            f"--labels must be 1%, 10%, or a text file with an image name per line; {labels} cannot be "
            "read"
        ) from None
    known = set(source.files)
    names = [line if line in known else line.strip() for line in lines if line.strip()]
    strange = sorted(set(names) - known)
    if strange:
        raise UserError(
            f"{path}: {shown(strange[0][:80])} is not among the train images of {source.root}; expected "
            f"names like {source.files[0]}"
        )
    return tuple(names)
