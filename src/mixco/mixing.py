"""Mixing images, and saying how much of each source a mixed image holds.

This is the first half of the paper (Kim et al. 2020, MixCo, arXiv 2010.06300, section 2). The other
half, the loss of a mixed image, is in losses.py. A mixer is two functions: `draw` says which images are
mixed and how much of each, and `combine` mixes them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Which images of a batch are mixed, and how much of each. On the CPU, equal on all processes."""

    first: Tensor
    """int64 [M]: rows of the batch."""
    second: Tensor
    """int64 [M]: rows of the batch."""
    lam: Tensor
    """float32 [M] in [0, 1]: lambda, the part of `first`; `second` has the rest."""
    centre: Tensor | None = None
    """float32 [M, 2] in [0, 1): the centre of a pasted box, down and across; None without a box."""
    pasted: Tensor | None = None
    """bool [M]: is the box pasted, or are the images blended? None where the mixer does only one."""

    def rows(self, index: Tensor) -> "Pairs":
        """Some of the pairs; index: int64 [m]."""
        return Pairs(*(None if each is None else each[index] for each in self))  # type: ignore[arg-type]


class Mixed(NamedTuple):
    """Mixed images and their semi-positive targets."""

    images: Tensor
    """[M, C, H, W], of the dtype and device of the sources."""
    targets: Tensor
    """float32 [M, B]: the part in [0, 1] of each of the B sources; rows sum to one. Where partners come
    from the other view [M, 2B]: the images of this view, then those of the other."""


class Mixer(NamedTuple):
    """How to pair the images of a batch, and how to combine a pair.

    Called with a batch of images [B, C, H, W] and a generator on the CPU it returns `Mixed`.
    """

    draw: Callable[[int, torch.Generator], Pairs]
    """Batch size B -> pairs."""
    combine: Callable[[Tensor, Tensor, Pairs], tuple[Tensor, Tensor]]
    """Images of `first` and of `second` [M, C, H, W] -> the mixed images, and float32 [M], the part of
    `first` that each really holds (a pasted region has whole pixels). It must not change its arguments,
    which may be the batch itself."""
    per_image: float = 0.5
    """Mixed images for each image of a batch, M / B: what mixing costs."""
    alone: bool = False
    """Is the mixed loss in the place of the clean one? Otherwise it is added to it."""
    own_denominators: bool = False
    """Has each source a denominator of its own, with its key and the queue, as in Un-Mix? Otherwise one
    denominator has all keys. Only MoCo tells the two apart."""
    target_view: Literal["other", "same", "own"] = "other"
    """The view in which a mixed image is compared with its sources. other: the view that is not mixed.
    same: the view that is. own: the second source comes from the other view, and each source is compared
    in its own. Only BYOL, SimSiam and Barlow Twins tell these apart: the others take "other" for "same",
    and have no "own"."""

    def __call__(
        self, images: Tensor, generator: torch.Generator, other: Tensor | None = None
    ) -> Mixed:
        """other: the other view [B, C, H, W], for a mixer whose `target_view` is "own"."""
        pairs, partners = self.draw(len(images), generator), self.partners(images, other)
        first = images[send_rows(pairs.first, images)]
        second = partners[send_rows(pairs.second, images)]
        mixed, lam = self.combine(first, second, pairs)
        return Mixed(mixed, soft_targets(pairs, lam, len(images), self.across))

    @property
    def across(self) -> bool:
        """Do partners come from the other view?"""
        return self.target_view == "own"

    def partners(self, images: Tensor, other: Tensor | None) -> Tensor:
        """The view that second sources come from. Raises ValueError where it is missing."""
        if not self.across:
            return images
        if other is None:
            raise ValueError("partners come from the other view with this mixer; give it too")
        return other


def send_rows(rows: Tensor, like: Tensor) -> Tensor:
    """To the device of another tensor, without waiting for it (Apple's devices cannot)."""
    if like.is_cuda and not rows.is_cuda:
        rows = rows.pin_memory()
    return rows.to(like.device, non_blocking=like.device.type != "mps")


def soft_targets(pairs: Pairs, lam: Tensor, batch: int, across: bool = False) -> Tensor:
    """The target of each mixed image: lambda for its first source, the rest for its second.

    lam: float32 [M], as `combine` returns it. Returns float32 [M, batch]. An image that is mixed with
    itself has a target of one. across: the second sources are of the other view, and the targets
    [M, 2 batch], with the other view's images last.
    """
    first, second = (send_rows(rows, lam)[:, None] for rows in pairs[:2])
    if across:
        second = second + batch
    targets = lam.new_zeros(len(lam), 2 * batch if across else batch)
    return targets.scatter_add_(1, first, lam[:, None]).scatter_add_(1, second, 1 - lam[:, None])


def draw_lambda(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """lambda ~ Beta(alpha, alpha): float32 [count]. With alpha 1 it is uniform."""
    if alpha == 1:
        return torch.rand(count, generator=generator)
    # The first part of two draws of a gamma distribution; in float64 they are not both zero.
    shape = torch.full((2, count), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(shape, generator=generator).clamp(min=1e-300)
    lam: Tensor = first / (first + second)
    return lam.float()


def halves(batch: int, generator: torch.Generator, alpha: float = 1.0) -> Pairs:
    """MixCo's pairs: image i with image i + B // 2, and a lambda ~ Beta(alpha, alpha) for each pair.

    The last image of an odd batch is not mixed. Raises ValueError for a batch of less than two images.
    """
    half = batch // 2
    if half == 0:
        raise ValueError(f"mixing needs at least two images, got a batch of {batch}")
    first = torch.arange(half)
    return Pairs(first, first + half, draw_lambda(half, alpha, generator))


def blend(first: Tensor, second: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """lambda x first + (1 - lambda) x second, pixel by pixel."""
    # Keep lambda in float32, as the 2020 code does, so that each row of targets sums to one.
    lam = send_rows(pairs.lam, first)
    parts = [part.view(-1, 1, 1, 1).to(first.dtype) for part in (lam, 1 - lam)]
    return parts[0] * first + parts[1] * second, lam


mixco = Mixer(halves, blend)
"""MixCo (Kim et al. 2020): the halves of the batch are blended, each pair with a lambda of its own."""
