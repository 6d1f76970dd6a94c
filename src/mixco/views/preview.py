"""What training sees, as pictures for people: images, two views of each, and mixed images."""

from typing import NamedTuple

import torch
from torch import Tensor

from mixco.mixing import Mixer
from mixco.views.augment import two_views, unit
from mixco.views.augmentation import Augmentation, Input


class Preview(NamedTuple):
    """Images, their views and mixed images, to be shown: uint8, or float in [0, 1]."""

    originals: Tensor
    """[B, C, H, W]: an image lies in the top left of its canvas."""
    extents: Tensor
    """int64 [B, 2]: heights and widths of the originals."""
    view_q: Tensor
    view_k: Tensor
    """float [B, C, size, size], not normalised"""
    mixed: Tensor | None
    """float [M, C, size, size]; None without mixing."""
    pairs: list[tuple[int, int, float]]
    """For each mixed image its first and second source, and lambda, the part of the first."""
    across: bool = False
    """Is the second source of the other view?"""


def preview(
    originals: Tensor,
    extents: Tensor,
    augmentation: Augmentation,
    mixer: Mixer | None,
    generator: torch.Generator,
) -> Preview:
    """Draw views of a few images, and mix them, as in training.

    originals: uint8 or uint16 [B, C, H, W], canvases; extents: int64 [B, 2] on the CPU.
    mixer: None for none. A single image is not mixed.
    """
    view_q, view_k = two_views(originals, extents, augmentation, generator, torch.float32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in augmentation.input[1:])

    def visible(view: Tensor) -> Tensor:
        pixels = view * std + mean
        if originals.dtype == torch.uint8:
            return pixels.clamp(0, 1)
        return brightened(pixels, augmentation.input)

    mixed: Tensor | None = None
    pairs: list[tuple[int, int, float]] = []
    across = False
    if mixer is not None and len(originals) >= 2:
        made, batch = mixer(view_q, generator, view_k), len(originals)
        count = batch // 2  # so that each image is shown about once
        mixed, across = visible(made.images[:count]), made.targets.shape[1] > batch
        pairs = [_sources(targets, batch) for targets in made.targets[:count]]
    shown = brightened(originals, augmentation.input)
    return Preview(shown, extents, visible(view_q), visible(view_k), mixed, pairs, across)


def _sources(targets: Tensor, batch: int) -> tuple[int, int, float]:
    """First and second source of a mixed image, and lambda, from its targets [B] or [2B]."""
    found = targets.nonzero().flatten().tolist()
    return found[0] % batch, found[-1] % batch, targets[found[0]].item()


def brightened(images: Tensor, input: Input) -> Tensor:
    """Images [B, C, H, W] to be shown: uint8 as they are, others as float in [0, 1].

    images: uint8, uint16, or float as fractions of uint16's maximum. Images of 16 bits seldom use the
    whole range, so three standard deviations above a channel's mean become white.
    """
    if images.dtype == torch.uint8:
        return images
    x = images if images.is_floating_point() else unit(images)
    white = (torch.tensor(input.mean) + 3 * torch.tensor(input.std)).clamp(max=1)
    return (x / white.view(-1, 1, 1)).clamp(0, 1)
