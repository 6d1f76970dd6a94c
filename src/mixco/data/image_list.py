"""A list of images: where they lie, their labels, and reading one of them."""

import io
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mixco.data.datasets import MAX_UNREADABLE
from mixco.data.decode import RGB, Pixel, Pixels, decode, read_header, reduce
from mixco.data.opening import UnreadableImage, in_main_thread, quietly
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, Channels

MOST_BYTES = 2**30  # of an image file; the most pixels allowed take less in any format


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

    def take(self, indices: Sequence[int]) -> "Arrays":
        """Some of the images, copied. Raises IndexError."""
        return Arrays(self.paths, (np.stack([self[i] for i in indices]),))


@dataclass(frozen=True)
class ImageList:
    """The images of one split, not decoded."""

    name: str
    """"sample/train", "tiny-imagenet/test", "photos/pretrain" """
    root: Path
    """A folder, or the sample's zip file."""
    files: Sequence[str]
    """Paths below root (or members of the zip), with slashes, sorted; "file:number" for arrays."""
    labels: tuple[int, ...] | None
    """Indices into `classes`, one per file; None without labels."""
    classes: tuple[str, ...]
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    """For normalisation, of pixels in [0, 1]."""
    arrays: Arrays | None = None
    """The images themselves, one per file name, where they are not image files."""
    pixel: Pixel = RGB
    """The format that the files are read in (see pixel_format.infer_pixel_format)."""
    max_unreadable: float = MAX_UNREADABLE
    """Fraction of the files that may be unreadable; they are left out. More raise an error."""
    notes: tuple[str, ...] = ()
    """What a person should know of the list, such as what was left aside."""

    @property
    def containers(self) -> tuple[Path, ...]:
        """The files that hold all the images; none where each image is its own file."""
        if self.arrays is not None:
            return self.arrays.paths
        return (self.root,) if self.is_zip else ()

    @cached_property
    def is_zip(self) -> bool:
        """A folder may end in .zip too."""
        return self.root.suffix == ".zip" and self.root.is_file()

    def read(self, index: int) -> bytes:
        """The bytes of an image file; an image of an array is written as PPM.

        Raises UnreadableImage.
        """
        if self.arrays is not None:
            pixels = self.arrays[index]
            height, width = pixels.shape[:2]
            return f"P6 {width} {height} 255\n".encode() + pixels.tobytes()
        with _reasons():
            if self.is_zip:
                return open_zip(self.root).read(self.files[index])
            with self.open(index) as file:
                return file.read()

    def open(self, index: int) -> BinaryIO:
        """What `read` gives, as a file that is read only as far as needed. Raises UnreadableImage."""
        if self.containers:
            return io.BytesIO(self.read(index))
        path = self.root / self.files[index]
        with _reasons():
            state = path.stat()
            # Reading a pipe would wait for ever, and some devices are endless.
            if not stat.S_ISREG(state.st_mode):
                raise UnreadableImage("not a regular file")
            if state.st_size > MOST_BYTES:
                raise UnreadableImage("more than 1 GiB")
            return path.open("rb")


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn the system's errors into UnreadableImage."""
    try:
        yield
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None


@lru_cache(maxsize=4)
def open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def picture_size(source: ImageList, index: int) -> tuple[int, int]:
    """Height and width from the file's header; (0, 0) where it cannot be read."""
    if source.arrays is not None:
        height, width = source.arrays[index].shape[:2]
        return height, width
    try:
        return read_header(source.read(index))[:2]
    except UnreadableImage:  # decode() will give the reason
        return 0, 0


def read_reduced(source: ImageList, index: int, side: int) -> Pixels | str:
    """[H, W, C] in source.pixel's format, no side above `side`; or why it cannot be read."""
    if source.arrays is not None:
        pixels = source.arrays[index]
        fits = max(pixels.shape[:2]) <= side
        return pixels if fits else np.asarray(reduce(Image.fromarray(pixels), side))
    try:
        return decode(source.read(index), side, source.pixel)
    except UnreadableImage as error:
        return str(error)


def any_readable(source: ImageList, indices: Iterable[int], side: int) -> bool:
    """Can any of these files be read? They are tried in turn, until one can."""
    with quietly() if in_main_thread() else nullcontext():
        return any(not isinstance(read_reduced(source, i, side), str) for i in indices)


def torch_type(pixel: Pixel) -> torch.dtype:
    return torch.uint8 if pixel.bits == 8 else torch.uint16
