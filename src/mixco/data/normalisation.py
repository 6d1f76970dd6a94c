"""The mean and standard deviation that images are normalised with."""

import numpy as np

from mixco.data.images import RGB, Pixels
from mixco.data.loading import Images
from mixco.data.packing import PackedImages, read_reduced
from mixco.data.pixels import spread
from mixco.data.views import Channels

MEASURED = 500  # images


def normalisation(images: Images, size: int) -> tuple[Channels, Channels]:
    """Of RGB images what their list says; of others what is measured on some of them, spread over all.

    size: side in pixels of what the encoder sees. Each image counts the same. In shares of the type's
    maximum, to four digits: so images of 12 bits in files of 16, which only fill a sixteenth of the
    range, are spread like all others.
    """
    if images.source.pixel == RGB:
        return images.source.mean, images.source.std
    sums = [
        (values.mean((0, 1)), np.square(values).mean((0, 1)))
        for index in spread(len(images), MEASURED)
        if (picture := _picture(images, index, size)) is not None
        for values in [picture / np.iinfo(picture.dtype).max]
    ]
    mean, square = np.mean(sums, axis=0)
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    std[std < 1e-6] = 1  # a channel that is the same everywhere is zero then
    return _rounded(mean), _rounded(std)


def _picture(images: Images, index: int, size: int) -> Pixels | None:
    """[H, W, C] as packed; None for a streamed one that cannot be read."""
    if isinstance(images, PackedImages):
        height, width = images.extents[index].tolist()
        packed: Pixels = images.images[index, :, :height, :width].numpy().transpose(1, 2, 0)
        return packed
    found = read_reduced(images.source, index, 2 * size)
    return None if isinstance(found, str) else found


def _rounded(values: np.ndarray) -> Channels:
    return tuple(float(f"{value:.4g}") for value in values)
