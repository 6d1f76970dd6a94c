"""Files of any number of channels or more than 8 bits: NumPy arrays, and TIFFs beyond Pillow.

Raises ValueError for a file that cannot be read; its message says why.
"""

import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

NUMPY = (b"\x93NUMPY", b"PK\3\4")
TIFF = (b"II*\0", b"MM\0*", b"II+\0")  # the last one is BigTIFF
WHITE_IS_ZERO, BLACK_IS_ZERO, COLOURS = 0, 1, 2  # values of the tag PhotometricInterpretation
UNSIGNED, SIGNED, FLOATING = 1, 2, 3  # of SampleFormat
# (several samples a pixel, kind) -> the bits that a sample may have for Pillow to know what it is.
PILLOWS = {
    (False, UNSIGNED): (1, 2, 4, 8, 12, 16, 32),
    (False, SIGNED): (16, 32),
    (False, FLOATING): (32,),
    (True, UNSIGNED): (8, 16),
}
REDUCED, MASK = 1, 4  # bits of NewSubfileType
OLD_REDUCED = 2  # a value of SubfileType


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
    return Header(tiff.height, tiff.width, tiff.channels, tiff.bits)


def read(data: bytes, channels: int) -> NDArray[Any] | None:
    """[H, W, C], numbers of a NumPy array, or of a TIFF that Pillow does not show whole; else None.

    C is `channels`, or 1 where three are asked for. For one channel of a TIFF of pages it is the first.
    Arrays of objects are refused: reading them could run code.
    """
    if not is_array(data):
        tiff = _tiff_header(data)
        if tiff is None or (
            tiff.shown and (tiff.bits == 8 or tiff.samples != channels or channels == 1)
        ):
            return None
        if channels == 1 and tiff.samples == 1:
            tiff = tiff._replace(pages=tiff.pages[:1])
        refuse_other(tiff.channels, channels)
        return _read_tiff(data, tiff)
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

    Wider integers must lie in 0 to 65535, floats in [0, 1], where 1 is the maximum. Raises ValueError
    for others, and for NaN: clipping them would leave little of an image, and nobody would know.
    """
    most = 255 if bits == 8 else 65535
    kind = np.uint8 if bits == 8 else np.uint16
    if found.dtype == np.uint8:
        return found if bits == 8 else found.astype(np.uint16) * np.uint16(257)
    if found.dtype == np.int8:
        raise ValueError("signed bytes; expected uint8")
    low, high = found.min(), found.max()
    top = 1 if found.dtype.kind in "fb" else 65535
    if not (low >= 0 and high <= top):  # neither is NaN
        what = "NaN among its numbers" if low != low else f"numbers from {low:g} to {high:g}"
        raise ValueError(f"{what}; expected {found.dtype} in 0 to {top}")
    if found.dtype.kind in "ui" and bits == 16:
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
    pages: tuple[int, ...]
    """The numbers of the pages that are channels; one page where a pixel has several samples."""
    bits: int
    white_is_zero: bool
    shown: bool
    """Pillow shows all of it: greyscale, RGB, either with alpha, or palettes, inks, luma and chroma."""

    @property
    def channels(self) -> int:
        return max(self.samples, len(self.pages))


class _Page(NamedTuple):
    """What a page's tags say. Pages that are channels of one image have equal ones."""

    height: int
    width: int
    samples: int
    depth: int
    """Bits of a sample."""
    kind: int
    """UNSIGNED, SIGNED or FLOATING"""
    white_is_zero: bool
    """In more than 8 bits. (In fewer, Pillow takes care of it.)"""
    plain: bool
    """Samples are intensities: no palette, inks, or luma and chroma."""
    alpha: bool


def _tiff_header(data: bytes) -> _Tiff | None:
    if not data.startswith(TIFF):
        return None
    try:
        pages = list(_pages(data))
    except Exception as error:  # damaged files raise many kinds
        raise ValueError("a damaged TIFF") from error
    images = [(number, page) for number, page, shows in pages if shows]
    number, page = images[0] if images else pages[0][:2]
    channels: tuple[int, ...] = (number,)
    if page.samples == 1 and page.plain:
        channels = tuple(n for n, other in images if other == page) or channels
    known = page.depth in PILLOWS.get((page.samples > 1, page.kind), ()) and not page.white_is_zero
    whole = page.alpha or page.samples == 3 or (page.samples == 1 and len(channels) == 1)
    return _Tiff(
        page.height,
        page.width,
        page.samples,
        channels,
        8 if page.depth <= 8 else 16,
        page.white_is_zero,
        not page.plain or (known and whole),
    )


def _pages(data: bytes) -> Iterator[tuple[int, _Page, bool]]:
    """The pages of a TIFF: number, tags, and whether it is an image in full size.

    Overviews, thumbnails and masks say that they are not, by the tag NewSubfileType or the older one.
    """
    file = BytesIO(data)
    tags = ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    seen = {0}  # the chain of pages of a damaged file may be a ring
    number = 0
    while tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        samples, depth = int(tags.get(277, 1)), max(tags.get(258, (1,)))
        meaning = tags.get(262, BLACK_IS_ZERO)
        white_is_zero = meaning == WHITE_IS_ZERO and depth > 8
        page = _Page(
            int(tags[257]),
            int(tags[256]),
            samples,
            depth,
            max(tags.get(339, (UNSIGNED,))),
            white_is_zero,
            white_is_zero or meaning in (BLACK_IS_ZERO, COLOURS),
            samples in (2, 4) and tags.get(338, (0,))[-1] in (1, 2),
        )
        yield number, page, not is_reduced(tags)
        number += 1


def is_reduced(tags: Mapping[int, Any]) -> bool:
    """Is the page of a TIFF an overview, a thumbnail or a mask?"""
    return bool(tags.get(254, 0) & (REDUCED | MASK)) or tags.get(255) == OLD_REDUCED


def _read_tiff(data: bytes, tiff: _Tiff) -> NDArray[Any]:
    """[H, W, channels]"""
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            "a TIFF of several channels needs tifffile: pip install 'mixco[tiff]'"
        ) from None
    with tifffile.TiffFile(BytesIO(data)) as file:
        pages: list[Any] = [file.pages[number] for number in tiff.pages]
        axes, shape = pages[0].axes, pages[0].shape
        if axes not in ("YX", "YXS", "SYX"):
            raise ValueError(f"a TIFF with axes {axes} {list(shape)}; expected YX, YXS or SYX")
        try:
            parts = [page.asarray() for page in pages]
        except (ImportError, KeyError, ValueError) as error:
            if isinstance(error, ImportError) or "imagecodecs" in str(error):
                kind = pages[0].compression.name.lower()
                raise ValueError(
                    f"its compression ({kind}) needs imagecodecs: pip install 'mixco[tiff]'"
                ) from None
            raise
    if any(part.shape != shape for part in parts):
        raise ValueError("a damaged TIFF")
    found: NDArray[Any] = np.stack(parts, axis=2) if axes == "YX" else parts[0]
    if tiff.white_is_zero:
        found = (1 if found.dtype.kind == "f" else np.iinfo(found.dtype).max) - found
    return found.transpose(1, 2, 0) if axes == "SYX" else found
