"""The mixers beside MixCo: i-Mix, Un-Mix, CutMix, MYOL and Mixed Barlow Twins. Each is a few lines.

i-Mix: Lee et al. 2021, arXiv 2010.08887. Un-Mix: Shen et al. 2022, arXiv 2003.05438. CutMix: Yun et al.
2019, arXiv 1905.04899. All of them compute with tensors alone, so that a CUDA graph can hold them.
"""

import torch
from torch import Tensor

from mixco.mixing import Mixer, Pairs, blend, draw_lambda, halves, send_rows


def paste(first: Tensor, second: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Paste a box of the second image into the first, at the same place.

    The box has about 1 - lambda of the image: its half sides are floor(side x sqrt(1 - lambda)) // 2
    pixels, and what lies beyond the edge is cut off, as in the codes of i-Mix and Un-Mix. The lambda
    that is returned is the share of pixels that the first image keeps: 1 where the box is empty.
    """
    if pairs.centre is None:
        raise ValueError("a pasted box needs a centre; these pairs have none")
    lam, centre = (send_rows(each, first) for each in (pairs.lam, pairs.centre))
    inside = []
    for axis, side in enumerate(first.shape[-2:]):
        middle = (side * centre[:, axis]).floor()
        half = (side * (1 - lam).sqrt()).floor() // 2
        places = torch.arange(side, device=first.device)
        inside.append((places >= (middle - half)[:, None]) & (places < (middle + half)[:, None]))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    lam = 1 - box.sum((1, 2)) / (first.shape[-2] * first.shape[-1])
    return torch.where(box[:, None], second, first), lam


def blend_or_paste(first: Tensor, second: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """`paste` for the pairs that say so, `blend` for the others."""
    if pairs.pasted is None:
        raise ValueError("these pairs do not say whether they are pasted")
    pasted = send_rows(pairs.pasted, first)
    (with_box, box_lam), (blended, lam) = paste(first, second, pairs), blend(first, second, pairs)
    return torch.where(pasted.view(-1, 1, 1, 1), with_box, blended), torch.where(
        pasted, box_lam, lam
    )


def one_for_all(values: Tensor, batch: int) -> Tensor:
    """[1, ...] -> [batch, ...]"""
    return values.expand(batch, *values.shape[1:]).clone()


def any_partner(batch: int, generator: torch.Generator, alpha: float = 1.0) -> Pairs:
    """i-Mix's pairs: image i with a random one, maybe itself; each lambda is at least 1/2."""
    lam = draw_lambda(batch, alpha, generator)
    second = torch.randperm(batch, generator=generator)
    return Pairs(torch.arange(batch), second, torch.maximum(lam, 1 - lam))


def any_partner_boxed(batch: int, generator: torch.Generator, alpha: float = 1.0) -> Pairs:
    """The same with one lambda, and one box, for the whole batch."""
    lam = draw_lambda(1, alpha, generator)
    second = torch.randperm(batch, generator=generator)
    centre = one_for_all(torch.rand(1, 2, generator=generator), batch)
    return Pairs(
        torch.arange(batch), second, one_for_all(torch.maximum(lam, 1 - lam), batch), centre
    )


def across_views(batch: int, generator: torch.Generator, alpha: float = 2.0) -> Pairs:
    """MYOL's pairs: image i with a random one of the other view, maybe itself; each has a lambda."""
    lam = draw_lambda(batch, alpha, generator)
    return Pairs(torch.arange(batch), torch.randperm(batch, generator=generator), lam)


def across_views_alike(batch: int, generator: torch.Generator, alpha: float = 1.0) -> Pairs:
    """The same with one lambda for the whole batch."""
    pairs = across_views(batch, generator, alpha)
    return pairs._replace(lam=one_for_all(pairs.lam[:1], batch))


def reversed_batch(batch: int, generator: torch.Generator, alpha: float = 1.0) -> Pairs:
    """Un-Mix's pairs: image i with image B - 1 - i; one lambda, one box and one coin for the batch."""
    first = torch.arange(batch)
    lam = one_for_all(draw_lambda(1, alpha, generator), batch)
    centre = one_for_all(torch.rand(1, 2, generator=generator), batch)
    coin = one_for_all(torch.rand(1, generator=generator) < 0.5, batch)
    return Pairs(first, first.flip(0), lam, centre, coin)


def halves_boxed(batch: int, generator: torch.Generator, alpha: float = 1.0) -> Pairs:
    """MixCo's pairs, each with a box of its own."""
    pairs = halves(batch, generator, alpha)
    return pairs._replace(centre=torch.rand(len(pairs.lam), 2, generator=generator))


imix = Mixer(any_partner, blend, per_image=1.0, alone=True)
"""i-Mix (Lee et al. 2021): all images are blended with random ones. No clean image is a query."""

icutmix = Mixer(any_partner_boxed, paste, per_image=1.0, alone=True)
"""i-CutMix, in the code of i-Mix: the same with a pasted box."""

unmix = Mixer(
    reversed_batch, blend_or_paste, per_image=1.0, own_denominators=True, target_view="same"
)
"""Un-Mix (Shen et al. 2022): blended or pasted, by a coin for each step; added to the clean loss."""

unmix_blend = unmix._replace(combine=blend)
"""Un-Mix's global mixture alone."""

unmix_box = unmix._replace(combine=paste)
"""Un-Mix's region mixture alone."""

cutmix = Mixer(halves_boxed, paste)
"""MixCo with pasted boxes instead of blends."""

myol = Mixer(across_views, blend, per_image=1.0, target_view="own")
"""MYOL: images of one view are blended with random ones of the other; added to the clean loss."""

mixbt = Mixer(across_views_alike, blend, per_image=1.0, target_view="own")
"""Mixed Barlow Twins: the same with one lambda, uniform, for the whole batch."""
