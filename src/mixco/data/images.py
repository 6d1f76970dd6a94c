"""Image files to right RGB, whatever their mode."""

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError


class UnreadableImage(Exception):
    """A file that is no readable image; the message is the reason, in words."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """The bytes of an image file -> uint8 [H, W, 3] RGB.

    Turned as its EXIF orientation says. Greyscale is repeated over the channels; palettes and CMYK
    are converted; 16-bit greyscale is scaled to 8 bits (65535 becomes 255), not cut off; transparent
    parts show white, as on a page. Of an animation, the first frame.

    Raises UnreadableImage for empty, damaged, truncated or oversized files and for what is no image.
    """
    if not data:
        raise UnreadableImage("the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd but readable files (EXIF, palettes); of a possible decompression
            # bomb too, and that one is to be refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as file:
                image = ImageOps.exif_transpose(file)
                return np.array(_to_rgb(image))
    except UnidentifiedImageError:
        start = data[:64].lstrip().lower()
        kind = "an HTML page" if start.startswith((b"<!doctype", b"<html")) else "no known format"
        raise UnreadableImage(f"not an image ({kind})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage("more than 89 million pixels") from None
    except MemoryError:
        raise UnreadableImage("too large for the memory") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise UnreadableImage(str(error) or type(error).__name__) from None


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
    return image.convert("RGB")
