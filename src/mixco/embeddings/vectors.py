"""Files of vectors: for each image its path and vector, and notes on the images and the encoder.

.safetensors  vectors float32 [N, D]; paths uint8: UTF-8, a zero byte after each path
.npz          vectors float32 [N, D]; paths, text [N]; notes, JSON
.parquet      a row an image: path (string), vector (a list of D float32); a row group for 2,048 images

Paths are relative to the notes' root. Vectors are written in parts, so they need not fit in memory.
Several processes write a file in shards (shards.py), which `read_vectors` takes as one.
"""

import io
import json
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixco.data.datasets import list_images
from mixco.data.image_list import ImageList
from mixco.data.rows import pyarrow
from mixco.embeddings.shards import OWN_NOTES, files_of, refuse_other_work
from mixco.runtime.errors import UserError
from mixco.runtime.files import refuse_other_than_utf8, replacing

KINDS = (".parquet", ".npz", ".safetensors")


@dataclass(frozen=True)
class Vectors:
    """The vectors of a collection of images."""

    source: ImageList
    """The images."""
    index: Tensor
    """int64 [N]: their places in the source."""
    vectors: Tensor
    """float32 [N, D]; from one safetensors file memory-mapped."""
    notes: dict[str, Any]
    """The images and the encoder: root, data, data_path, split, training, size, normalised, ..."""

    def __len__(self) -> int:
        return len(self.index)

    def paths(self) -> list[str]:
        """For each row the full path of its file, or its name in the archive that holds all images."""
        files = [self.source.files[i] for i in self.index.tolist()]
        return files if self.notes["packed"] else [str(self.source.root / file) for file in files]


def check_kind(path: Path, names: Iterable[str] = ()) -> None:
    """Raises UserError unless a file of this kind can hold vectors and images with these names."""
    if path.suffix not in KINDS:
        raise UserError(f"--out must end in {', '.join(KINDS)}, got {path}")
    if path.suffix != ".npz":
        refuse_other_than_utf8(path, "--out")
    if path.suffix == ".parquet":
        pyarrow()
        for name in names:
            if not _is_unicode(name):
                raise UserError(
                    f"{name!r}: a Parquet file cannot hold this name, which is not UTF-8; rename the "
                    "file, or give --out with .npz or .safetensors"
                )


def write_vectors(
    path: Path, names: Sequence[str], dim: int, parts: Iterable[Tensor], notes: dict[str, Any]
) -> None:
    """Write a file of vectors, atomically. parts: float32 [n, dim], together one row a name."""
    write = {".parquet": _write_parquet, ".npz": _write_npz, ".safetensors": _write_safetensors}
    with replacing(path) as temporary:
        write[path.suffix](temporary, names, dim, parts, json.dumps(notes))


def is_vectors(path: Path) -> bool:
    """Is it a file of vectors, or are there shards of it? A .safetensors may also be an encoder, and a
    .parquet may hold images; their metadata decide. Raises UserError as `files_of` does.
    """
    if path.suffix not in (".safetensors", ".parquet"):
        return path.suffix in KINDS
    first = files_of(path)[0]
    if path.suffix == ".parquet":
        return not first.is_file() or not _holds_images(first)
    if not first.is_file():
        return False
    try:
        with safe_open(first, "pt") as file:
            return "mixco-vectors" in (file.metadata() or {})
    except SafetensorError:
        return False


def _holds_images(path: Path) -> bool:
    """Is it a whole Parquet file without the notes of mixco? Of a damaged one reading says more."""
    parquet = pyarrow().parquet
    try:
        return b"mixco" not in (parquet.read_schema(path).metadata or {})
    except OSError:
        return False


def read_notes(path: Path) -> dict[str, Any]:
    """Read the notes of a file of vectors. Raises UserError for any other file."""
    return _read(path, notes_only=True)[0]


def read_names(path: Path) -> tuple[str, ...]:
    """The names of the images in a file of vectors. Raises UserError for any other file."""
    return _read(path)[1]


def read_vectors(path: Path) -> Vectors:
    """Read a file of vectors, and list its images. Where it is missing, its shards are read as one file.

    Raises UserError for any other file, and for shards that are missing, of other work than the first
    one, or of several counts.
    """
    files = files_of(path)
    notes, names, vectors = _read(path) if files == [path] else _read_shards(path, files)
    index = torch.arange(len(names))
    if notes["packed"]:  # images inside archives: CIFAR, STL-10, the sample
        data_path = notes["data_path"] and Path(notes["data_path"]).expanduser()
        data = notes["data"] if isinstance(notes["data"], str) else tuple(notes["data"])
        source = list_images(data, data_path, notes["split"], labelled=False)
        places = {file: place for place, file in enumerate(source.files)}
        if not places.keys() >= set(names):
            raise UserError(
                f"{path}: {notes['data']} no longer has all of its images; embed them again"
            )
        index = torch.tensor([places[name] for name in names])
    else:
        source = ImageList(path.name, Path(notes["root"]), names, None, ())
    return Vectors(source, index, vectors, notes)


def _read_shards(whole: Path, files: list[Path]) -> tuple[dict[str, Any], tuple[str, ...], Tensor]:
    """Notes that the shards have in common, and the paths and vectors of all. files: in order."""
    notes, first = read_notes(files[0]), 0
    for file in files:
        own = read_notes(file)
        refuse_other_work(files[0], notes, file, own)
        if (own.get("shards"), own.get("first")) != (len(files), first):
            raise UserError(
                f"{file}: another shard than its name says; give it its first name again, or remove it "
                "and embed it again"
            )
        first += own["count"]
    names: list[str] = []
    vectors = torch.empty(0)
    for file in files:  # into one tensor: a list of them and their sum would need twice the memory
        _, some, part = _read(file)
        if not len(vectors):
            vectors = torch.empty(first, part.shape[1])
        vectors[len(names) : len(names) + len(some)] = part
        names += some
    if not names:
        raise UserError(
            f"{whole}: none of its {first:,} images could be read; {files[0].name}.unreadable.txt says "
            "why"
        )
    shared = {key: value for key, value in notes.items() if key not in OWN_NOTES}
    return shared, tuple(names), vectors[: len(names)]


def _read(path: Path, notes_only: bool = False) -> tuple[dict[str, Any], tuple[str, ...], Tensor]:
    """Notes, paths and vectors; with notes_only paths and vectors are empty."""
    read = {".parquet": _read_parquet, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in KINDS:
        raise UserError(f"{path}: a file of vectors must end in {', '.join(KINDS)}")
    try:
        text, names, vectors = read[path.suffix](path, notes_only)
        return json.loads(text), names, vectors
    except OSError as error:
        # Arrow raises OSError for damage too, with a message instead of strerror.
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: damaged, or not written by `mixco embed` ({error}); remove it, or give another"
        ) from None


def _write_safetensors(
    path: Path, names: Sequence[str], dim: int, parts: Iterable[Tensor], notes: str
) -> None:
    text = b"".join(_encoded(name) + b"\0" for name in names)
    end = 4 * len(names) * dim
    header = json.dumps(
        {
            "__metadata__": {"mixco-vectors": notes},
            "vectors": {"dtype": "F32", "shape": [len(names), dim], "data_offsets": [0, end]},
            "paths": {"dtype": "U8", "shape": [len(text)], "data_offsets": [end, end + len(text)]},
        }
    ).encode()
    header += b" " * (-len(header) % 64 + 56)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        _write_parts(file, parts)
        file.write(text)


def _read_safetensors(path: Path, notes_only: bool) -> tuple[str, tuple[str, ...], Tensor]:
    with safe_open(path, "pt") as file:
        notes = (file.metadata() or {})["mixco-vectors"]
        if notes_only:
            return notes, (), torch.empty(0)
        text = file.get_tensor("paths").numpy().tobytes()
        names = tuple(name.decode("utf-8", "surrogateescape") for name in text.split(b"\0")[:-1])
        return notes, names, file.get_tensor("vectors")


def _write_npz(
    path: Path, names: Sequence[str], dim: int, parts: Iterable[Tensor], notes: str
) -> None:
    head = {"descr": "<f4", "fortran_order": False, "shape": (len(names), dim)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("vectors.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, head)
            _write_parts(file, parts)
        for key, values in (("paths", np.array(names, np.str_)), ("notes", np.array(notes))):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)


def _read_npz(path: Path, notes_only: bool) -> tuple[str, tuple[str, ...], Tensor]:
    with np.load(path, allow_pickle=False) as file:
        if notes_only:
            return str(file["notes"]), (), torch.empty(0)
        names = tuple(map(str, file["paths"].tolist()))
        return str(file["notes"]), names, torch.from_numpy(file["vectors"])


def _write_parquet(
    path: Path, names: Sequence[str], dim: int, parts: Iterable[Tensor], notes: str
) -> None:
    pa = pyarrow()
    parquet = pa.parquet
    fields = [("path", pa.string()), ("vector", pa.list_(pa.float32(), dim))]
    schema = pa.schema(fields, metadata={"mixco": notes})
    done = 0
    # Vectors have no repeated values and do not compress.
    with parquet.ParquetWriter(path, schema, use_dictionary=False, compression="none") as writer:
        for part in parts:
            values = pa.array(part.flatten().numpy())
            columns = [
                pa.array(names[done : done + len(part)], pa.string()),
                pa.FixedSizeListArray.from_arrays(values, dim),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            done += len(part)


def _read_parquet(path: Path, notes_only: bool) -> tuple[str, tuple[str, ...], Tensor]:
    parquet = pyarrow().parquet
    with parquet.ParquetFile(path) as file:
        metadata = file.schema_arrow.metadata or {}
        notes = metadata[b"mixco"].decode()
        if notes_only:
            return notes, (), torch.empty(0)
        dim = file.schema_arrow.field("vector").type.list_size
        names: list[str] = []
        vectors = torch.empty(file.metadata.num_rows, dim)
        for batch in file.iter_batches():
            flat = batch.column("vector").flatten().to_numpy()
            vectors[len(names) : len(names) + len(batch)] = torch.tensor(flat).view(-1, dim)
            names += batch.column("path").to_pylist()
        return notes, tuple(names), vectors


def _write_parts(file: IO[bytes] | io.BufferedIOBase, parts: Iterable[Tensor]) -> None:
    for part in parts:
        file.write(part.contiguous().numpy().astype("<f4", copy=False).tobytes())


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
