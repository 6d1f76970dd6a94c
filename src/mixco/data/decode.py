"""Decodes image files of any mode to pixels: RGB, or what is asked for."""

import io
import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mixco.data import multichannel

Pixels = NDArray[np.uint8 | np.uint16]
Box = tuple[int, int, int, int]  # top, left, height, width


MOST_PIXELS = 89_478_485  # a file that claims more is taken for a decompression bomb, as by Pillow
TOO_MANY = "more than 89 million pixels"
# The formats of folders.EXTENSIONS; a file may have any of these endings. Some of Pillow's other formats
# would start programs (EPS: Ghostscript) or hold no pixels of their own.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class Pixel(NamedTuple):
    """The pixel format of a set of images: how many channels, of 8 or 16 bits each."""

    channels: int = 3
    bits: int = 8

    @property
    def dtype(self) -> type[np.uint8 | np.uint16]:
        return np.uint8 if self.bits == 8 else np.uint16

    @property
    def bytes(self) -> int:
        return self.channels * self.bits // 8

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' if self.channels > 1 else ''} of {self.bits} bits"


RGB, GREY = Pixel(3, 8), Pixel(1, 8)  # Pillow has these, and reads JPEGs in them at a reduced scale


class UnreadableImage(Exception):
    """A file that is not a readable image; the message says why."""


def decode(data: bytes, longest: int | None = None, pixel: Pixel = RGB) -> Pixels:
    """Decode the bytes of an image file: [H, W, channels], uint8 or uint16 by pixel.bits.

    longest: the largest allowed side; larger images are reduced to it (see `reduce`).

    RGB: the EXIF orientation is applied. Greyscale is repeated over the channels; palettes and CMYK are
    converted; 16-bit greyscale is scaled to 8 bits (65535 becomes 255), not clipped; transparent parts
    become white. An animation gives its first frame. A JPEG (but not in CMYK) is decoded at an eighth, a
    quarter or half of its scale where it still has `longest` pixels then: several times as fast, and
    libjpeg leaves out only frequencies that the reduction would remove.

    One channel: the image must be grey; orientation and transparency as above. Other numbers of channels
    are read as they are in the file, which may be a NumPy array or a TIFF (see multichannel.py). Levels
    keep their fraction of the maximum: 255 becomes 65535.

    Raises UnreadableImage for empty, damaged, truncated or oversized files, for files that are not
    images, and for images with another number of channels.
    """
    if _is_read_as_array(data, pixel):
        return _reduce_array(_read_array(data, pixel), longest)
    with _opened(data) as file:
        if longest is not None and _reducible(file):
            _reduce(file, max(file.size) // longest)
        picture = reduce(_converted(ImageOps.exif_transpose(file), pixel), longest)
        return np.array(picture).reshape(picture.height, picture.width, pixel.channels)


class FileHeader(NamedTuple):
    """What the header of an image file says."""

    height: int
    width: int
    pixel: Pixel
    """The file's own format; RGB for everything with colours, transparency, a palette or inks."""


def read_header(data: bytes) -> FileHeader:
    """Read the header alone, without decoding pixels. Raises UnreadableImage, as `decode` does."""
    with _reasons(io.BytesIO(data), len(data)):
        header = multichannel.header(data)
    if header is not None:
        return FileHeader(header.height, header.width, Pixel(header.channels, header.bits))
    with _opened(data) as file:
        grey = file.mode in ("1", "L") and "transparency" not in file.info
        pixel = Pixel(1, 16) if _is_deep(file) else GREY if grey else RGB
        return FileHeader(file.height, file.width, pixel)


def as_decoded(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an opened image of any mode, as `decode` gives it for its file."""
    return np.array(_to_rgb(ImageOps.exif_transpose(picture)))


def reduce(picture: Image.Image, longest: int | None) -> Image.Image:
    """Resize (antialiased, same proportions) to `longest`, if the image is larger than that."""
    if longest is None or max(picture.size) <= longest:
        return picture
    scale = longest / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def decode_crops(
    data: bytes,
    boxes_of: Callable[[int, int], Sequence[Box]],
    size: int,
    pixel: Pixel = RGB,
) -> Pixels:
    """Crops of one image file, decoded once and resized (antialiased): [n, channels, size, size].

    boxes_of: height and width of the image -> its n crops, in whole pixels within it.
    pixel: see `decode`.

    The crops are those of `decode`'s image, but a JPEG (not in CMYK) is decoded at an eighth, a quarter
    or half of its scale where all of its crops still have at least size x size pixels then. The
    resize uses no pixel outside the crop, as in resampling.crop_resize.

    Raises UnreadableImage, as `decode` does.
    """
    if _is_read_as_array(data, pixel):
        whole = _read_array(data, pixel)
        parts = (whole[y : y + h, x : x + w] for y, x, h, w in boxes_of(*whole.shape[:2]))
        return np.stack([_resize_array(part, size, size).transpose(2, 0, 1) for part in parts])
    with _opened(data) as file:
        reducible = _reducible(file)
        if not reducible:
            file.load()  # only then is the orientation of a PNG or TIFF known
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = reversed(file.size) if orientation in (5, 6, 7, 8) else file.size
        boxes = boxes_of(height, width)
        smallest = min(min(h, w) for _, _, h, w in boxes)
        reduction = _reduce(file, smallest // size) if reducible else 1
        picture = _converted(ImageOps.exif_transpose(file), pixel)
        # The last pixels of a reduced JPEG may lie partly outside the image; turned, they come first.
        x_start = picture.width - width / reduction if orientation in (2, 3, 6, 7) else 0.0
        y_start = picture.height - height / reduction if orientation in (3, 4, 7, 8) else 0.0
        crops = np.empty((len(boxes), pixel.channels, size, size), np.uint8)
        for crop, (top, left, h, w) in zip(crops, boxes, strict=True):
            # At full scale these are whole numbers, and the part is the box.
            x, y = x_start + left / reduction, y_start + top / reduction
            right, bottom = x + w / reduction, y + h / reduction
            x0, y0 = math.floor(x), math.floor(y)
            part = picture.crop((x0, y0, math.ceil(right), math.ceil(bottom)))
            inside = (x - x0, y - y0, right - x0, bottom - y0)
            resized = part.resize((size, size), Image.Resampling.BILINEAR, inside)
            crop[:] = np.asarray(resized).reshape(size, size, -1).transpose(2, 0, 1)
        return crops


def _reducible(file: Image.Image) -> bool:
    return isinstance(file, JpegImageFile) and file.mode in ("RGB", "L")


def _reduce(file: Image.Image, most: int) -> int:
    """Have an opened JPEG decoded at 1/8, 1/4 or 1/2, at least 1/most; returns 8, 4, 2 or 1."""
    factor = next((f for f in (8, 4, 2) if f <= most), 1)
    width, height = file.size
    if factor == 1 or file.draft(None, (width // factor, height // factor)) is None:
        return 1
    return factor


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    with opened(io.BytesIO(data), len(data)) as file:
        yield file


@contextmanager
def opened(stream: BinaryIO, length: int) -> Iterator[Image.Image]:
    """Open an image file of `length` bytes; pixels are not decoded yet. Raises UnreadableImage."""
    with _reasons(stream, length), Image.open(stream, formats=FORMATS) as file:
        if file.width * file.height > MOST_PIXELS:
            raise UnreadableImage(TOO_MANY)
        yield file


@contextmanager
def _reasons(stream: BinaryIO, length: int) -> Iterator[None]:
    """Turn every error into UnreadableImage."""
    if not length:
        raise UnreadableImage("the file is empty")
    try:
        with quietly() if in_main_thread() else nullcontext():
            yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        stream.seek(0)
        start = stream.read(64)
        page = start.lstrip().lower().startswith((b"<!doctype", b"<html"))
        kind = "an HTML page" if page else "no known format"
        if start.startswith(multichannel.TIFF):
            kind = "a TIFF with other than 1 or 3 channels"
        raise UnreadableImage(f"not an image ({kind})") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(TOO_MANY) from None
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


def _converted(image: Image.Image, pixel: Pixel) -> Image.Image:
    return _to_rgb(image) if pixel.channels == 3 else _to_grey(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_deep(image):
        return Image.fromarray(_levels(image, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """One channel of 8 bits. Raises UnreadableImage for an image with colours."""
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    red, *others = _to_rgb(image).split()
    if any(other.tobytes() != red.tobytes() for other in others):
        raise UnreadableImage("3 channels, not 1: it has colours")
    return red


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _levels(image: Image.Image, most: int) -> NDArray[np.float64]:
    """Greyscale of more than 8 bits, scaled to whole numbers from 0 to `most`: [H, W]."""
    values = np.asarray(image).astype(np.float64)
    # Mode I is of a 16-bit PNG; a float image within [0, 1] has 1 as its maximum.
    top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0
    return np.clip(np.rint(values * (most / top)), 0, most)


def _is_read_as_array(data: bytes, pixel: Pixel) -> bool:
    """Whether it is read as an array: Pillow does not know such files, or such pixels."""
    return pixel not in (RGB, GREY) or multichannel.is_array(data)


def _read_array(data: bytes, pixel: Pixel) -> Pixels:
    """[H, W, channels] of pixel.dtype, in full size."""
    with _reasons(io.BytesIO(data), len(data)):
        if data.startswith((*multichannel.NUMPY, *multichannel.TIFF)):
            header = read_header(data)
            if header.height * header.width > MOST_PIXELS:
                raise UnreadableImage(TOO_MANY)
        found = multichannel.read(data, pixel.channels)
        if found is None:
            with _opened(data) as file:
                found = np.atleast_3d(_of_picture(ImageOps.exif_transpose(file), pixel.channels))
        multichannel.refuse_other(found.shape[2], pixel.channels)
        found = multichannel.in_bits(found, pixel.bits)
        return found if found.shape[2] == pixel.channels else np.repeat(found, pixel.channels, 2)


def _of_picture(picture: Image.Image, channels: int) -> NDArray[np.uint8 | np.uint16 | np.bool_]:
    """[H, W], or [H, W, n] with n channels."""
    if _is_deep(picture):
        return _levels(picture, 65535).astype(np.uint16)
    if channels == 1:
        return np.asarray(_to_grey(picture))
    return np.asarray(_to_rgb(picture) if channels == 3 else picture)


def _reduce_array(pixels: Pixels, longest: int | None) -> Pixels:
    """`reduce` for any number of channels."""
    height, width = pixels.shape[:2]
    if longest is None or max(height, width) <= longest:
        return pixels
    scale = longest / max(height, width)
    return _resize_array(pixels, max(1, round(height * scale)), max(1, round(width * scale)))


def _resize_array(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize each channel by Pillow in floating point (antialiased), and round once."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    resized = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        for plane in planes
    ]
    rounded: Pixels = np.rint(np.stack(resized, axis=2)).astype(pixels.dtype)
    return rounded
