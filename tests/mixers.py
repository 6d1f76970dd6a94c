"""Mixers that differ from MixCo's in how many images they mix, which ones, and how."""

import torch
from torch import Tensor

from mixco.mixing import Mixer, Pairs, blend, mixco


def _quarter(batch: int, generator: torch.Generator) -> Pairs:
    order = torch.randperm(batch, generator=generator)
    count = batch // 4
    return Pairs(order[:count], order[count : 2 * count], torch.rand(count, generator=generator))


def _everyone(batch: int, generator: torch.Generator) -> Pairs:
    order = torch.randperm(batch, generator=generator)  # an image may meet itself
    return Pairs(torch.arange(batch), order, torch.rand(batch, generator=generator))


def _one(batch: int, generator: torch.Generator) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([batch - 1]), torch.rand(1, generator=generator))


def _boxes(batch: int, generator: torch.Generator) -> Pairs:
    """CutMix (Yun et al. 2019, arXiv 1905.04899): a box of the second image at a random place."""
    lam = torch.rand(batch, generator=generator)
    side = (1 - lam).sqrt()
    centres = torch.rand(2, batch, generator=generator)
    starts = (centres - side / 2).clamp(0, 1)
    ends = (centres + side / 2).clamp(0, 1)
    box = torch.stack([*starts, *(ends - starts)], dim=1)
    return Pairs(torch.arange(batch), torch.arange(batch).roll(1), lam, box)


def paste(first: Tensor, second: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Put a box of `second` into `first`; lambda is what whole pixels leave of `first`."""
    assert pairs.box is not None
    sides = torch.tensor(first.shape[-2:])
    starts = (pairs.box[:, :2] * sides).round()
    ends = ((pairs.box[:, :2] + pairs.box[:, 2:]) * sides).round()
    inside_rows, inside_columns = (
        (torch.arange(side) >= starts[:, axis, None]) & (torch.arange(side) < ends[:, axis, None])
        for axis, side in enumerate(first.shape[-2:])
    )
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    lam = 1 - inside.float().mean((1, 2))
    return torch.where(inside[:, None], second, first), lam


quarter = Mixer(_quarter, blend, per_image=0.25)
everyone = Mixer(_everyone, blend, per_image=1.0)
one = Mixer(_one, blend, per_image=0.0)
boxes = Mixer(_boxes, paste, per_image=1.0)

MIXES: dict[str, Mixer | None] = {
    "none": None,
    "mixco": mixco,
    "quarter": quarter,
    "everyone": everyone,
    "one": one,
    "boxes": boxes,
}
