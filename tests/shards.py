"""Writes tar and Parquet shards of class folders, as WebDataset and the Hugging Face hub do."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


def images_of(split: Path) -> list[tuple[Path, str]]:
    """The image files of <split>/<class>/, sorted, with their classes."""
    files = sorted(path for path in split.rglob("*") if path.is_file())
    return [(path, path.relative_to(split).parts[0]) for path in files]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(
    images: Sequence[tuple[Path, str]], label: str, start: int = 0
) -> list[tuple[str, bytes]]:
    """The members of a tar shard. label: where the class is, "cls", "json", "folder" or "none"."""
    members = []
    for number, (path, name) in enumerate(images, start):
        key = f"{name}/{number:06d}" if label == "folder" else f"{number:06d}"
        members.append((f"{key}{path.suffix}", path.read_bytes()))
        if label == "cls":
            members.append((f"{key}.cls", name.encode()))
        if label == "json":
            members.append((f"{key}.json", json.dumps({"label": name, "width": 64}).encode()))
    return members


def write_tars(split: Path, out: Path, shards: int = 3, label: str = "cls") -> Path:
    """<out>/<split>-000000.tar, ..., in the order of the files."""
    images = images_of(split)
    size = -(-len(images) // shards)
    for shard in range(shards):
        some = images[shard * size : (shard + 1) * size]
        name = f"{split.name}-{shard:06d}.tar"
        write_tar(out / name, samples(some, label, shard * size))
    return out


def write_parquets(
    split: Path, out: Path, shards: int = 2, group: int = 7, compression: str = "snappy"
) -> Path:
    """<out>/data/<split>-00000-of-00002.parquet, ...; group: rows of a row group."""
    images = images_of(split)
    names = sorted({name for _, name in images})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    kinds = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", kinds), ("label", pyarrow.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    size = -(-len(images) // shards)
    (out / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        some = images[shard * size : (shard + 1) * size]
        rows = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in some]
        table = pyarrow.table([rows, [names.index(name) for _, name in some]], schema=schema)
        pyarrow.parquet.write_table(
            table,
            out / "data" / f"{split.name}-{shard:05d}-of-{shards:05d}.parquet",
            row_group_size=group,
            compression=compression,
        )
    return out
