"""Lists the images of tar and Parquet shards, by split and class."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from os.path import commonpath
from pathlib import Path
from typing import NamedTuple

import torch

from mixco.data.datasets import Wanted, parquet, tar
from mixco.data.datasets.folders import TRAIN, images_below
from mixco.data.datasets.hub_splits import USUAL as SPLITS
from mixco.data.datasets.shards import UNLABELLED, Shard, joined_names, read_shards
from mixco.data.file_index import list_files
from mixco.data.formats import ARRAYS, endings
from mixco.data.image_list import ImageList
from mixco.data.rows import Rows
from mixco.data.storage import FileNames, Slices, Storage
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

ENDINGS = (tar.ENDING, parquet.ENDING)
NOWHERE = ""
TESTS = ("test", "validation")


class _Found(NamedTuple):
    """All images of some shards, before a split is chosen."""

    root: Path
    shards: Sequence[Shard]
    files: FileNames
    stored: Storage
    split: list[str]
    """Of each image."""
    label: list[str | None]
    """Of each image."""
    damaged: tuple[tuple[str, str, str], ...]
    """(shard, reason, split)"""


def shards_in(folder: Path, cache: Path | None = None) -> list[Path]:
    """The shards in a folder that has no image files, sorted; none where it has."""
    if not _first_is_shard(folder) or images_below(folder, cache)[0]:
        return []
    return [folder / name for name in list_files(folder, ENDINGS, cache).files]


def _first_is_shard(folder: Path) -> bool:
    """Whether a shard is met before an image. To list all of a million images takes longer."""
    images = (*endings(), *ARRAYS)
    for _, _, names in os.walk(folder):
        for name in map(str.lower, names):
            if name.endswith(ENDINGS):
                return True
            if name.endswith(images):
                return False
    return False


def list_sharded(
    name: str,
    paths: Sequence[Path],
    wanted: Wanted,
    cache: Path | None = None,
    splits: Sequence[str] | None = None,
    root: Path | None = None,
) -> ImageList:
    """The wanted images of some shards.

    An image belongs to the split whose name is a word of its shard's path (train-0001.tar, val/0.tar),
    else of its own first folder in a tar file. "pretrain" is the train split, or everything without one.
    "test" is validation where there is no labelled test.

    A label is what the shard says (tar.index_tar, parquet.index_parquet), else the class folder of a
    member of a tar file.

    name: of the set. splits: of each shard; None for those of their paths.
    root: names of images are paths below it; None for the folder that all of the shards lie in.

    Raises UserError for shards without images, without such a split, or without labels.
    """
    kinds = sorted({path.suffix.lower() for path in paths})
    if len(kinds) > 1:
        raise UserError(
            f"{name}: shards of two kinds, {' and '.join(kinds)}, which may hold the same images; give "
            f"the files of one, such as --data '{paths[0].parent}/*{kinds[0]}'"
        )
    split, labelled = wanted.split, wanted.labelled
    named = [folder for folder in (wanted.train_folder, wanted.test_folder) if folder]
    found = _read(paths, cache, wanted.labels.in_shards, splits, named, root)
    notes = _notes(found.shards)
    there = Counter(found.split)
    if not there:
        damaged = "; ".join(f"{file}: {why}" for file, why, _ in found.damaged[:3])
        why = f" ({'; '.join(filter(None, (damaged, *notes)))})" if damaged or notes else ""
        raise UserError(f"{name}: no image in its {len(paths):,} shards{why}")
    own = {
        "all": None,
        "pretrain": TRAIN if there[TRAIN] else None,
        "train": _spelt(wanted.train_folder, there) or TRAIN,
        "test": _spelt(wanted.test_folder, there) or _test_split(found, labelled),
    }
    part = own[split]
    chosen = [i for i, each in enumerate(found.split) if part in (None, each)]
    if not chosen:
        has = ", ".join(f"{there[key]:,} of {key or 'no split'}" for key in sorted(there))
        raise UserError(
            f"{name}: has no images of the split {part} ({has}); a word in a shard's path names its "
            f"split, such as {part}-0001.tar, and --train-folder and --test-folder name other splits"
        )
    if split == "pretrain" and len(chosen) < len(found.files):
        others = sorted((key or "no split", n) for key, n in there.items() if key != part)
        left = ", ".join(f"{key} ({count:,})" for key, count in others)
        notes.append(f"the split {part} is used; left aside: {left}")
    texts = [found.label[i] for i in chosen]
    classes: tuple[str, ...] = ()
    if labelled and split in ("train", "test"):
        if None in texts:
            first = found.files[chosen[texts.index(None)]]
            raise UserError(f"{shown(first)}: has no label{_why(found.shards)}")
        classes = in_order(set(filter(None, texts)))
        _refuse_other_classes(
            name, found, classes, part, own["test" if split == "train" else TRAIN]
        )
    elif split == "pretrain" and None not in texts:
        classes = in_order(set(filter(None, texts)))
    index = {text: number for number, text in enumerate(classes)}
    everything = len(chosen) == len(found.files)
    return ImageList(
        name if split == "all" else f"{name}/{'pretrain' if split == 'pretrain' else part}",
        found.root,
        found.files if everything else found.files.take(chosen),
        tuple(index[text] for text in texts if text is not None) if len(classes) > 1 else None,
        classes if len(classes) > 1 else (),
        stored=found.stored if everything else found.stored.take(chosen),
        damaged=tuple(
            (file, why) for file, why, word in found.damaged if word in (NOWHERE, part or word)
        ),
        notes=tuple(notes),
    )


def _read(
    paths: Sequence[Path],
    cache: Path | None,
    label_column: str | None,
    splits: Sequence[str] | None,
    named: Sequence[str],
    root: Path | None,
) -> _Found:
    is_tar = paths[0].suffix.lower() == tar.ENDING
    index = partial(tar.index_tar if is_tar else parquet.index_parquet, label=label_column)
    paths = [path.absolute() for path in paths]
    shards = read_shards(paths, index, cache, label_column or "")
    root = root or Path(commonpath([path.parent for path in paths]))
    below = [path.relative_to(root).as_posix() for path in paths]
    file = torch.cat(
        [torch.full((len(s.offset),), n, dtype=torch.int32) for n, s in enumerate(shards)]
    )
    offset = torch.cat([shard.offset for shard in shards])
    stored: Storage
    if is_tar:
        stored = Slices(tuple(paths), file, offset, torch.cat([shard.size for shard in shards]))
    else:
        columns = tuple(str(shard.facts["column"]) for shard in shards)
        stored = Rows(tuple(paths), columns, file, offset)
    split: list[str] = []
    label: list[str | None] = []
    words = splits or [split_of(path, named) for path in below]
    for shard, word in zip(shards, words, strict=True):
        texts = [*shard.classes, None]  # UNLABELLED, -1, is the last
        given = [texts[code] for code in shard.label.tolist()]
        if is_tar and (not word or UNLABELLED in shard.label):
            tops, folders = _folders(shard.names, word, named)
            split += [word] * len(given) if word else tops
            label += [a or b for a, b in zip(given, folders, strict=True)]
        else:
            split += [word] * len(given)
            label += given
    damaged = tuple(
        (path, f"damaged after {len(shard.names):,} images: {shard.facts['damage']}", word)
        for path, shard, word in zip(below, shards, words, strict=True)
        if shard.facts["damage"]
    )
    return _Found(root, shards, joined_names(below, shards), stored, split, label, damaged)


def split_of(path: str, named: Sequence[str] = ()) -> str:
    """The split that a path names, "train" of "data/train-00000-of-00014.parquet"; "" for none.

    named: other names of splits, which go first.
    """
    for name in named:
        if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", path):
            return name
    words = re.split(r"[^a-z]+", path.lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), NOWHERE)


def _folders(
    names: FileNames, word: str, named: Sequence[str]
) -> tuple[list[str], list[str | None]]:
    """Split and class folder of the members of a tar file, whose common folder does not count.

    The first folders are splits where one of them is train; else a class may be called test.
    word: the split, where it is known. named: other names of splits.
    """
    parts = [name.split("/") for name in names]
    while parts and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        top = parts[0][0]
        parts = [p[1:] for p in parts]
        word = word or split_of(top, named)
    known = {**SPLITS, **{name: name for name in named}}
    splits = [known.get(p[0], NOWHERE) if len(p) > 1 and not word else NOWHERE for p in parts]
    if not {TRAIN, *named} & set(splits):
        splits = [word] * len(parts)
    below = [p[1:] if own and not word else p for p, own in zip(parts, splits, strict=True)]
    return splits, [p[0] if len(p) > 1 else None for p in below]


def _spelt(name: str | None, there: Counter[str]) -> str | None:
    """A split's name as it is found: "val" of the command line may be "validation" in a path."""
    return name if name is None or there[name] else SPLITS.get(name, name)


def _test_split(found: _Found, labelled: bool) -> str:
    """The first of TESTS that has images, and labels if it must; test splits of the hub have none."""
    has = {
        split
        for split, label in zip(found.split, found.label, strict=True)
        if label is not None or not labelled
    }
    return next((name for name in TESTS if name in has), TESTS[0])


def _refuse_other_classes(
    name: str, found: _Found, classes: tuple[str, ...], wanted: str | None, other: str | None
) -> None:
    """Raises UserError when the other of the two splits has other classes."""
    there = {
        label
        for label, split in zip(found.label, found.split, strict=True)
        if split == other and label is not None
    }
    if strange := sorted(there.symmetric_difference(classes)):
        raise UserError(
            f"{name}: the class {strange[0]} is in only one of the splits {wanted} and {other}; add "
            "images of it to the other, or remove it from both"
        )


def in_order(texts: set[str]) -> tuple[str, ...]:
    numbers = all(text.lstrip("-").isdecimal() for text in texts)
    return tuple(sorted(texts, key=(lambda text: (int(text), text)) if numbers else None))


def _why(shards: Sequence[Shard]) -> str:
    """What is known of missing labels, and the remedy, in words."""
    for shard in shards:
        if several := shard.facts.get("several"):
            return f": {several}, and an image can have only one label here; give --label-column"
        if columns := shard.facts.get("columns"):
            return (
                f": labels may be in {' or '.join(columns)}; give --label-column with one of them"
            )
    return (
        "; in tar files a label is the text of key.cls beside key.jpg, `label` in key.json, or the "
        "folder of the member; in Parquet files a column label. --label-column names another"
    )


def _notes(shards: Sequence[Shard]) -> list[str]:
    aside: Counter[str] = Counter()
    for shard in shards:
        aside.update(shard.facts.get("aside", {}))
    order = sorted(aside, key=lambda key: (-aside[key], key))
    words = ", ".join(f"{shown(key)} ({aside[key]:,})" for key in order[:10])
    return [f"left aside: {words}"] if aside else []
