"""The mixed queries of a batch, for every base and on any number of processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from mixco.mixing import Mixer, Pairs, soft_targets
from mixco.runtime.distributed import (
    Parts,
    all_to_all_rows,
    rank,
    scale_local_mean,
    split_batch,
    world,
)


class MixedQueries(NamedTuple):
    """The mixed images that this process encodes, m of the M of the whole batch."""

    images: Tensor
    """[m, C, S, S]"""
    targets: Tensor
    """float32 [m, B], or [m, 2B] of both views: the parts in [0, 1] of the images of the whole batch.
    Rows sum to one."""
    total: int
    """M, the mixed images of all processes together."""

    def mean(self, local: Tensor) -> Tensor:
        """This process's part of a mean over all mixed images: see `distributed.scale_local_mean`.

        local: a scalar, the mean over the m images of this process.
        """
        return scale_local_mean(local, len(self.images), self.total)


@torch.no_grad()
def mixed_queries(
    mixer: Mixer, view: Tensor, parts: Parts, pairs: Pairs, other: Tensor | None = None
) -> MixedQueries:
    """Mix the images of one view.

    view: [b, C, S, S], the rows parts[rank()] of the batch. pairs: of the whole batch, as the mixer
    draws them, equal on all processes; with one process they may be on the device. other: the other
    view, for mixers whose partners come from there.

    Each process mixes an equal part of the pairs, which may be none. The images of a pair come from
    whichever processes hold them, so any pairing works.
    """
    batch, total, here = sum(map(len, parts)), len(pairs.lam), pairs
    wanted: list[Parts] = [(pairs.first,), (pairs.second,)]
    if world() > 1:
        dealt = split_batch(total, world())
        here = pairs.rows(dealt[rank()])
        wanted = [tuple(rows[some] for some in dealt) for rows in (pairs.first, pairs.second)]
    first = all_to_all_rows(view, parts, wanted[0])
    second = all_to_all_rows(mixer.partners(view, other), parts, wanted[1])
    images, lam = mixer.combine(first, second, here)
    return MixedQueries(images, soft_targets(here, lam, batch, mixer.across), total)


def total_losses(
    clean: Tensor | None, mixed: Tensor | None, weight: float, accuracy: Tensor
) -> dict[str, Tensor]:
    """The losses of a batch, as `Method.forward` returns them.

    clean: None where the mixed loss is alone. mixed: None without a mixer. weight: of the mixed loss.
    """
    parts = {"clean": clean, "mixed": mixed}
    weighted = [
        each for each in (clean, mixed if mixed is None else weight * mixed) if each is not None
    ]
    detached = {name: part.detach() for name, part in parts.items() if part is not None}
    return {"loss": sum(weighted[1:], weighted[0]), **detached, "accuracy": accuracy}
