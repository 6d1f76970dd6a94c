"""Our mixers, and some that differ from them in how many images they mix, and which ones."""

import torch

from mixco.methods import METHODS
from mixco.methods.mixers import cutmix, icutmix, imix, mixbt, myol, unmix
from mixco.mixing import Mixer, Pairs, blend, mixco


def _quarter(batch: int, generator: torch.Generator) -> Pairs:
    order = torch.randperm(batch, generator=generator)
    count = batch // 4
    return Pairs(order[:count], order[count : 2 * count], torch.rand(count, generator=generator))


def _one(batch: int, generator: torch.Generator) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([batch - 1]), torch.rand(1, generator=generator))


quarter = Mixer(_quarter, blend, per_image=0.25)
one = Mixer(_one, blend, per_image=0.0)

MIXES: dict[str, Mixer | None] = {
    "none": None,
    "mixco": mixco,
    "quarter": quarter,
    "one": one,
    "imix": imix,
    "icutmix": icutmix,
    "unmix": unmix,
    "cutmix": cutmix,
    "myol": myol,
    "mixbt": mixbt,
}


def works(method: str, mixer: Mixer | None) -> bool:
    """Does the mixer make sense on the base? `resolve` refuses the other pairs."""
    if mixer is None:
        return True
    base = METHODS[method]
    return (base.own_views or not mixer.across) and not (base.needs_clean and mixer.alone)
