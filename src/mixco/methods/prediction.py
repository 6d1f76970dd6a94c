"""What BYOL and SimSiam share: predictions that should point where projections of other views point."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixco.losses import (
    at_least_float32,
    contrastive_accuracy,
    mean_cosine,
    mixed_targets,
    similarity_logits,
    unit,
)
from mixco.methods.mixed import MixedQueries
from mixco.mixing import Mixer
from mixco.runtime.distributed import gather, local_rows, scale_local_mean, split_batch, world


class Agreement(NamedTuple):
    """Mean cosines of predictions and what they should point to; this process's part of them."""

    clean: Tensor | None
    """The sum of both directions, a scalar in [-2, 2]; None where the mixed loss is alone."""
    mixed: Tensor | None
    """A scalar in [-1, 1]; None without a mixer."""
    accuracy: Tensor
    """Percentage of predictions that are nearer to their own target than to those of all other images:
    of the first view; where the mixed loss is alone, of mixed images, with their larger source."""


def views_compared(mixer: Mixer | None) -> list[int]:
    """The views whose projections are targets."""
    if mixer is None or not mixer.alone or mixer.target_view == "own":
        return [0, 1]
    return [1] if mixer.target_view == "other" else [0]


def agreement(
    predictions: Sequence[Tensor],
    projections: dict[int, Tensor],
    batch: int,
    mixer: Mixer | None = None,
    mixed: MixedQueries | None = None,
) -> Agreement:
    """How well predictions agree with the other view's projections, and mixed ones with their sources'.

    predictions: those of the first view [b, C], the second view [b, C] and mixed images [m, C], as far
        as they were encoded.
    projections: of the `views_compared`, [b, C] each, without gradient. batch: B.
    mixed: the mixed images that the last predictions are of; None without a mixer.
    """
    parts = split_batch(batch, world())
    z = {view: at_least_float32(each) for view, each in projections.items()}
    if world() > 1:
        z = {view: gather(each, parts) for view, each in z.items()}
    clean = mixed_cosine = None
    here = len(predictions[0])
    if mixer is None or not mixer.alone:
        rows = local_rows(batch, predictions[0].device)
        first = mean_cosine(predictions[0], unit(z[1])[rows])
        second = mean_cosine(predictions[1], unit(z[0])[rows])
        clean = scale_local_mean(first + second, here, batch)
        own = (rows[:, None] == torch.arange(batch, device=rows.device)).float()
        accuracy = scale_local_mean(_accuracy(predictions[0], z[1], own), here, batch)
    if mixer is not None and mixed is not None:
        asked = mixer.target_view
        sources = torch.cat([z[0], z[1]]) if mixer.across else z[1 if asked == "other" else 0]
        goals = mixed_targets(sources, mixed.targets, mix_first=mixer.across)
        mixed_cosine = mixed.mean(mean_cosine(predictions[-1], goals))
        if mixer.alone:
            accuracy = mixed.mean(_accuracy(predictions[-1], sources, mixed.targets))
    return Agreement(clean, mixed_cosine, accuracy)


@torch.no_grad()
def _accuracy(predictions: Tensor, z: Tensor, own: Tensor) -> Tensor:
    return contrastive_accuracy(similarity_logits(unit(predictions), unit(z), 1.0), own)
