"""Mixing images, and saying how much of each source a mixture holds.

This is the first half of the paper (Kim et al. 2020, MixCo, arXiv 2010.06300, section 2); the other
half, what a loss makes of the shares, is in losses.py. A mixer is a choice of three things: how to
pair the images of a batch, how to draw the shares, and how to combine a pair.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """Mixed images and their semi-positive targets.

    images: [M, C, H, W], of the dtype and device of the sources.
    targets: [M, B], the share in [0, 1] of each of the B sources in each mixture; rows sum to one.
    """

    images: Tensor
    targets: Tensor


Mixer = Callable[[Tensor, Tensor], Mixed]
"""How to pair and how to combine: images [B, C, H, W] and a share for each pair [B // 2] -> Mixed."""


def draw_shares(pairs: int, generator: torch.Generator) -> Tensor:
    """Draw lambda ~ U(0, 1), that is Beta(1, 1), one for each pair: float32 [pairs], on the CPU."""
    return torch.rand(pairs, generator=generator)


def mix_halves(images: Tensor, shares: Tensor) -> Mixed:
    """Mix image i of the first half of the batch with image i + B/2 of the second half.

    images: [B, C, H, W] of a floating dtype; B >= 2. When B is odd the last image stays unmixed and
        is only a candidate.
    shares: [B // 2], lambda of each pair in [0, 1]: the share of image i; i + B/2 has the rest.

    Returns Mixed with M = B // 2; targets have the dtype of the shares, not that of the images
    (bfloat16 would round lambda).
    Raises ValueError when there is no pair or the number of shares is not that of the pairs.
    """
    batch = images.shape[0]
    half = batch // 2
    if half == 0:
        raise ValueError(f"mixing needs at least two images, got a batch of {batch}")
    if shares.shape != (half,):
        raise ValueError(f"a batch of {batch} has {half} pairs, got shares of {list(shares.shape)}")
    shares = shares.to(images.device, non_blocking=images.device.type != "mps")
    # In the dtype that the shares were drawn in, as in the paper's code: rows then sum to one there.
    rest = 1 - shares
    first, second = (s.view(-1, 1, 1, 1).to(images.dtype) for s in (shares, rest))
    blended = first * images[:half] + second * images[half : 2 * half]

    targets = shares.new_zeros(half, batch)
    targets[:, :half] = torch.diag(shares)
    targets[:, half : 2 * half] = torch.diag(rest)
    return Mixed(blended, targets)


def mixco(images: Tensor, generator: torch.Generator) -> Mixed:
    """MixCo in one call: halves paired, a lambda ~ U(0, 1) for each pair, a blend.

    images: [B, C, H, W]; generator: on the CPU, so that all devices draw alike.
    """
    return mix_halves(images, draw_shares(images.shape[0] // 2, generator))


MIXERS: dict[str, Mixer | None] = {"none": None, "mixco": mix_halves}
