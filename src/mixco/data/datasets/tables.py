"""Labels and splits from a table: a CSV, TSV or Parquet file with a row for each image."""

import csv
import dataclasses
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from mixco.data.datasets import LabelSource
from mixco.data.datasets.folders import TRAIN
from mixco.data.datasets.hub_splits import USUAL as SPLITS
from mixco.data.datasets.sharded import TESTS, in_order
from mixco.data.image_list import ImageList
from mixco.data.rows import pyarrow
from mixco.runtime.errors import UserError
from mixco.runtime.files import open_table, shown

# Usual names of the columns, in lower case; the first that is there is taken.
PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "image",
    "image_path",
    "image_id",
    "id",
)
LABELS = ("label", "class", "category", "target", "labels")
SPLIT = ("split", "subset", "fold", "set")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """What a table says of an image."""

    path: str
    label: str
    split: str
    """ "" without such a column."""


def apply_table(source: ImageList, labels: LabelSource, split: str, *, labelled: bool) -> ImageList:
    """The images of a split by a table: "pretrain", "train" or "test".

    source: all images. A row names an image by its path below the folder of the images, or below that of
    the table; or by the end of its path, such as the file's name alone, where that is unmistakable. The
    file's ending may be left out.

    "train" and "test" are the images whose rows say so; "test" is validation, if no row says test, or
    none of those has a label. "pretrain" is all images but those of test and validation, with labels if
    all of them have one.

    Raises UserError for a table that cannot be read or names no image, for an image with two labels or
    splits, and where labels or a split are missing.
    """
    table = labels.table
    assert table is not None
    rows = read_table(labels)
    of_image, notes = _match(source, rows, table)
    empty = Row("", "", "")
    by_image = [of_image.get(i, empty) for i in range(len(source.files))]
    there = Counter(row.split for row in by_image)
    must = labelled and split != "pretrain"
    if split == "pretrain":
        aside = [name for name in TESTS if there[name]]
        if aside:
            left = ", ".join(f"{name} ({there[name]:,})" for name in aside)
            notes.append(f"left aside, by {table}: {left}")
        chosen = [i for i, row in enumerate(by_image) if row.split not in aside]
    else:
        test = _test_split(by_image, labelled=labelled)
        wanted, other = (TRAIN, test) if split == TRAIN else (test, TRAIN)
        chosen = [i for i, row in enumerate(by_image) if row.split == wanted]
        if not chosen:
            raise UserError(_no_split(labels, there, wanted))
        if must:
            _refuse_missing(source, by_image, wanted, other, table)
    texts = [by_image[i].label for i in chosen]
    classes = in_order({text for text in texts if text})
    keep = all(texts) and (must or (split == "pretrain" and len(classes) > 1))
    index = {text: number for number, text in enumerate(classes)}
    return dataclasses.replace(
        source.take(chosen),
        name=f"{source.name}/{split}",
        labels=tuple(index[text] for text in texts) if keep else None,
        classes=classes if keep else (),
        notes=(*source.notes, *notes),
    )


def _test_split(rows: Sequence[Row], *, labelled: bool) -> str:
    """The first of TESTS that has images, and labels if it must."""
    has = {row.split for row in rows if row.label or not labelled}
    return next((name for name in TESTS if name in has), TESTS[0])


def _no_split(labels: LabelSource, there: Counter[str], wanted: str) -> str:
    """What is wrong, in words."""
    known = ", ".join(f"{shown(name)} ({there[name]:,})" for name in sorted(there) if name)
    column = f"column {labels.split_column}" if labels.split_column else "column of splits"
    has = f"its {column} has {known}" if known else "it has no column split"
    return (
        f"{labels.table}: no image of the split {wanted}; {has}; expected {TRAIN} and {TESTS[0]} (or "
        f"{TESTS[1]}) in one, and --split-column names another"
    )


def _refuse_missing(
    source: ImageList, rows: Sequence[Row], wanted: str, other: str, table: Path
) -> None:
    """Raises UserError for an image without a label, and for a class of one split only."""
    for i, row in enumerate(rows):
        if row.split == wanted and not row.label:
            raise UserError(
                f"{table}: {shown(source.files[i])} of the split {wanted} has no label; give it one, or "
                "remove its row"
            )
    ours, theirs = ({row.label for row in rows if row.split == s} for s in (wanted, other))
    if theirs and (strange := sorted(ours.symmetric_difference(theirs - {""}))):
        raise UserError(
            f"{table}: the class {shown(strange[0])} is in only one of the splits {wanted} and {other}; "
            "add images of it to the other, or remove it from both"
        )


def read_table(labels: LabelSource) -> list[Row]:
    """The rows of a table; of a Parquet file only these columns are read. Raises UserError."""
    path = labels.table
    assert path is not None
    kind = path.suffix.lower()
    if kind == ".parquet":
        names, values = _open_parquet(path)
    elif kind in SEPARATORS:
        names, values = _open_text(path, SEPARATORS[kind])
    else:
        raise UserError(
            f"--labels-from {path}: must end in {', '.join(SEPARATORS)} or .parquet; save the table as "
            "one of these"
        )

    def column(given: str | None, usual: Sequence[str], option: str) -> list[str]:
        name = given or _usual(names, usual)
        if name in names:
            return values(name)
        expected = given or f"one of {', '.join(usual)}"
        raise UserError(
            f"--labels-from {path}: no column {expected}; its columns are "
            f"{', '.join(map(shown, names))}; name one by {option}"
        )

    paths = column(labels.path_column, PATHS, "--path-column")
    texts = column(labels.label_column, LABELS, "--label-column")
    splits = [""] * len(paths)
    if labels.split_column or _usual(names, SPLIT):
        splits = column(labels.split_column, SPLIT, "--split-column")
    if not paths:
        raise UserError(f"--labels-from {path}: has no row; expected one for each image")
    return [
        Row(name, text, SPLITS.get(split.lower(), split))
        for name, text, split in zip(paths, texts, splits, strict=True)
    ]


def _usual(names: Sequence[str], usual: Sequence[str]) -> str:
    """The column that has the first of the usual names there is, in any case; "" for none."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), "")


Columns = tuple[list[str], Callable[[str], list[str]]]
"""The names of the columns, and what gives the texts of one."""


def _open_text(path: Path, separator: str) -> Columns:
    try:
        with open_table(path) as file:
            if file.read(1) != "\ufeff":
                file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            names = [name.strip() for name in next(reader, [])]
            numbered = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--labels-from {path}: cannot be read ({reason})") from None
    if not any(names) or "\0" in "".join(names):
        raise UserError(
            f"--labels-from {path}: its first line must name the columns, in UTF-8; save the table so"
        )
    for number, row in numbered:
        if len(row) != len(names):
            raise UserError(
                f"--labels-from {path}, line {number}: {len(row)} fields, but {len(names)} columns; "
                "correct the line, or put a field with a comma into quotes"
            )

    def values(name: str) -> list[str]:
        place = names.index(name)
        return [row[place].strip() for _, row in numbered]

    return names, values


def _open_parquet(path: Path) -> Columns:
    parquet = pyarrow().parquet

    def refused(error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        return UserError(f"--labels-from {path}: cannot be read ({reason})")

    def values(name: str) -> list[str]:
        try:
            column = parquet.read_table(path, columns=[name]).column(name).to_pylist()
        except (OSError, ValueError) as error:
            raise refused(error) from None
        return ["" if value is None else str(value).strip() for value in column]

    try:
        return list(parquet.read_schema(path).names), values
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these kinds
        raise refused(error) from None


def _match(source: ImageList, rows: list[Row], table: Path) -> tuple[dict[int, Row], list[str]]:
    """Image -> its row; and notes on the rows and images that are left.

    Raises UserError where no image is found, and for one with two labels or splits.
    """
    files = list(source.files)
    places = _places(files, rows, source.root, table)
    of_image: dict[int, Row] = {}
    for image, row in zip(places, rows, strict=True):
        before = of_image.setdefault(image, row)
        if image >= 0 and before[1:] != row[1:]:
            what, first, second = next(
                (what, a, b)
                for what, a, b in zip(("label", "split"), before[1:], row[1:], strict=True)
                if a != b
            )
            raise UserError(
                f"{table}: {shown(row.path)} has the {what}s {shown(first)} and {shown(second)}, and an "
                f"image can have only one here; keep one of its rows, or give another --{what}-column"
            )
    lost = of_image.pop(-1, None)
    if not of_image:
        raise UserError(
            f"{table}: names none of the {len(files):,} images; expected paths such as "
            f"{shown(files[0])}, and its first is {shown(rows[0].path)}; --path-column names another "
            "column"
        )
    notes = []
    if lost is not None:
        notes.append(
            f"{table}: {places.count(-1):,} of its {len(rows):,} rows name no image, or several; the "
            f"first of them names {shown(lost.path)}"
        )
    if len(of_image) < len(files):
        first_file = next(file for i, file in enumerate(files) if i not in of_image)
        notes.append(
            f"{table}: {len(files) - len(of_image):,} of the {len(files):,} images have no row, such as "
            f"{shown(first_file)}"
        )
    return of_image, notes


def _places(files: Sequence[str], rows: Sequence[Row], root: Path, table: Path) -> list[int]:
    """For each row the place of its image; -1 for none.

    All rows name their images in one way, that by which most of them are found: by whole paths or by
    their ends, with or without the files' endings.
    """
    top, beside = os.path.abspath(root), os.path.abspath(table.parent)  # noqa: PTH100
    wanted = [_below(row.path, top, beside) for row in rows]
    depths = {name.count("/") + 1 for names in wanted for name in names}
    best: list[int] = []
    for ends, ending in ((set[int](), True), (set[int](), False), (depths, True), (depths, False)):
        index = _index(files, ends, ending=ending)
        found = [
            next((place for name in names if (place := index.get(name, -1)) >= 0), -1)
            for names in wanted
        ]
        if not best or found.count(-1) < best.count(-1):
            best = found
        if -1 not in best:
            break
    return best


def _below(path: str, top: str, beside: str) -> list[str]:
    """What an image may be called below the folder of the images, the likeliest first.

    top, beside: the full paths of that folder and of the table's.
    """
    if not path:
        return []
    path = path.replace("\\", "/")
    full = os.path.normpath(os.path.join(beside, path)).replace(os.sep, "/")  # noqa: PTH118
    start = f"{top.replace(os.sep, '/').rstrip('/')}/"
    names = [full.removeprefix(start)] if full.startswith(start) else []
    return [*names, posixpath.normpath(path)]


def _index(files: Sequence[str], depths: Collection[int], *, ending: bool) -> dict[str, int]:
    """What images may be called -> their places; -1 where several are called so.

    depths: how many last parts of their paths; none for whole paths. ending: with that of the file?
    """
    index: dict[str, int] = {}
    for place, file in enumerate(files):
        name = file if ending else posixpath.splitext(file)[0]
        parts = name.split("/")
        for depth in depths or (len(parts),):
            if depth <= len(parts):
                key = "/".join(parts[-depth:])
                index[key] = place if key not in index else -1
    return index
