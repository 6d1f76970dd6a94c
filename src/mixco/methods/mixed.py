"""The mixed queries of a batch, for every base and on any number of processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from mixco.mixing import Mixer, soft_targets
from mixco.runtime.distributed import Parts, all_to_all_rows, rank, world


class MixedQueries(NamedTuple):
    """The mixed images that this process encodes, m of the M of the whole batch."""

    images: Tensor
    """[m, C, S, S]"""
    targets: Tensor
    """float32 [m, B]: the parts in [0, 1] of the images of the whole batch; rows sum to one."""
    total: int
    """M, the mixed images of all processes together."""


@torch.no_grad()
def mixed_queries(mixer: Mixer, view: Tensor, parts: Parts, draws: torch.Generator) -> MixedQueries:
    """Mix the images of one view.

    view: [b, C, S, S], the rows parts[rank()] of the batch. draws: on the CPU, equal on all processes.

    All processes draw the same pairs of the whole batch, and each mixes an equal part of them, which may
    be none. The images of a pair come from whichever processes hold them, so any pairing works.
    """
    batch = sum(map(len, parts))
    pairs = mixer.draw(batch, draws)
    dealt = torch.arange(len(pairs.lam)).tensor_split(world())
    here = pairs.rows(dealt[rank()])
    first, second = (
        all_to_all_rows(view, parts, tuple(rows[some] for some in dealt))
        for rows in (pairs.first, pairs.second)
    )
    images, lam = mixer.combine(first, second, here)
    return MixedQueries(images, soft_targets(here, lam, batch), len(pairs.lam))
