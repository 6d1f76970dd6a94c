"""Small images, decoded once, in one memory-mapped safetensors file of uint8 or uint16."""

import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from mixco.data.decode import RGB, Pixel, Pixels
from mixco.data.image_list import ImageList, any_readable, picture_size, read_reduced
from mixco.data.images import refuse_too_many
from mixco.data.opening import quietly
from mixco.data.packed import PackedImages
from mixco.runtime.errors import UserError
from mixco.runtime.files import in_line, refuse_other_than_utf8, temporary_name

FORMAT = 4  # part of the key: raise it when the same files are packed differently
AHEAD = 512  # images decoded ahead of writing
AT_ONCE = 16  # images that a thread decodes at once
SMALL = 96  # longer side in pixels, up to which one thread is the fastest


def pack(
    source: ImageList,
    *,
    size: int,
    cache: Path,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    leave_out: Mapping[str, str] | None = None,
) -> PackedImages:
    """Decode the images of a list into one file below `cache`, or find the file of an earlier run.

    All canvases are squares of the longest side of any image, at most twice `size`, the encoder's input
    in pixels. Longer images are reduced to it in their proportions; none is enlarged or cropped. The
    file's name holds a key of the source's state (`state_key`), so a changed source is packed anew. So
    is one of whose files more can be read by now: a network disk may have failed for a moment.

    workers: threads for images that are not small; None for one per core.
    on_progress(done, total) is called while packing.
    leave_out: name (see files.in_line) -> reason, of files that are left out even where they can be read
        by now, since the run began without them.

    Raises UserError when more images cannot be read than the source allows, and when the disk is too
    small.
    """
    path = packed_path(source, size, cache)
    refuse_other_than_utf8(cache, "--cache")
    if not is_whole(path) or any_readable(source, _unreadable_in(path), 2 * size):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _write(source, 2 * size, path, workers, on_progress)
        except OSError as error:
            # Windows does not replace a mapped file: another process may have packed the same images.
            if not is_whole(path):
                raise UserError(
                    f"{path}: cannot be written ({error.strerror}); free the disk or give --cache"
                ) from None
    with safe_open(path, "pt") as file:  # maps the tensors, copy-on-write
        notes = json.loads(file.metadata()["mixco"])
        images, extents = file.get_tensor("images"), file.get_tensor("extents")
    kept, unreadable = notes["kept"], [(i, reason) for i, reason in notes["unreadable"]]
    if leave_out and (
        rows := [row for row, i in enumerate(kept) if in_line(source.files[i]) in leave_out]
    ):
        unreadable += [(kept[row], leave_out[in_line(source.files[kept[row]])]) for row in rows]
        stay = [row for row in range(len(kept)) if row not in set(rows)]
        images, extents, kept = images[stay], extents[stay], [kept[row] for row in stay]
    refuse_too_many(source, sorted(unreadable))
    labels = None
    if source.labels is not None:
        labels = torch.tensor([source.labels[i] for i in kept])
    return PackedImages(
        images=images,
        extents=extents,
        labels=labels,
        files=source.files
        if len(kept) == len(source.files)
        else tuple(source.files[i] for i in kept),
        unreadable_files=(
            *source.damaged,
            *((source.files[i], reason) for i, reason in sorted(unreadable)),
        ),
        source=source,
        path=path,
    )


def _unreadable_in(path: Path) -> list[int]:
    """The indices of the files that could not be read when they were packed."""
    with safe_open(path, "pt") as file:
        return [index for index, _ in json.loads(file.metadata()["mixco"])["unreadable"]]


def packed_path(source: ImageList, size: int, cache: Path) -> Path:
    """Where the packed file of a source in its present state is, or would be."""
    # The name of a folder may be as long as a file's may be.
    name = source.name.replace("/", "-")[-50:]
    return cache / f"{name}-{state_key(source, size)}.safetensors"


def state_key(source: ImageList, size: int) -> str:
    """A hash of the names, sizes and times of all files, the pixel format and the input size."""
    place = f"{FORMAT}/{size}/{source.root.resolve()}"
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape"))
    if source.pixel != RGB:
        digest.update(f"/{source.pixel}".encode())
    for path in source.containers:
        state = path.stat()
        digest.update(_state_text(state))
    for name in source.files:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        if not source.containers:
            try:
                state = (source.root / name).stat()
            except OSError:  # a dangling link; packing reports it as unreadable
                continue
            digest.update(_state_text(state))
    return digest.hexdigest()[:16]


def _state_text(state: os.stat_result) -> bytes:
    """Size and times. Who puts back the time of modification (rsync, tar) moves that of the change."""
    return f"{state.st_size}/{state.st_mtime_ns}/{state.st_ctime_ns}".encode()


def _write(
    source: ImageList,
    longest: int,
    path: Path,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    count = len(source.files)
    # Each writer has its own: other processes may pack the same images at the same time.
    temporary, pictures = temporary_name(path), temporary_name(path)
    extents: list[tuple[int, int]] = []
    kept: list[int] = []
    unreadable: list[tuple[int, str]] = []
    # The size of the canvases is known at the end; until then the images lie one after the other.
    try:
        with quietly(), _threads(source, workers) as pool, pictures.open("wb") as file:
            for few, block in _in_order(pool, source, longest, count):
                written = file.write(block.planes)
                extents += block.extents
                unreadable += block.unreadable
                lost = {index for index, _ in block.unreadable}
                kept += [index for index in few if index not in lost]
                if few.start == 0 and kept:  # an estimate from the first images
                    likely = written // len(kept) + _canvas(source.pixel, extents)
                    _refuse_without_room(path.parent, count * likely)
                if on_progress:
                    on_progress(few.stop, count)
        refuse_too_many(source, unreadable)
        _refuse_without_room(path.parent, len(kept) * _canvas(source.pixel, extents))
        notes = json.dumps({"kept": kept, "unreadable": unreadable})
        side = max(map(max, extents))
        with pictures.open("rb") as decoded, temporary.open("wb") as file:
            file.write(_header([len(kept), source.pixel.channels, side, side], source.pixel, notes))
            file.write(np.array(extents, np.int64).tobytes())
            for some in _cut(range(len(extents)), AHEAD):
                few_extents = extents[some.start : some.stop]
                file.write(_canvases(decoded, few_extents, source.pixel, side).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        pictures.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)


def _threads(source: ImageList, workers: int | None) -> ThreadPoolExecutor:
    """Threads, since Pillow releases the interpreter's lock while it decodes.

    One thread is faster for small images: several would wait for the lock longer than they decode.
    """
    first = range(min(AT_ONCE, len(source.files)))
    longest = max((max(picture_size(source, i)) for i in first), default=0)
    return ThreadPoolExecutor(1 if longest <= SMALL else workers or os.cpu_count())


def _canvas(pixel: Pixel, extents: Sequence[tuple[int, int]]) -> int:
    """Bytes of a canvas that can hold each of these images."""
    return pixel.bytes * max(map(max, extents)) ** 2


def _refuse_without_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: packing needs {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB "
            "are free; free the disk, give --cache on another one, a smaller --size, or --loading "
            "streamed"
        )


class _Block(NamedTuple):
    """A few decoded images, in order, and those that could not be read."""

    planes: bytes
    """The pixels of each image [C, H, W], one after the other."""
    extents: list[tuple[int, int]]
    unreadable: list[tuple[int, str]]
    """(index, reason)"""


def _in_order(
    pool: ThreadPoolExecutor, source: ImageList, longest: int, count: int
) -> Iterator[tuple[range, _Block]]:
    """Decode all images in order, a few per task, with a bounded number in memory.

    Handing over images one by one would take longer than decoding a small one.
    """
    for part in _cut(range(count), AHEAD):
        some = _cut(part, AT_ONCE)
        yield from zip(some, pool.map(lambda few: _decode(source, few, longest), some), strict=True)


def _decode(source: ImageList, few: range, longest: int) -> _Block:
    planes: list[bytes] = []
    extents: list[tuple[int, int]] = []
    unreadable: list[tuple[int, str]] = []
    for index in few:
        found = read_reduced(source, index, longest)
        if isinstance(found, str):
            unreadable.append((index, found))
        else:
            planes.append(found.transpose(2, 0, 1).tobytes())
            extents.append(found.shape[:2])
    return _Block(b"".join(planes), extents, unreadable)


def _canvases(
    pictures: BinaryIO, extents: Sequence[tuple[int, int]], pixel: Pixel, side: int
) -> Pixels:
    """The next images of a file, each in the top left of its canvas: [n, C, side, side]."""
    canvases = np.zeros((len(extents), pixel.channels, side, side), pixel.dtype)
    for canvas, (height, width) in zip(canvases, extents, strict=True):
        planes = np.frombuffer(pictures.read(pixel.bytes * height * width), pixel.dtype)
        canvas[:, :height, :width] = planes.reshape(pixel.channels, height, width)
    return canvases


def _cut(numbers: range, size: int) -> list[range]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _header(shape: list[int], pixel: Pixel, notes: str) -> bytes:
    """A safetensors header, behind which pixels can be streamed."""
    content = json.dumps(_layout(shape, pixel, notes)).encode()
    content += b" " * (-len(content) % 64 + 56)  # pixels begin at a multiple of 64
    return struct.pack("<Q", len(content)) + content


def _layout(shape: list[int], pixel: Pixel, notes: str) -> dict[str, Any]:
    begin, pixels = 16 * shape[0], math.prod(shape) * pixel.bits // 8
    return {
        "__metadata__": {"mixco": notes},
        # The int64 numbers come first: behind the pixels they might not be aligned.
        "extents": {"dtype": "I64", "shape": [shape[0], 2], "data_offsets": [0, begin]},
        "images": {
            "dtype": f"U{pixel.bits}",
            "shape": shape,
            "data_offsets": [begin, begin + pixels],
        },
    }


def is_whole(path: Path) -> bool:
    """Whether there is a packed file with a correct header and the length that it states."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        shape, notes = header["images"]["shape"], header["__metadata__"]["mixco"]
        length += 8 + header["images"]["data_offsets"][1]
        pixel = Pixel(shape[1], int(header["images"]["dtype"][1:]))
        whole = header == _layout(shape, pixel, notes) and path.stat().st_size == length
        return bool(whole and len(json.loads(notes)["kept"]) == shape[0])
    except (OSError, ValueError, LookupError, TypeError, struct.error, MemoryError, OverflowError):
        return False
