"""Where the bytes of images lie that are no files of their own: arrays, a zip file, tar shards.

An `ImageList` reads by its storage; without one, each image is a file below its root. A storage is
pickled to the worker processes; its tensors then lie in shared memory, once for all of them.
"""

import errno
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixco.data.opening import UnreadableImage

MOST_BYTES = 2**30  # of an image file; the most pixels allowed take less in any format


class Storage(Protocol):
    """Images inside of larger files."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold them. The images are the same as long as these do not change."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of an image file. Raises UnreadableImage."""

    def take(self, indices: Sequence[int]) -> "Storage":
        """Some of the images. Raises IndexError."""


@dataclass(frozen=True)
class Arrays:
    """Images stored as raw pixels in a few files, as those of CIFAR and STL-10 are."""

    paths: tuple[Path, ...]
    parts: tuple[NDArray[np.uint8], ...] = field(compare=False, repr=False)
    """One per path: uint8 [N, H, W, 3], memory-mapped where the file allows it."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB. Raises IndexError."""
        for part in self.parts:
            if index < len(part):
                picture: NDArray[np.uint8] = part[index]
                return picture
            index -= len(part)
        raise IndexError(index)

    def read(self, index: int) -> bytes:
        """The image as a PPM file."""
        pixels = self[index]
        height, width = pixels.shape[:2]
        return f"P6 {width} {height} 255\n".encode() + pixels.tobytes()

    def take(self, indices: Sequence[int]) -> "Arrays":
        """Some of the images, copied unless they are consecutive."""
        if isinstance(indices, range) and indices.step == 1:
            first, end, parts = indices.start, indices.stop, []
            for part in self.parts:
                parts.append(part[max(first, 0) : max(end, 0)])
                first, end = first - len(part), end - len(part)
            return Arrays(self.paths, tuple(parts))
        return Arrays(self.paths, (np.stack([self[i] for i in indices]),))


@dataclass(frozen=True)
class Zip:
    """Members of a zip file."""

    path: Path
    members: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> bytes:
        with reasons():
            return open_zip(self.path).read(self.members[index])

    def take(self, indices: Sequence[int]) -> "Zip":
        return replace(self, members=tuple(self.members[i] for i in indices))


@dataclass(frozen=True)
class Slices:
    """Parts of files, as the members of uncompressed tar files are."""

    paths: tuple[Path, ...]
    file: Tensor
    """int32 [N]: which of the paths."""
    offset: Tensor
    """int64 [N]: where an image begins in it, in bytes."""
    size: Tensor
    """int64 [N], in bytes."""

    def __len__(self) -> int:
        return len(self.file)

    def read(self, index: int) -> bytes:
        size = int(self.size[index])
        if size > MOST_BYTES:
            raise UnreadableImage("more than 1 GiB")
        # Opened each time: a position, and a file that is replaced meanwhile, are nobody else's.
        with reasons(), self.paths[int(self.file[index])].open("rb") as file:
            file.seek(int(self.offset[index]))
            data = file.read(size)
        if len(data) < size:
            raise UnreadableImage(f"{size - len(data):,} of its {size:,} bytes are missing")
        return data

    def open(self, index: int) -> BinaryIO:
        """What `read` gives, as a file that is read only as far as needed. Raises UnreadableImage."""
        path, size = self.paths[int(self.file[index])], int(self.size[index])
        with reasons():
            file = path.open("rb", buffering=0)
        return io.BufferedReader(_Window(file, int(self.offset[index]), size))

    def take(self, indices: Sequence[int]) -> "Slices":
        rows = torch.as_tensor(indices, dtype=torch.int64)
        used, file = used_files(self.file[rows])
        return Slices(tuple(self.paths[i] for i in used), file, self.offset[rows], self.size[rows])


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.FileIO, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.at)
        count = self.file.readinto(memoryview(buffer)[: max(0, self.size - self.at)]) or 0
        self.at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.at = start + offset
        return self.at

    def close(self) -> None:
        self.file.close()
        super().close()


def used_files(file: Tensor) -> tuple[list[int], Tensor]:
    """The numbers that occur, and the same files counted among them alone."""
    used, places = torch.unique(file, return_inverse=True)
    return used.tolist(), places.int()


class FileNames(Sequence[str]):
    """File names in one buffer, which is shared memory when it is pickled to a process.

    Python strings would be copied into each worker: directly, or page by page as their reference counts
    change. They take four times as much memory, too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.ends = torch.from_numpy(np.cumsum([len(name) for name in encoded], dtype=np.int64))
        """int64 [N]: where each name ends."""
        self.text = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), np.uint8))
        """uint8: UTF-8, one name after the other."""

    @classmethod
    def of(cls, text: Tensor, ends: Tensor) -> "FileNames":
        """From what it consists of."""
        names = cls.__new__(cls)
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        text = self.text.numpy().tobytes()
        for begin, end in pairwise([0, *self.ends.tolist()]):
            yield text[begin:end].decode("utf-8", "surrogateescape")

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts from the end, or raises IndexError
        begin = int(self.ends[index - 1]) if index else 0
        return (
            self.text[begin : int(self.ends[index])]
            .numpy()
            .tobytes()
            .decode("utf-8", "surrogateescape")
        )

    def take(self, indices: Sequence[int]) -> "FileNames":
        """Some of the names."""
        everything = list(self)
        return FileNames(everything[i] for i in indices)


@lru_cache(maxsize=4)
def open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@contextmanager
def reasons() -> Iterator[None]:
    """Turn the system's errors into UnreadableImage."""
    try:
        yield
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None
