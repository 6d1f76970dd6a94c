"""Files of any number of channels or more than 8 bits: NumPy arrays, and TIFFs beyond Pillow.

Raises ValueError for a file that cannot be read; its message says why.
"""

import zipfile
from io import BytesIO
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

NUMPY = (b"\x93NUMPY", b"PK\3\4")
TIFF = (b"II*\0", b"MM\0*", b"II+\0")  # the last one is BigTIFF
BLACK_IS_ZERO, COLOURS = 1, 2  # values of the tag PhotometricInterpretation


class Header(NamedTuple):
    """What a file's header says."""

    height: int
    width: int
    channels: int
    bits: int
    """8; 16 for anything deeper."""


def is_array(data: bytes) -> bool:
    """Whether it is an .npy or .npz file, by its first bytes."""
    return data.startswith(NUMPY)


def header(data: bytes) -> Header | None:
    """The header of a NumPy array, or of a TIFF that Pillow shows only in part; else None.

    The channels of a TIFF are its samples, or its pages where each page has one sample.
    """
    if is_array(data):
        with _opened(data) as file:
            shape, _, dtype = _array_header(file)
        return Header(*shape, 8 if dtype.itemsize == 1 else 16)
    tiff = _tiff_header(data)
    if tiff is None or tiff.shown:
        return None
    return Header(tiff.height, tiff.width, max(tiff.samples, tiff.pages), tiff.bits)


def read(data: bytes, channels: int) -> NDArray[Any] | None:
    """[H, W, channels], numbers of a NumPy array or of a TIFF of these channels; else None.

    A greyscale array gives [H, W, 1] also when three channels are asked for. Arrays of objects are
    refused: reading them could run code.
    """
    if not is_array(data):
        tiff = _tiff_header(data)
        if tiff is None or channels == 1:
            return None
        if channels in (tiff.samples, tiff.pages if tiff.samples == 1 else 0):
            whole = tiff.shown and (tiff.bits == 8 or not tiff.plain)
            return None if whole else _read_tiff(data, channels)
        refuse_other(1 if tiff.shown else max(tiff.samples, tiff.pages), channels)
        return None
    with _opened(data) as file:
        shape, fortran, dtype = _array_header(file)
        if shape[0] == channels != shape[2]:
            raise ValueError(
                f"an array [{', '.join(map(str, shape))}]; expected [H, W, {channels}]"
            )
        refuse_other(shape[2], channels)
        size = int(np.prod(shape)) * dtype.itemsize
        content = file.read(size)
    if len(content) < size:
        raise ValueError(f"cut short: {len(content):,} of {size:,} bytes of numbers")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def in_bits(found: NDArray[Any], bits: int) -> NDArray[np.uint8 | np.uint16]:
    """Numbers of any type as uint8 or uint16, scaled so that 255 and 65535 mean the same.

    Wider integers must lie in 0 to 65535, floats in [0, 1], where 1 is the maximum. Raises ValueError.
    """
    most = 255 if bits == 8 else 65535
    kind = np.uint8 if bits == 8 else np.uint16
    if found.dtype == np.uint8:
        return found if bits == 8 else found.astype(np.uint16) * np.uint16(257)
    low, high = found.min(), found.max()
    top = 1 if found.dtype.kind == "f" else 65535
    if not (low >= 0 and high <= top):  # neither is NaN
        raise ValueError(f"numbers from {low:g} to {high:g}; expected {found.dtype} in 0 to {top}")
    if found.dtype.kind != "f" and bits == 16:
        return found.astype(np.uint16)
    return np.rint(found * (most / top)).astype(kind)


def refuse_other(found: int, channels: int) -> None:
    """Raises ValueError for another number of channels, but one can be repeated to three."""
    if found != channels and (found, channels) != (1, 3):
        raise ValueError(f"{found} channel{'s' if found > 1 else ''}, not {channels}")


def _opened(data: bytes) -> IO[bytes]:
    """An .npy file, or the only one within an .npz file, which is a zip file."""
    if data.startswith(NUMPY[0]):
        return BytesIO(data)
    archive = zipfile.ZipFile(BytesIO(data))
    members = archive.infolist()
    if len(members) != 1:
        raise ValueError(f"{len(members)} arrays in it; expected one")
    return archive.open(members[0])


def _array_header(file: IO[bytes]) -> tuple[tuple[int, int, int], bool, np.dtype[Any]]:
    """Shape [H, W, C], whether in Fortran order, and dtype. Leaves the file at the first number."""
    versions = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, fortran, dtype = versions[np.lib.format.read_magic(file)](file)
    except Exception as error:  # damaged headers fail in many ways
        raise ValueError("a damaged array, or one with named fields") from error
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an array {list(shape)}; expected [H, W] or [H, W, C]")
    if dtype.kind not in "uif":
        raise ValueError(f"an array of {dtype}; expected numbers")
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    return (height, width, channels), fortran, dtype


class _Tiff(NamedTuple):
    height: int
    width: int
    samples: int
    """Per pixel."""
    pages: int
    """1 where a pixel has several samples."""
    bits: int
    plain: bool
    """Samples are intensities: no palette, inks, or luma and chroma."""
    shown: bool
    """Pillow shows all of it: greyscale, RGB, either with alpha, or a TIFF that is not plain."""


def _tiff_header(data: bytes) -> _Tiff | None:
    if not data.startswith(TIFF):
        return None
    try:
        return _first_page(data)
    except Exception as error:  # damaged files raise many kinds
        raise ValueError("a damaged TIFF") from error


def _first_page(data: bytes) -> _Tiff:
    file = BytesIO(data)
    tags = ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    seen = {0, tags.next}  # the chain of pages of a damaged file may be a ring
    file.seek(tags.next)
    tags.load(file)
    samples, depth = int(tags.get(277, 1)), max(tags.get(258, (1,)))
    plain = tags.get(262, BLACK_IS_ZERO) in (BLACK_IS_ZERO, COLOURS)
    alpha = samples in (2, 4) and tags.get(338, (0,))[-1] in (1, 2)
    height, width, follows = int(tags[257]), int(tags[256]), tags.next
    pages = 1
    while samples == 1 and plain and follows not in seen:
        seen.add(follows)
        pages += 1
        file.seek(follows)
        tags.load(file)
        follows = tags.next
    return _Tiff(
        height,
        width,
        samples,
        pages,
        8 if depth <= 8 else 16,
        plain,
        not plain or alpha or samples == 3 or (samples == 1 and pages == 1),
    )


def _read_tiff(data: bytes, channels: int) -> NDArray[Any]:
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            "a TIFF of several channels needs tifffile: pip install 'mixco[tiff]'"
        ) from None
    with tifffile.TiffFile(BytesIO(data)) as file:
        series = file.series[0]
        axes, shape = series.axes, series.shape
        which = axes.replace("Y", "").replace("X", "")
        if len(which) != 1 or shape[axes.index(which)] != channels:
            raise ValueError(f"a TIFF with axes {axes} {list(shape)}; expected {channels} channels")
        found: NDArray[Any] = series.asarray()
    if found.shape != shape:
        raise ValueError("a damaged TIFF")
    return found.transpose(axes.index("Y"), axes.index("X"), axes.index(which))
