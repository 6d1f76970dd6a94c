"""Images for the page: small files in data URIs, so that the page loads nothing."""

import base64
from io import BytesIO

from PIL import Image
from torch import Tensor

from mixco.plots.images import to_image


def squares(images: Tensor, extents: Tensor, side: int) -> list[Image.Image]:
    """The central squares of pictures on canvases, at most `side` pixels wide.

    images: [n, C, S, S], see `to_image`; extents: int64 [n, 2], height and width of the pictures.
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


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """The image as WebP, the smallest format that every browser reads."""
    file = BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
