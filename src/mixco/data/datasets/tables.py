"""Labels and splits from a table: a CSV, TSV or Parquet file with a row for each image."""

import csv
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
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

# How a table may name an image, the most exact first. Kaggle's tables often leave out folder and ending.
NAMES: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: PurePosixPath(path).with_suffix("").as_posix(),
    lambda path: PurePosixPath(path).name,
    lambda path: PurePosixPath(path).stem,
)


class Row(NamedTuple):
    """What a table says of an image."""

    path: str
    label: str
    split: str
    """ "" without such a column."""


def apply_table(source: ImageList, labels: LabelSource, split: str, *, labelled: bool) -> ImageList:
    """The images of a split by a table: "pretrain", "train" or "test".

    source: all images. A row names an image by its path below the folder of the images, or below that of
    the table; or by the end of it, without folder or ending, where that is unmistakable.

    "train" and "test" are the images whose rows say so; "test" is validation, if no row says test.
    "pretrain" is all images but those of test and validation, with labels if all of them have one.

    Raises UserError for a table that cannot be read or names no image, for an image with two labels, and
    where a split is missing.
    """
    table = labels.table
    assert table is not None
    rows = read_table(labels)
    of_image = _match(source, rows, table)
    splits = {i: SPLITS.get(row.split.lower(), row.split) for i, row in of_image.items()}
    there = Counter(splits.values())
    tests = [name for name in TESTS if there[name]]
    notes = list(source.notes)
    if len(of_image) < len(rows):
        known = {row.path for row in of_image.values()}
        first = next((row.path for row in rows if row.path not in known), None)
        if first is not None:
            missing = len({row.path for row in rows} - known)
            notes.append(
                f"{table}: {missing:,} of its images are missing, the first {shown(first)}"
            )
    if split == "pretrain":
        chosen = [i for i in range(len(source.files)) if splits.get(i, "") not in tests]
        if len(chosen) < len(source.files):
            left = ", ".join(f"{name} ({there[name]:,})" for name in tests)
            notes.append(f"left aside, by {table}: {left}")
    else:
        wanted = TRAIN if split == TRAIN else (tests or ["test"])[0]
        if not there[wanted]:
            column = labels.split_column or f"a column {SPLIT[0]}"
            raise UserError(
                f"{table}: no image of the split {wanted}; evaluation needs {column} with {TRAIN} and "
                f"{wanted} in it"
            )
        chosen = [i for i in range(len(source.files)) if splits.get(i) == wanted]
    texts = [of_image[i].label if i in of_image else "" for i in chosen]
    known_classes = in_order({text for text in texts if text})
    keep = all(texts) and len(known_classes) > 1 and (labelled or split == "pretrain")
    index = {text: number for number, text in enumerate(known_classes)}
    return dataclasses.replace(
        source.take(chosen),
        name=f"{source.name}/{split}",
        labels=tuple(index[text] for text in texts) if keep else None,
        classes=known_classes if keep else (),
        notes=tuple(notes),
    )


def read_table(labels: LabelSource) -> list[Row]:
    """The rows of a table. Raises UserError."""
    path = labels.table
    assert path is not None
    if path.suffix.lower() == ".parquet":
        columns = _read_parquet(path)
    elif path.suffix.lower() in SEPARATORS:
        columns = _read_text(path, SEPARATORS[path.suffix.lower()])
    else:
        raise UserError(f"--labels-from {path}: must end in .csv, .tsv or .parquet")
    names = _column(path, columns, labels.path_column, PATHS, "--path-column")
    texts = _column(path, columns, labels.label_column, LABELS, "--label-column")
    split = labels.split_column or next((n for n in columns if n.lower() in SPLIT), None)
    parts = _column(path, columns, split, (), "--split-column") if split else [""] * len(names)
    return [Row(*row) for row in zip(names, texts, parts, strict=True)]


def _column(
    path: Path, columns: dict[str, list[str]], given: str | None, usual: Sequence[str], option: str
) -> list[str]:
    lower = {name.lower(): name for name in reversed(columns)}
    found = given if given is not None else next((lower[n] for n in usual if n in lower), None)
    if found in columns:
        return columns[found]
    expected = given or f"one of {', '.join(usual)}"
    raise UserError(
        f"--labels-from {path}: no column {expected}; its columns are {', '.join(columns)}; name one by "
        f"{option}"
    )


def _read_text(path: Path, separator: str) -> dict[str, list[str]]:
    try:
        with open_table(path) as file:
            header, *rows = csv.reader(file, delimiter=separator) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "its first line must name the columns"
        raise UserError(f"--labels-from {path}: cannot be read ({reason})") from None
    header = [name.removeprefix("\ufeff").strip() for name in header]
    for number, row in enumerate(rows, 2):
        if row and len(row) != len(header):
            raise UserError(
                f"--labels-from {path}, line {number}: {len(row)} fields, but {len(header)} columns; "
                "correct the line"
            )
    rows = [row for row in rows if row]
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        table = pyarrow().parquet.read_table(path)
    except OSError as error:
        raise UserError(
            f"--labels-from {path}: cannot be read ({error.strerror or error})"
        ) from None
    return {
        name: ["" if value is None else str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }


def _match(source: ImageList, rows: list[Row], table: Path) -> dict[int, Row]:
    """Index -> its row. Raises UserError for no match, and for an image with two labels."""
    best: dict[int, Row] = {}
    files = list(source.files)
    candidates = [tuple(_candidates(row.path, source, table)) for row in rows]
    for name_of in NAMES:
        places: dict[str, int] = {}
        twice: set[str] = set()
        for index, file in enumerate(files):
            if places.setdefault(name_of(file), index) != index:
                twice.add(name_of(file))
        found: dict[int, Row] = {}
        for row, names in zip(rows, candidates, strict=True):
            known = (name for name in names if name in places and name not in twice)
            if (name := next(known, None)) is None:
                continue
            place = places[name]
            before = found.setdefault(place, row)
            if before.label != row.label:
                raise UserError(
                    f"{table}: {shown(row.path)} has the labels {before.label} and {row.label}, and an "
                    "image can have only one label here; keep one of the rows, or give another "
                    "--label-column"
                )
        if len(found) > len(best):
            best = found
        if len(best) == len(rows):
            break
    if not best:
        raise UserError(
            f"{table}: names none of the {len(files):,} images; expected paths such as "
            f"{shown(files[0])}, and its first is {shown(rows[0].path) if rows else 'missing'}; "
            "--path-column names another column"
        )
    return best


def _candidates(path: str, source: ImageList, table: Path) -> Iterator[str]:
    """What an image may be called below the folder of the images."""
    path = path.replace("\\", "/").removeprefix("./")
    full, root = table.absolute().parent / path, source.root.absolute()
    if full.is_relative_to(root):
        yield full.relative_to(root).as_posix()
    yield path
