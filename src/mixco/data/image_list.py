"""A list of images: where they lie, their labels, and reading one of them."""

import io
import stat
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from mixco.data.datasets import MAX_UNREADABLE
from mixco.data.decode import RGB, Pixel, Pixels, decode, read_header, reduce
from mixco.data.opening import UnreadableImage, in_main_thread, quietly
from mixco.data.storage import MOST_BYTES, Arrays, FileNames, Slices, Storage, reasons
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, Channels


@dataclass(frozen=True)
class ImageList:
    """The images of one split, not decoded."""

    name: str
    """"sample/train", "tiny-imagenet/test", "photos/pretrain" """
    root: Path
    """The folder that the images, or the files that hold them, lie in."""
    files: Sequence[str]
    """Paths below root, with slashes, sorted; of images in a storage "file/member" or "file:number"."""
    labels: tuple[int, ...] | None
    """Indices into `classes`, one per file; None without labels."""
    classes: tuple[str, ...]
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    """For normalisation, of pixels in [0, 1]."""
    stored: Storage | None = None
    """The images themselves, one per file name; None where each is a file below root."""
    pixel: Pixel = RGB
    """The format that the files are read in (see pixel_format.infer_pixel_format)."""
    max_unreadable: float = MAX_UNREADABLE
    """Fraction of the files that may be unreadable; they are left out. More raise an error."""
    revision: str = ""
    """The commit of a set of the hub."""
    damaged: tuple[tuple[str, str], ...] = ()
    """(file, reason) of the files that hold images and cannot be read to their end."""
    notes: tuple[str, ...] = ()
    """What a person should know of the list, such as what was left aside."""

    @property
    def containers(self) -> tuple[Path, ...]:
        """The files that hold all the images; none where each image is its own file."""
        return () if self.stored is None else self.stored.paths

    @property
    def arrays(self) -> Arrays | None:
        """The pixels, where they need no decoding."""
        return self.stored if isinstance(self.stored, Arrays) else None

    def take(self, indices: Sequence[int]) -> "ImageList":
        """Some of the images. Raises IndexError."""
        if len(indices) == len(self.files) and list(indices) == list(range(len(indices))):
            return self  # arrays would be copied
        return replace(
            self,
            files=self.files.take(indices)
            if isinstance(self.files, FileNames)
            else tuple(self.files[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            stored=None if self.stored is None else self.stored.take(indices),
        )

    def read(self, index: int) -> bytes:
        """The bytes of an image file; an image of an array is written as PPM.

        Raises UnreadableImage.
        """
        if self.stored is not None:
            return self.stored.read(index)
        with reasons(), self.open(index) as file:
            return file.read()

    def open(self, index: int) -> BinaryIO:
        """What `read` gives, as a file that is read only as far as needed. Raises UnreadableImage."""
        if isinstance(self.stored, Slices):
            return self.stored.open(index)
        if self.stored is not None:
            return io.BytesIO(self.read(index))
        path = self.root / self.files[index]
        with reasons():
            state = path.stat()
            # Reading a pipe would wait for ever, and some devices are endless.
            if not stat.S_ISREG(state.st_mode):
                raise UnreadableImage("not a regular file")
            if state.st_size > MOST_BYTES:
                raise UnreadableImage("more than 1 GiB")
            return path.open("rb")


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
