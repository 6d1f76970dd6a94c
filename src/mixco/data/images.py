"""Image files to right RGB, whatever their mode."""

import io
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

Box = tuple[int, int, int, int]  # top, left, height, width


MOST_PIXELS = 89_478_485  # a file that claims more is taken for a decompression bomb, as by Pillow
TOO_MANY = "more than 89 million pixels"
# What the endings of folders.EXTENSIONS stand for, whichever of them a file has. Of the others that
# Pillow knows some would start programs (EPS: Ghostscript) or hold no picture of their own.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class UnreadableImage(Exception):
    """A file that is no readable image; the message is the reason, in words."""


def decode(data: bytes, longest: int | None = None) -> NDArray[np.uint8]:
    """The bytes of an image file -> uint8 [H, W, 3] RGB, no side above `longest` (see `reduce`).

    A JPEG (not of CMYK) is decoded at an eighth, a quarter or half of its scale where it still has
    `longest` pixels then, which is several times as fast; libjpeg leaves out the frequencies that the
    reduction would take away.

    Turned as its EXIF orientation says. Greyscale is repeated over the channels; palettes and CMYK
    are converted; 16-bit greyscale is scaled to 8 bits (65535 becomes 255), not cut off; transparent
    parts show white, as on a page. Of an animation, the first frame.

    Raises UnreadableImage for empty, damaged, truncated or oversized files and for what is no image.
    """
    with _opened(data) as file:
        if longest is not None and _reducible(file):
            _reduce(file, max(file.size) // longest)
        return np.array(reduce(_to_rgb(ImageOps.exif_transpose(file)), longest))


def as_decoded(picture: Image.Image) -> NDArray[np.uint8]:
    """An opened picture, of whatever mode -> uint8 [H, W, 3], as `decode` makes of its file."""
    return np.array(_to_rgb(ImageOps.exif_transpose(picture)))


def reduce(picture: Image.Image, longest: int | None) -> Image.Image:
    """By an antialiased resize, in its proportions; a picture that is small enough as it is."""
    if longest is None or max(picture.size) <= longest:
        return picture
    scale = longest / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def decode_crops(
    data: bytes, boxes_of: Callable[[int, int], Sequence[Box]], size: int
) -> NDArray[np.uint8]:
    """Crops of one image file, decoded once: uint8 [n, 3, size, size], by an antialiased resize.

    boxes_of: height and width of the picture -> its n crops, whole pixels within it.

    What `decode` would give is cropped, but a JPEG (not of CMYK) is decoded at an eighth, a quarter or
    half of its scale where all of its crops still have at least size x size pixels then: libjpeg
    leaves out the frequencies that the resize would take away. The resize sees nothing beyond the
    crop's border, as in resampling.crop_resize.

    Raises UnreadableImage, as `decode` does.
    """
    with _opened(data) as file:
        reducible = _reducible(file)
        if not reducible:
            file.load()  # a PNG or TIFF may know its orientation only then
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = reversed(file.size) if orientation in (5, 6, 7, 8) else file.size
        boxes = boxes_of(height, width)
        smallest = min(min(h, w) for _, _, h, w in boxes)
        reduction = _reduce(file, smallest // size) if reducible else 1
        picture = _to_rgb(ImageOps.exif_transpose(file))
        # A reduced file's last pixels may lie half beyond its border; turned, they come first.
        x_start = picture.width - width / reduction if orientation in (2, 3, 6, 7) else 0.0
        y_start = picture.height - height / reduction if orientation in (3, 4, 7, 8) else 0.0
        crops = np.empty((len(boxes), 3, size, size), np.uint8)
        for crop, (top, left, h, w) in zip(crops, boxes, strict=True):
            # At full scale these are whole pixels and the part is the box.
            x, y = x_start + left / reduction, y_start + top / reduction
            right, bottom = x + w / reduction, y + h / reduction
            x0, y0 = math.floor(x), math.floor(y)
            part = picture.crop((x0, y0, math.ceil(right), math.ceil(bottom)))
            inside = (x - x0, y - y0, right - x0, bottom - y0)
            resized = part.resize((size, size), Image.Resampling.BILINEAR, inside)
            crop[:] = np.asarray(resized).transpose(2, 0, 1)
        return crops


def _reducible(file: Image.Image) -> bool:
    return isinstance(file, JpegImageFile) and file.mode in ("RGB", "L")


def _reduce(file: Image.Image, most: int) -> int:
    """Have an opened JPEG decoded at 1 / (the result): the largest of 8, 4, 2 that `most` allows."""
    factor = next((f for f in (8, 4, 2) if f <= most), 1)
    width, height = file.size
    if factor == 1 or file.draft(None, (width // factor, height // factor)) is None:
        return 1
    return factor


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    with opened(io.BytesIO(data), len(data)) as image:
        yield image


@contextmanager
def opened(stream: BinaryIO, length: int) -> Iterator[Image.Image]:
    """The image in a file of `length` bytes, not yet decoded; what is wrong is UnreadableImage."""
    if not length:
        raise UnreadableImage("the file is empty")
    try:
        with (
            quietly() if in_main_thread() else nullcontext(),
            Image.open(stream, formats=FORMATS) as file,
        ):
            if file.width * file.height > MOST_PIXELS:
                raise UnreadableImage(TOO_MANY)
            yield file
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        stream.seek(0)
        start = stream.read(64).lstrip().lower()
        kind = "an HTML page" if start.startswith((b"<!doctype", b"<html")) else "no known format"
        raise UnreadableImage(f"not an image ({kind})") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(TOO_MANY) from None
    except MemoryError:
        raise UnreadableImage("too large for the memory") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise UnreadableImage(str(error) or type(error).__name__) from None


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that Pillow gives of odd but readable files (EXIF, palettes).

    For the whole process: where threads decode, around all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        # Mode I holds what a 16-bit PNG held; a float image in [0, 1] is taken as such.
        top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 65535.0
        scaled = np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
