"""Greyscale and colour jitter with separate parameters for each image.

Images are float32 [B, C, S, S] in [0, 1]. Greyscale, saturation and hue act on three channels, taken as
red, green and blue, and leave other images unchanged. Only the selected images are computed. Arguments
may be changed in place.
"""

import torch
from torch import Tensor

from mixco.runtime.device import send
from mixco.views.selected_rows import apply_to_rows

# ITU-R 601 luma, as in torchvision and PIL.
LUMA = (0.2989, 0.587, 0.114)
# From the complements of red, green and blue to red, in turns.
OPPOSITE = (1 / 2, 1 / 6, -1 / 6)


def luma(x: Tensor) -> Tensor:
    """[B, C, S, S] -> [B, 1, S, S]; the mean of the channels if they are not three."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x[:, :, None].unbind(1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def greyscale(x: Tensor, grey: Tensor) -> Tensor:
    """Make the images greyscale for which grey, bool [B] on the CPU, is True."""
    if x.shape[1] != 3:
        return x
    those = send(grey.nonzero().squeeze(1), x.device)
    return apply_to_rows(x, those, lambda y: y.copy_(luma(y)))


def jitter(x: Tensor, chosen: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in each image's own order, clamped after each.

    chosen: bool [B]. order: int64 [B, 4], which of the four is applied at each stage. factors: float32
    [B, 4], of the first three, and the hue's shift in turns of [-0.5, 0.5]. All are on the CPU, so that
    the host knows how many images each operation has.
    """
    images = chosen.nonzero().squeeze(1)
    if len(images) == 0:
        return x
    # At each stage the images are sorted by what is done with them: [4, b].
    kinds, place = order[images].T.sort(dim=1, stable=True)
    those = send(images[place], x.device)
    numbers = send(factors[images[place], kinds], x.device)
    for stage in range(4):
        counts = kinds[stage].bincount(minlength=4).tolist()
        end = 0
        for operation, count in zip(OPERATIONS, counts, strict=True):
            start, end = end, end + count
            number = numbers[stage, start:end, None, None, None]
            x = apply_to_rows(x, those[stage, start:end], operation, number)
    return x


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """factor: [B, 1, 1, 1], as in all four operations."""
    return x.mul_(factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(x, luma(x.mean((2, 3), keepdim=True)), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(x, luma(x), factor) if x.shape[1] == 3 else x


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the circle of hues (Smith 1978: HSV to RGB and back), without branches.

    A channel equals `value` while the hue is within a sixth of a turn from its colour, falls over the
    next sixth, and is value - chroma beyond.
    """
    if x.shape[1] != 3:
        return x
    red, green, blue = x[:, :, None].unbind(1)  # [B, 1, S, S]
    # Maxima and minima give the largest and the middle channel, two comparisons (as 0 and 1) the sixth
    # of the circle: on a CPU this is faster than selecting by masks.
    larger, smaller = torch.maximum(green, blue), torch.minimum(green, blue)
    is_blue, not_red = green.clone().lt_(blue), red.clone().lt_(larger)
    value, middle = torch.maximum(red, larger), torch.minimum(red, larger)
    chroma = value - torch.minimum(middle, smaller)
    # From red, in turns, and backwards below zero: -1 for blue if red is the largest, else -1/3 (green)
    # or 2/3 (blue). Grey has no hue; any value will do.
    start = torch.addcmul(is_blue.neg(), not_red, is_blue.mul_(2).sub_(1 / 3))
    within = middle.sub_(smaller).div_(chroma.clamp(min=1e-12))
    opposite = torch.cat([turns + each for each in OPPOSITE], dim=1)  # [B, 3, 1, 1]
    turned = start.add_(within, alpha=1 / 6).abs_() + opposite
    away = turned.sub_(turned.round()).abs_().clamp_(1 / 6, 1 / 3)  # [B, 3, S, S]
    return torch.addcmul(value.sub_(chroma, alpha=2), chroma, away, value=6)


OPERATIONS = (brightness, contrast, saturation, hue)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.addcmul(other.mul_(1 - factor), x, factor, out=x).clamp_(0, 1)
