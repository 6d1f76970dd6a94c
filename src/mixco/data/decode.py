"""Decodes image files of any mode to pixels: RGB, or what is asked for."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from mixco.data import multichannel
from mixco.data.opening import END, SCAN, START, UnreadableImage, opened_bytes, reasons, refuse_bomb

T = TypeVar("T")
Pixels = NDArray[np.uint8 | np.uint16]
Box = tuple[int, int, int, int]  # top, left, height, width


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> how the stored image must be turned to stand upright."""


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


def decode(data: bytes, longest: int | None = None, pixel: Pixel = RGB) -> Pixels:
    """Decode the bytes of an image file: [H, W, channels], uint8 or uint16 by pixel.bits.

    longest: the largest allowed side; larger images are reduced to it (see `reduce`).

    RGB: the EXIF orientation is applied. Greyscale is repeated over the channels; palettes and CMYK are
    converted; 16-bit greyscale is scaled to 8 bits (65535 becomes 255), not clipped; transparent parts
    become white. An animation gives its first frame. A JPEG (but not in CMYK) is decoded at an eighth, a
    quarter or half of its scale where it still has `longest` pixels then: several times as fast, and
    libjpeg leaves out only frequencies that the reduction would remove. A JPEG without its end is read
    where at most its last rows are missing.

    One channel: the image must be grey; orientation and transparency as above. Other numbers of channels
    are read as they are in the file, which may be a NumPy array or a TIFF (see multichannel.py). Levels
    keep their fraction of the maximum: 255 becomes 65535.

    Raises UnreadableImage for empty, damaged, truncated or oversized files, for files that are not
    images, and for images with another number of channels.
    """
    if _is_read_as_array(data, pixel):
        return _reduce_array(_read_array(data, pixel), longest)

    def pixels(file: Image.Image) -> Pixels:
        if longest is not None and _reducible(file):
            _reduce(file, max(file.size) // longest)
        picture = reduce(_converted(_upright(file), pixel), longest)
        return np.array(picture).reshape(picture.height, picture.width, pixel.channels)

    return _of_file(data, pixels)


class FileHeader(NamedTuple):
    """What the header of an image file says."""

    height: int
    width: int
    pixel: Pixel
    """The file's own format; RGB for everything with colours, transparency, a palette or inks."""


def read_header(data: bytes) -> FileHeader:
    """Read the header alone, without decoding pixels. Raises UnreadableImage, as `decode` does."""
    with reasons():
        header = multichannel.header(data)
    if header is not None:
        return FileHeader(header.height, header.width, Pixel(header.channels, header.bits))
    with opened_bytes(data) as file:
        grey = file.mode in ("1", "L") and "transparency" not in file.info
        pixel = Pixel(1, 16) if _is_deep(file) else GREY if grey else RGB
        return FileHeader(file.height, file.width, pixel)


def as_decoded(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an opened image of any mode, as `decode` gives it for its file.

    Raises UnreadableImage.
    """
    with reasons():
        return np.array(_to_rgb(_upright(picture)))


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

    def crops(file: Image.Image) -> Pixels:
        reducible = _reducible(file)
        if not reducible:
            file.load()  # only then is the orientation of a PNG or TIFF known
        orientation = _orientation(file)
        width, height = reversed(file.size) if orientation in (5, 6, 7, 8) else file.size
        boxes = boxes_of(height, width)
        smallest = min(min(h, w) for _, _, h, w in boxes)
        reduction = _reduce(file, smallest // size) if reducible else 1
        picture = _converted(_upright(file), pixel)
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

    return _of_file(data, crops)


def _of_file(data: bytes, use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the opened file. A JPEG without its end is opened once more, with an end."""
    try:
        with opened_bytes(data) as file:
            return use(file)
    except UnreadableImage:
        if not (data.startswith(START) and _in_last_scan(data)):
            raise
        with suppress(UnreadableImage), opened_bytes(data + END) as file:
            result = use(file)
            if not _is_cut_off(file):
                return result
        raise


def _in_last_scan(data: bytes) -> bool:
    """Does the data of a JPEG reach the scan that brings its finest details?"""
    scan = data[data.rfind(SCAN) :]
    details = scan[5 + 2 * scan[4] : 8 + 2 * scan[4]] if len(scan) > 4 else b""
    return len(details) == 3 and details[1] == 63 and details[2] & 15 == 0


def _is_cut_off(file: Image.Image) -> bool:
    """Is the last eighth of the rows of one colour, as libjpeg fills what is missing?"""
    rows = np.asarray(file.crop((0, file.height - max(1, file.height // 8), *file.size)))
    return bool((rows == rows[:1, :1]).all())


def _orientation(file: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing or damaged, as for every viewer."""
    try:
        found = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds on damaged EXIF
        return 1
    return found if found in TURNS else 1


def _upright(file: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says. (ImageOps would write all other tags again.)"""
    file.load()  # Pillow turns a TIFF by itself
    orientation = _orientation(file)
    return file.transpose(TURNS[orientation]) if orientation in TURNS else file


def _reducible(file: Image.Image) -> bool:
    return isinstance(file, JpegImageFile) and file.mode in ("RGB", "L")


def _reduce(file: Image.Image, most: int) -> int:
    """Have an opened JPEG decoded at 1/8, 1/4 or 1/2, at least 1/most; returns 8, 4, 2 or 1."""
    factor = next((f for f in (8, 4, 2) if f <= most), 1)
    width, height = file.size
    if factor == 1 or file.draft(None, (width // factor, height // factor)) is None:
        return 1
    return factor


def _converted(image: Image.Image, pixel: Pixel) -> Image.Image:
    return _to_rgb(image) if pixel.channels == 3 else _to_grey(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if _is_deep(image):
        return Image.fromarray(multichannel.in_bits(np.asarray(image), 8)).convert("RGB")
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


def _is_read_as_array(data: bytes, pixel: Pixel) -> bool:
    """Whether it is read as an array: Pillow does not know such files, or such pixels."""
    with reasons():
        return pixel not in (RGB, GREY) or multichannel.header(data) is not None


def _read_array(data: bytes, pixel: Pixel) -> Pixels:
    """[H, W, channels] of pixel.dtype, in full size."""
    with reasons():
        header = multichannel.header(data)
        if header is not None:
            refuse_bomb(header.height, header.width, len(data))
        found = multichannel.read(data, pixel.channels)
        if found is None:
            found = np.atleast_3d(
                _of_file(data, lambda file: _of_picture(_upright(file), pixel.channels))
            )
        multichannel.refuse_other(found.shape[2], pixel.channels)
        found = multichannel.in_bits(found, pixel.bits)
        return found if found.shape[2] == pixel.channels else np.repeat(found, pixel.channels, 2)


def _of_picture(picture: Image.Image, channels: int) -> NDArray[Any]:
    """[H, W], or [H, W, n] with n channels; numbers of any type."""
    if _is_deep(picture):
        return np.asarray(picture)
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
