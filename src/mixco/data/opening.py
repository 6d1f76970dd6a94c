"""Opens image files that nobody vouches for: known formats, no bombs, a reason in place of an error."""

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mixco.data import multichannel
from mixco.data.formats import TGA_END, formats_of

# A decompression bomb claims more pixels than any camera has (phones have 200 million by now), or many
# in a small file.
MOST_PIXELS = 2**28
UNSUSPICIOUS_PIXELS = 89_478_485  # as for Pillow
MOST_PIXELS_A_BYTE = 200
START, END, SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"  # markers of a JPEG


class UnreadableImage(Exception):
    """A file that is not a readable image; the message says why."""


@contextmanager
def opened_bytes(data: bytes) -> Iterator[Image.Image]:
    with opened(io.BytesIO(data), len(data)) as file:
        yield file


@contextmanager
def opened(stream: BinaryIO, length: int) -> Iterator[Image.Image]:
    """Open an image file of `length` bytes; pixels are not decoded yet. Raises UnreadableImage."""
    if not length:
        raise UnreadableImage("the file is empty")
    with reasons(stream):
        stream.seek(-min(length, len(TGA_END)), io.SEEK_END)
        known = formats_of(stream.read())
        stream.seek(0)
        with _open(stream, known) as file:
            refuse_bomb(file.height, file.width, length)
            _seek_image(file)
            yield file


def _open(stream: BinaryIO, known: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(stream, formats=known)
    except Image.DecompressionBombError:  # Pillow's limit is 179 million pixels
        stream.seek(0)
        if stream.read(len(START)) != START:
            raise
        stream.seek(0)
        return JpegImageFile(stream)


def refuse_bomb(height: int, width: int, length: int) -> None:
    """Raises UnreadableImage where a file of `length` bytes claims more pixels than a photograph has."""
    count = height * width
    if count > MOST_PIXELS or count > max(UNSUSPICIOUS_PIXELS, MOST_PIXELS_A_BYTE * length):
        raise UnreadableImage(f"{count / 1e6:,.0f} million pixels in {length:,} bytes")


def _seek_image(file: Image.Image) -> None:
    """Go to the first page of a TIFF in full size; thumbnails may come before it."""
    if not isinstance(file, TiffImageFile):
        return
    try:
        while multichannel.is_reduced(file.tag_v2):
            file.seek(file.tell() + 1)
    except EOFError:
        file.seek(0)


@contextmanager
def reasons(stream: BinaryIO | None = None) -> Iterator[None]:
    """Turn every error into UnreadableImage. stream: the file."""
    try:
        with quietly() if in_main_thread() else nullcontext():
            yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        start = b""
        if stream is not None:
            stream.seek(0)
            start = stream.read(64)
        page = start.lstrip().lower().startswith((b"<!doctype", b"<html"))
        kind = "an HTML page" if page else "no known format"
        if start.startswith(multichannel.TIFF):
            kind = "a TIFF of a kind that Pillow does not know"
        raise UnreadableImage(f"not an image ({kind})") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("more than 179 million pixels") from None
    except MemoryError:
        raise UnreadableImage("too large for the memory") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise UnreadableImage(str(error) or type(error).__name__) from None


@contextmanager
def quietly() -> Iterator[None]:
    """Silence warnings about odd but readable files (EXIF, palettes).

    It acts on the whole process, so where threads decode it must enclose all of them.
    """
    logs = [logging.getLogger(name) for name in ("PIL.TiffImagePlugin", "tifffile")]
    before = [log.disabled for log in logs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in logs:
            log.disabled = True
        try:
            yield
        finally:
            for log, disabled in zip(logs, before, strict=True):
                log.disabled = disabled


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
