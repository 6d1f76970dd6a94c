"""A survey of image files within a time limit: first their headers, then their pixels.

Each pass takes blocks of neighbouring files from all over the list. If the time ends early, it has still
seen every part of the list, and neighbours that look alike.
"""

import hashlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixco.data.decode import RGB, read_header
from mixco.data.image_list import ImageList, read_reduced
from mixco.data.opening import UnreadableImage, opened, quietly

T = TypeVar("T")

BLOCK = 64  # neighbouring files that are taken together
SIDE = 64  # pixels; files are decoded at about this size
THUMBNAIL = 16
GREY = 2  # levels; the rounding of JPEG makes the channels of a grey image differ by so much


class Header(NamedTuple):
    """What the header of a file says."""

    height: int
    width: int
    kind: str
    """RGB, grey, 16 bits, transparent, palette, CMYK, or another mode by Pillow's name."""
    length: int
    """In bytes."""


class Look(NamedTuple):
    """What the pixels of a file show."""

    grey: bool
    """Are all channels equal, whatever the header says?"""
    thumbnail: NDArray[np.uint8]
    """uint8 [16, 16]: lightness."""
    pixels: bytes
    """A hash of them, at the scale that they were decoded at."""


def read_headers(
    source: ImageList, *, seconds: float, workers: int, at_least: int = 0
) -> dict[int, Header | str]:
    """Index -> header, or why it cannot be read, for as many files as the time allows."""
    return _within(lambda i: _header(source, i), len(source.files), seconds, workers, at_least)


def look_at(
    source: ImageList, *, seconds: float, workers: int, at_least: int
) -> dict[int, Look | str]:
    """Index -> what the pixels show, or why they cannot be read, for as many files as the time allows.

    Every file is decoded to its end, at a small scale, so that damage anywhere is found.
    """
    return _within(lambda i: _look(source, i), len(source.files), seconds, workers, at_least)


def copies(
    source: ImageList, headers: dict[int, Header | str], *, seconds: float
) -> tuple[list[list[int]], int]:
    """Groups of files with the same bytes, and how many files were compared within the time.

    Only files of the same length and size are read.
    """
    alike: defaultdict[Header, list[int]] = defaultdict(list)
    for index in sorted(headers):
        header = headers[index]
        if isinstance(header, Header):
            alike[header].append(index)
    end = time.monotonic() + seconds
    compared, groups = 0, []
    for some in alike.values():
        if len(some) > 1 and time.monotonic() > end:
            continue
        compared += len(some)
        if len(some) == 1:
            continue
        same: defaultdict[bytes, list[int]] = defaultdict(list)
        for index in some:
            try:
                data = source.read(index)
            except UnreadableImage:
                continue  # it was removed in the meantime
            same[hashlib.blake2b(data, digest_size=16).digest()].append(index)
        groups += [group for group in same.values() if len(group) > 1]
    return sorted(groups), compared


def _within(
    work: Callable[[int], T], count: int, seconds: float, workers: int, at_least: int
) -> dict[int, T]:
    """Index -> work(index), for as many indices as the time allows, but at least `at_least`."""
    found: dict[int, T] = {}
    end = time.monotonic() + seconds
    blocks = list(_spread(count))
    at_once = max(1, workers)
    # Threads suffice: Pillow lets go of the interpreter while it decodes.
    with quietly(), ThreadPoolExecutor(at_once) as pool:
        for start in range(0, len(blocks), at_once):
            if len(found) >= at_least and time.monotonic() > end:
                break
            some = blocks[start : start + at_once]
            for block, results in zip(
                some, pool.map(lambda block: [work(i) for i in block], some), strict=True
            ):
                found |= zip(block, results, strict=True)
    return found


def _spread(count: int) -> Iterator[range]:
    """Blocks of neighbours that cover range(count), each far from the one before."""
    blocks = -(-count // BLOCK)
    stride = max(1, int(0.618 * blocks))
    while math.gcd(stride, blocks) != 1:
        stride += 1
    for i in range(blocks):
        start = i * stride % blocks * BLOCK
        yield range(start, min(start + BLOCK, count))


def _header(source: ImageList, index: int) -> Header | str:
    if source.arrays is not None:
        height, width, _ = source.arrays[index].shape
        return Header(height, width, "RGB", 3 * height * width)
    try:
        if source.pixel != RGB:
            data = source.read(index)
            seen = read_header(data)
            return Header(seen.height, seen.width, str(seen.pixel), len(data))
        with source.open(index) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            with opened(file, length) as image:
                return Header(image.height, image.width, _kind(image), length)
    except UnreadableImage as error:
        return str(error)


def _kind(image: Image.Image) -> str:
    tile = getattr(image, "tile", None)  # how the decoder will read it
    raw = str(tile[0][3]) if tile else ""
    if image.mode in ("I", "F") or "16" in image.mode or ";16" in raw:
        return "16 bits"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return "transparent"
    return {"L": "grey", "1": "grey", "P": "palette"}.get(image.mode, image.mode)


def _look(source: ImageList, index: int) -> Look | str:
    pixels = read_reduced(source, index, SIDE)
    if isinstance(pixels, str):
        return pixels
    channels = pixels.astype(np.int32)
    differences = channels[..., :-1] - channels[..., 1:]
    if source.pixel == RGB:
        small = Image.fromarray(pixels).convert("L")
    else:
        lightness = channels.mean(2)
        small = Image.fromarray((lightness * 255 / max(1, lightness.max())).astype(np.uint8))
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    pixel_hash = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16)
    is_grey = bool(np.abs(differences).max(initial=0) <= GREY)
    return Look(is_grey, np.asarray(thumbnail), pixel_hash.digest())
