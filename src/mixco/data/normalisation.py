"""Measures the mean and standard deviation to normalise images with."""

import numpy as np
import torch

from mixco.data.images import Images
from mixco.views.augmentation import Channels

PACKED, STREAMED = 2048, 256  # images measured; streamed ones have to be decoded
SIDE = 64  # pixels, to which streamed images are reduced
AT_ONCE = 64


def measure(images: Images) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, of pixels in [0, 1], to four digits.

    1 is the maximum of the pixels' type: 12 bits in files of 16 only fill a sixteenth of the range. The
    images measured are evenly spaced in the list and have equal weight, whatever their size. The same
    list gives the same numbers.
    """
    most = PACKED if images.loading == "packed" else STREAMED
    index = torch.linspace(0, len(images) - 1, min(most, len(images))).long()
    moments: list[np.ndarray[tuple[int, int], np.dtype[np.float64]]] = []
    for part in torch.split(index, AT_ONCE):
        for picture, extent in zip(*images.canvases(part, SIDE), strict=True):
            height, width = extent.tolist()
            pixels = picture[:, :height, :width].numpy() / torch.iinfo(picture.dtype).max
            if pixels.any():  # an unreadable image is black
                moments.append(np.stack([pixels.mean((1, 2)), np.square(pixels).mean((1, 2))]))
    channels = images.source.pixel.channels
    if not moments:
        return (0.5,) * channels, (0.25,) * channels
    mean, square = np.mean(moments, 0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    # A constant channel has no deviation; dividing by 1 makes all of it zero.
    return _digits(mean), _digits(np.where(std < 1e-6, 1.0, std))


def _digits(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Channels:
    """Rounded to four significant digits."""
    return tuple(float(f"{value:.4g}") for value in values)


def shown(mean: Channels, std: Channels) -> str:
    """ "0.485 0.456 0.406 ± 0.229 0.224 0.225" """
    return " ± ".join(" ".join(f"{value:.3f}" for value in values) for values in (mean, std))
