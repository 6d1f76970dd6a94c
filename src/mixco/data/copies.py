"""Exact copies between two lists of images, such as test images that are in train too.

A short key of each image tells most of them apart. Only images whose key is in both lists are hashed.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mixco.data.image_list import ImageList
from mixco.data.images import Images
from mixco.data.opening import UnreadableImage
from mixco.data.packed import PackedImages
from mixco.data.pixel_format import spread

MOST_FILES = 100_000  # of each list whose files are opened; packed images are all compared
KEY_PIXELS = 16  # of the middle row; natural images seldom share them
KEY_BYTES = 64  # of the middle of a file, where its pixels are


class Copies(NamedTuple):
    """The images of a second list that are in a first one too."""

    pairs: list[tuple[str, str]]
    """(its name, the name of the first image that it is a copy of)"""
    compared: tuple[int, int]
    """How many images of the first and of the second list were compared."""


class _Side(NamedTuple):
    """One of the lists, as it is compared."""

    names: Sequence[str]
    keys: dict[int, bytes]
    """Row -> key. Copies have equal keys."""
    hash_of: Callable[[int], bytes | None]
    """Row -> a hash of the whole image; None where it can no longer be read."""


def exact_copies(first: Images, second: Images) -> Copies:
    """Find the images of the second list that are exact copies of images of the first.

    By their pixels where both lists are packed: as they were decoded, and reduced where they were longer
    than the canvases. Else by the bytes of their files, of at most MOST_FILES of each list, spread.
    """
    if isinstance(first, PackedImages) and isinstance(second, PackedImages):
        one, other = _pixels(first), _pixels(second)
    else:
        one, other = _files(first.source), _files(second.source)
    common = set(one.keys.values()) & set(other.keys.values())
    found: dict[bytes | None, int] = {}
    for row, key in one.keys.items():
        if key in common:
            found.setdefault(one.hash_of(row), row)
    found.pop(None, None)
    copies = {
        row: found.get(other.hash_of(row)) for row, key in other.keys.items() if key in common
    }
    return Copies(
        [(other.names[b], one.names[a]) for b, a in copies.items() if a is not None],
        (len(one.keys), len(other.keys)),
    )


def _pixels(images: PackedImages) -> _Side:
    canvases, extents = images.images.numpy(), images.extents.numpy()
    rows, (heights, widths) = np.arange(len(canvases))[:, None], extents.T[:, :, None]
    places = widths * np.arange(KEY_PIXELS) // KEY_PIXELS
    keys = np.concatenate([extents, canvases[rows, 0, heights // 2, places]], axis=1)

    def hash_of(row: int) -> bytes:
        height, width = extents[row]
        picture = canvases[row, :, :height, :width]
        return hashlib.blake2b(f"{picture.shape}".encode() + picture.tobytes()).digest()

    return _Side(images.files, {row: key.tobytes() for row, key in enumerate(keys)}, hash_of)


def _files(source: ImageList) -> _Side:
    keys = {row: _file_key(source, row) for row in spread(len(source.files), MOST_FILES)}

    def hash_of(row: int) -> bytes | None:
        try:
            return hashlib.blake2b(source.read(row)).digest()
        except UnreadableImage:
            return None

    return _Side(source.files, {row: key for row, key in keys.items() if key}, hash_of)


def _file_key(source: ImageList, row: int) -> bytes:
    """The length of a file and some bytes of its middle; empty where it cannot be read."""
    try:
        with source.open(row) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(length // 2)
            return b"%d %b" % (length, file.read(KEY_BYTES))
    except (UnreadableImage, OSError):
        return b""
