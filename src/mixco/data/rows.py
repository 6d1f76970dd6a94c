"""Images in the rows of Parquet files.

A row can be read only with its row group, which may be a hundred images or many thousands. So rows are
read in their order where that is possible (packing, embedding). Training asks for them in random order:
then `sliced` copies the images into the cache once, where each can be read alone.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixco.data.opening import UnreadableImage
from mixco.data.storage import Slices, used_files
from mixco.runtime.errors import UserError
from mixco.runtime.files import free_space, replacing

FORMAT = 1  # part of the key of a copy
KEPT = 2  # row groups in memory, for neighbours that threads ask for at once
AT_ONCE = 256  # rows copied at once


def pyarrow() -> Any:
    """The package, with pyarrow.parquet. Raises UserError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "Parquet files need pyarrow: pip install 'mixco[parquet]'; or use another kind of file"
        ) from None
    return pyarrow


def reason_of(error: Exception) -> str:
    """The system's reason, or the first line of Arrow's."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


@dataclass(frozen=True)
class Rows:
    """Images in a column of Parquet files."""

    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    """For each path the column with the bytes of image files: "image.bytes"."""
    file: Tensor
    """int32 [N]: which of the paths."""
    row: Tensor
    """int64 [N]"""

    def __len__(self) -> int:
        return len(self.file)

    def read(self, index: int) -> bytes:
        file = int(self.file[index])
        return _read_row(self.paths[file], self.columns[file], int(self.row[index]))

    def take(self, indices: Sequence[int]) -> "Rows":
        rows = torch.as_tensor(indices, dtype=torch.int64)
        used, file = used_files(self.file[rows])
        return Rows(
            tuple(self.paths[i] for i in used),
            tuple(self.columns[i] for i in used),
            file,
            self.row[rows],
        )


def sliced(
    rows: Rows, cache: Path, on_progress: Callable[[int, int], None] | None = None
) -> Slices:
    """The same images, copied into the cache, where each can be read alone. A copy is made once.

    on_progress(done, total) is called while copying.

    Raises UserError when the disk has too little room, and for a file that cannot be read.
    """
    copies = [_copy_path(path, column, cache) for path, column in _columns_of(rows)]
    needed = [
        (path, copy)
        for path, copy in zip(rows.paths, copies, strict=True)
        if _kept_sizes(copy) is None
    ]
    room = sum(path.stat().st_size for path, _ in needed)
    if room > free_space(cache):
        raise UserError(
            f"{cache}: streaming Parquet files in random order needs a copy of their images there, "
            f"{room / 2**30:.1f} GiB, but {free_space(cache) / 2**30:.1f} GiB are free; free the disk, "
            "or give --cache on another one, --loading packed, or tar shards"
        )
    done = 0
    for (path, column), copy in zip(_columns_of(rows), copies, strict=True):
        if _kept_sizes(copy) is None:
            for copied in _copy(path, column, copy):
                done += copied
                if on_progress:
                    on_progress(done, max(done, len(rows)))
    sizes = [found for copy in copies if (found := _kept_sizes(copy)) is not None]
    ends = [torch.cumsum(size, 0) for size in sizes]
    offset, size = torch.empty_like(rows.row), torch.empty_like(rows.row)
    for number, (each, end) in enumerate(zip(sizes, ends, strict=True)):
        mine = rows.file == number
        size[mine] = each[rows.row[mine]]
        offset[mine] = end[rows.row[mine]] - size[mine]
    return Slices(tuple(copies), rows.file, offset, size)


def _columns_of(rows: Rows) -> list[tuple[Path, str]]:
    return list(zip(rows.paths, rows.columns, strict=True))


def _copy_path(path: Path, column: str, cache: Path) -> Path:
    """Where the images of a file in its present state are copied to."""
    state = path.stat()
    key = repr((FORMAT, str(path.resolve()), column, state.st_size, state.st_mtime_ns))
    name = f"{path.stem[-40:]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.images"
    return cache / "shards" / name


def _kept_sizes(copy: Path) -> Tensor | None:
    """int64 [rows]: the bytes of each image in a whole copy; None if there is none."""
    try:
        sizes: Tensor = load_file(copy.with_suffix(".sizes.safetensors"))["size"]
        return sizes if copy.stat().st_size == int(sizes.sum()) else None
    except (OSError, SafetensorError, LookupError):
        return None


def _copy(path: Path, column: str, copy: Path) -> Iterator[int]:
    """Copy the images one after the other; yields how many more are done."""
    sizes: list[int] = []
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy) as temporary, temporary.open("wb") as out, _opened(path) as file:
            for batch in file.iter_batches(AT_ONCE, columns=[column], use_threads=False):
                table = pyarrow().Table.from_batches([batch]).flatten()
                for value in table.column(0):
                    data = value.as_py() or b""
                    sizes.append(len(data))
                    out.write(data)
                yield len(batch)
        with replacing(copy.with_suffix(".sizes.safetensors")) as temporary:
            save_file({"size": torch.tensor(sizes, dtype=torch.int64)}, temporary)
    except (OSError, ValueError) as error:  # Arrow raises both for damage
        raise UserError(
            f"{path}: its images cannot be copied to {copy} ({reason_of(error)}); free the disk, "
            "or give --cache on another one, or leave out the file"
        ) from None


def _opened(path: Path) -> Any:
    return pyarrow().parquet.ParquetFile(path)


class _Groups:
    """The row groups that were read last, in this process."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.files: OrderedDict[Path, tuple[Any, list[int]]] = OrderedDict()
        self.groups: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()

    def value(self, path: Path, column: str, row: int) -> bytes | None:
        # One at a time: threads that ask for neighbours would read the same group several times.
        with self.lock:
            file, ends = self._file(path)
            group = bisect_right(ends, row)
            key = (path, column, group)
            if key not in self.groups:
                table = file.read_row_group(group, columns=[column], use_threads=False)
                self.groups[key] = table.flatten().column(0)  # of "image.bytes" the inner one
            self.groups.move_to_end(key)
            while len(self.groups) > KEPT:
                self.groups.popitem(last=False)
            values = self.groups[key]
        data: bytes | None = values[row - ends[group] + len(values)].as_py()
        return data

    def _file(self, path: Path) -> tuple[Any, list[int]]:
        if path not in self.files:
            file = _opened(path)
            counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            self.files[path] = file, torch.tensor(counts).cumsum(0).tolist()
        self.files.move_to_end(path)
        while len(self.files) > KEPT:
            self.files.popitem(last=False)
        return self.files[path]


_groups = _Groups()


def _read_row(path: Path, column: str, row: int) -> bytes:
    try:
        data = _groups.value(path, column, row)
    except (OSError, ValueError) as error:
        raise UnreadableImage(reason_of(error)) from None
    if not data:
        raise UnreadableImage("the row has no bytes of an image")
    return data
