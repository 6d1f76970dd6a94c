"""Parquet shards with images, as the Hugging Face hub writes them: one row an image."""

import json
from pathlib import Path
from typing import Any

from mixco.data.datasets.shards import Shard, make_shard
from mixco.data.rows import pyarrow, reason_of
from mixco.runtime.errors import UserError

ENDING = ".parquet"
IMAGES = ("image", "img")  # the usual names; else the first column that can hold images
LABELS = ("label", "labels", "class", "cls", "target")


def index_parquet(path: Path, label: str | None = None) -> Shard:
    """The rows of a Parquet file and their labels; the images themselves are not read.

    An image is called by the number of its row and the file's name, "17/dog.jpg", if the row has one.
    The image column is the struct of bytes and path that the hub writes, or plain bytes; an `image`
    first. The label column holds integers or texts; where the file names the classes, a label is a name.
    A label below 0 is none, as in the test splits of the hub.

    label: the label column; None for the usual names, or the only one with named classes.

    Raises UserError for a file without images, and for a label column that is not there.
    """
    parquet = pyarrow().parquet
    try:
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            column = _image_column(path, schema)
            facts: dict[str, Any] = {"column": column}
            names = _names(file, schema, column)
            labels = _labels(path, file, schema, label, facts) or [None] * rows
    except (
        OSError,
        ValueError,
    ) as error:  # Arrow raises both for damage; the system's has a number
        if getattr(error, "errno", None) is not None:
            raise
        return make_shard([], {"damage": reason_of(error), "column": ""})
    images = [
        (name, row, 0, text) for row, (name, text) in enumerate(zip(names, labels, strict=True))
    ]
    return make_shard(images, facts | {"damage": ""})


def _image_column(path: Path, schema: Any) -> str:
    """ "image.bytes", or the name of a column of plain bytes."""
    found = {}
    for field in schema:
        if (inner := _bytes_in(field)) is not None:
            found[field.name] = f"{field.name}.{inner}" if inner else field.name
    if not found:
        raise UserError(
            f"{path}: no column of images; expected a struct of bytes and path, as the Hugging Face hub "
            f"writes it, or plain bytes, and the columns are {', '.join(schema.names)}"
        )
    return next((found[name] for name in IMAGES if name in found), next(iter(found.values())))


def _names(file: Any, schema: Any, column: str) -> list[str]:
    """The number of each row; with the name of the file that the image was, where the row tells it."""
    rows, (top, _, inner) = file.metadata.num_rows, column.partition(".")
    if not inner or schema.field(top).type.get_field_index("path") < 0:
        return [str(row) for row in range(rows)]
    paths = file.read(columns=[f"{top}.path"]).flatten().column(0).to_pylist()
    names = [str(path or "").replace("\\", "/").rpartition("/")[2] for path in paths]
    return [f"{row}/{name}" if name else str(row) for row, name in enumerate(names)]


def _bytes_in(field: Any) -> str | None:
    """ "bytes" for a struct with such a field, "" for a column of bytes, None for others."""
    types = pyarrow().types

    def binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    if binary(field.type):
        return ""
    if types.is_struct(field.type) and any(
        part.name == "bytes" and binary(part.type) for part in field.type
    ):
        return "bytes"
    return None


def _labels(
    path: Path, file: Any, schema: Any, label: str | None, facts: dict[str, Any]
) -> list[str | None] | None:
    """The label of each row as a text; None without a column of labels.

    facts: told of several labels an image, and of several columns.
    """
    named = _named_classes(schema)
    if label is not None and label not in schema.names:
        raise UserError(
            f"--label-column {label}: {path} has no such column, but {', '.join(schema.names)}"
        )
    usual = [name for name in (*LABELS, *sorted(named)) if name in schema.names]
    if label is None and not any(name in LABELS for name in usual) and len(usual) > 1:
        facts["columns"] = usual  # CIFAR-100's fine and coarse labels: a person must choose
        return None
    column = label or next(iter(usual), None)
    if column is None:
        return None
    if hasattr(schema.field(column).type, "value_type"):
        facts["several"] = f"the column {column} of {path} holds lists"
        return None
    values = file.read(columns=[column]).column(0).to_pylist()
    names = named.get(column)

    def text(value: Any) -> str | None:
        if value is None or (isinstance(value, int) and value < 0):
            return None
        if names is not None and isinstance(value, int) and value < len(names):
            return str(names[value])
        return str(value)

    return [text(value) for value in values]


def _named_classes(schema: Any) -> dict[str, list[str]]:
    """Column -> the names of its classes, from what the hub's library notes in a file."""
    try:
        notes = json.loads((schema.metadata or {})[b"huggingface"])
        features = notes["info"]["features"]
        return {
            name: list(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (LookupError, ValueError, TypeError, AttributeError):
        return {}
