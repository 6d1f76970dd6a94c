"""Images for the page: small files in data URIs, nothing to be loaded."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor


def squares(images: Tensor, extents: Tensor, side: int) -> list[Image.Image]:
    """The central squares of pictures on canvases, at most `side` pixels wide.

    images: uint8 or float in [0, 1], [n, C, S, S]; extents: int64 [n, 2], height and width. Of one or
    two channels the first is shown in grey, of more than three the first three.
    """
    return [
        _square(image[:, :height, :width], side)
        for image, (height, width) in zip(images, extents.tolist(), strict=True)
    ]


def _square(picture: Tensor, side: int) -> Image.Image:
    image = to_image(picture)
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    image = image.crop((left, top, left + short, top + short))
    return image if short <= side else image.resize((side, side), Image.Resampling.LANCZOS)


def to_image(picture: Tensor) -> Image.Image:
    """uint8, or float in [0, 1], [C, H, W]"""
    if picture.is_floating_point():
        picture = (255 * picture.float()).round().byte()
    shown = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(shown.permute(1, 2, 0).numpy()))


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """As WebP, the smallest of what every browser reads."""
    file = BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
