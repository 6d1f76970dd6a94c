"""Which images keep their labels when only some are given: fixed lists, the same for everybody."""

import dataclasses
import hashlib
import re
from importlib import resources
from pathlib import Path

from mixco.data.image_list import ImageList
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

PERCENTS = {"1%": 1, "10%": 10}


def subset_name(labels: str) -> str:
    """How results and files call it: "1percent", or what an own list's file is called."""
    if labels in PERCENTS:
        return f"{PERCENTS[labels]}percent"
    return re.sub(r"[^\w.]+", "-", Path(labels).stem)


def with_labels(source: ImageList, labels: str | None) -> ImageList:
    """The train split cut down to the images whose labels may be used.

    labels: None for all; "1%" or "10%" for the published subsets (`choose`); else the path of a text
        file, one of `source.files` a line.

    Raises UserError when a list names what is not there or leaves a class without an image, and when
    a copy of a data set is not the one whose list is published.
    """
    if labels is None:
        return source
    if labels in PERCENTS:
        chosen = choose(source, PERCENTS[labels])
        listed = set(published(source.name.split("/")[0], PERCENTS[labels]))
        strange = sorted(set(chosen) - listed)
        # A folder of one's own may be called like a known set: then it has no name in common.
        if strange and not listed.isdisjoint(source.files):
            raise UserError(
                f"--labels {labels}: {strange[0]} would be of the subset but is not on the published "
                f"list; the copy at {source.root} is not whole: unpack it again"
            )
    else:
        chosen = _read_list(source, Path(labels).expanduser(), labels)
    kept = sorted(set(chosen))
    assert source.labels is not None  # a train split has labels
    position = {name: i for i, name in enumerate(source.files)}
    index = [position[name] for name in kept]
    labels_kept = tuple(source.labels[i] for i in index)
    missing = sorted(set(range(len(source.classes))) - set(labels_kept))
    if missing:
        raise UserError(
            f"--labels {labels}: no image of class {source.classes[missing[0]]}; each class needs one"
        )
    return dataclasses.replace(
        source,
        files=tuple(kept),
        labels=labels_kept,
        arrays=source.arrays and source.arrays.take(index),
    )


def choose(source: ImageList, percent: int) -> tuple[str, ...]:
    """The rule behind the published lists, for any labelled set; sorted names.

    Of each class the first ceil(percent / 100 * images) by SHA-256 of "mixco/<data>/<name>". So each
    class keeps its share, at least one image, and a smaller subset lies within a larger one.
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
    """The list that comes with mixco; empty where there is none for this data set."""
    path = resources.files("mixco").joinpath("labels", f"{data}-{percent}percent.txt")
    return tuple(path.read_text("utf-8").splitlines()) if path.is_file() else ()


def _read_list(source: ImageList, path: Path, labels: str) -> tuple[str, ...]:
    try:
        # Names of any bytes; with the mark that some editors begin a text with, and either line end.
        lines = path.read_text("utf-8-sig", "surrogateescape").split("\n")
    except (OSError, ValueError):  # the latter for a path that cannot be one
        raise UserError(
            f"--labels {labels}: 1%, 10%, or a text file that lists images, one a line; "
            "there is no such file that can be read"
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
