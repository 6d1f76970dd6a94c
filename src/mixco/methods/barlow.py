"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), plain or mixed.

The cross-correlation of the outputs of two views should be the identity: each dimension agrees between
the views and is uncorrelated with the others. With `mixbt` it is Mixed Barlow Twins (Bandara et al.
2023, arXiv 2312.02151).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixco.losses import (
    at_least_float32,
    barlow_twins,
    contrastive_accuracy,
    mixed_residue,
    similarity_logits,
    standardised,
    unit,
)
from mixco.methods.mixed import mixed_queries, total_losses
from mixco.methods.options import BarlowOptions
from mixco.mixing import Mixer, Pairs, send_rows
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.runtime.distributed import Parts, gather, split_batch, world


def build(
    encoder: nn.Module,
    mix: Mixer | None,
    options: BarlowOptions,
    *,
    micro_batches: int,
    **_: object,
) -> "BarlowTwins":
    """Barlow Twins by its settings."""
    return BarlowTwins(
        encoder,
        off_diagonal=options.off_diagonal,
        mix=mix,
        mix_weight=options.mix_weight,
        micro_batches=micro_batches,
    )


class BarlowTwins(nn.Module):
    """The cross-correlation of two views against the identity; mixed images against their sources.

    encoder: images [B, 3, S, S] -> projections [B, D].
    off_diagonal: weight of the correlations between different dimensions, the paper's lambda.
    mix: a mixer that adds to the clean loss, or None for plain Barlow Twins. mix_weight: weight of the
        mixed loss.
    micro_batches: parts in which the encoder takes a batch, see models/gradient_caching.py.

    Each view, and the mixed images, go through the encoder on their own, as in the published codes, so
    that each has its own statistics of batch norm.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        off_diagonal: float,
        mix: Mixer | None,
        mix_weight: float,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        if mix is not None and mix.alone:
            raise ValueError("Barlow's mixed loss cannot be alone: it does not tell images apart")
        self.encoder = adjust_momentum(encoder, micro_batches)
        self.off_diagonal = off_diagonal
        self.mix = mix
        self.mix_weight = mix_weight
        self.micro_batches = micro_batches

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Pairs, ...]:
        """The draws of a step: the pairs of the mixer, where there is one."""
        return (self.mix.draw(batch, generator),) if self.mix else ()

    def forward(
        self,
        views: Sequence[Tensor],
        draws: torch.Generator | tuple[Pairs, ...],
        batch: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch: scalars loss, clean, accuracy, and mixed where there is a mixer.

        views: two of [b, 3, S, S], of the same images.
        draws, batch: see `Method.forward`. Correlations are those of the whole batch, on any number of
            processes, each of which computes them all.

        mixed: with the factor `off_diagonal`, as published. accuracy: percentage of images whose other
            view is more similar than the other views of all other images.
        """
        batch = batch or len(views[0])
        parts = split_batch(batch, world())
        pairs = self.draw(batch, draws) if isinstance(draws, torch.Generator) else draws
        s = [standardised(self._encode(view, parts)) for view in views]
        clean = barlow_twins(s[0], s[1], self.off_diagonal)
        with torch.no_grad():
            own = torch.eye(batch, device=clean.device)
            accuracy = contrastive_accuracy(similarity_logits(unit(s[0]), unit(s[1]), 1.0), own)
        mixed_loss = None
        if self.mix:
            mixed = mixed_queries(self.mix, views[0], parts, pairs[0], views[1])
            of_mixed = split_batch(mixed.total, world())
            targets = gather(mixed.targets, of_mixed) if world() > 1 else mixed.targets
            asked = {"own": torch.cat(s), "other": s[1], "same": s[0]}[self.mix.target_view]
            first = send_rows(pairs[0].first, clean)
            mixed_loss = self.off_diagonal * mixed_residue(
                standardised(self._encode(mixed.images, of_mixed)),
                asked,
                targets,
                [view[first] for view in s],
            )
        return total_losses(clean, mixed_loss, self.mix_weight, accuracy)

    def _encode(self, images: Tensor, parts: Parts) -> Tensor:
        """The projections of all processes, with gradient: [B, D]."""
        outputs = at_least_float32(
            encode_in_micro_batches(self.encoder, images, self.micro_batches)
        )
        return gather(outputs, parts) if world() > 1 else outputs

    def after_step(self, progress: float) -> None:
        """Nothing changes with the steps."""
