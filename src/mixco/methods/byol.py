"""BYOL (Grill et al. 2020, arXiv 2006.07733), plain or mixed.

A predictor says from one view where a slowly moving copy of the encoder will put the other view. There
are no negatives. With a mixer, mixed images of the first view are predicted too: with `myol` it is MYOL,
with `unmix` Un-Mix on BYOL, and with `imix`, which leaves out the clean loss, i-Mix on BYOL.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixco.methods.mixed import mixed_queries, total_losses
from mixco.methods.options import BYOLOptions
from mixco.methods.prediction import agreement, views_compared
from mixco.mixing import Mixer, Pairs
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.models.heads import build_predictor
from mixco.models.momentum import momentum_copy, momentum_update
from mixco.runtime.distributed import split_batch, world


def build(
    encoder: nn.Module,
    mix: Mixer | None,
    options: BYOLOptions,
    *,
    dim: int,
    micro_batches: int,
    generator: torch.Generator,
    **_: object,
) -> "BYOL":
    """BYOL by its settings."""
    return BYOL(
        encoder,
        build_predictor(dim, options.predictor_hidden, generator),
        momentum=options.momentum,
        rises=options.momentum_schedule == "cosine",
        mix=mix,
        mix_weight=options.mix_weight,
        micro_batches=micro_batches,
    )


class BYOL(nn.Module):
    """Predictions of each view against the target projections of the other view.

    encoder: images [B, 3, S, S] -> projections [B, C]. predictor: [B, C] -> [B, C].
    momentum: of the target encoder. rises: from there to 1, by a cosine over the run?
    mix: a mixer, or None for plain BYOL. mix_weight: weight of the mixed loss.
    micro_batches: parts in which the encoder takes a batch, see models/gradient_caching.py.

    Each view, and the mixed images, go through the encoder on their own, as in the published codes, so
    that each has its own statistics of batch norm.
    """

    def __init__(
        self,
        encoder: nn.Module,
        predictor: nn.Module,
        *,
        momentum: float,
        mix: Mixer | None,
        mix_weight: float,
        rises: bool = True,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = adjust_momentum(encoder, micro_batches)
        self.target = momentum_copy(self.encoder)
        self.predictor = predictor
        self.momentum = momentum
        self.rises = rises
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
        draws, batch: see `Method.forward`. The mean of the losses over the processes does not depend on
            how many there are.

        clean: 4 - 2 cos(p1, z2) - 2 cos(p2, z1), in [0, 8], as in BYOL's paper. mixed: 2 - 2 cos, in
            [0, 4]. accuracy: see `Agreement`.
        """
        batch = batch or len(views[0])
        pairs = self.draw(batch, draws) if isinstance(draws, torch.Generator) else draws
        mixed, parts = None, split_batch(batch, world())
        if self.mix:
            mixed = mixed_queries(self.mix, views[0], parts, pairs[0], views[1])
        images = [] if self.mix and self.mix.alone else list(views)
        images += [mixed.images] if mixed else []
        predictions = [self.predictor(self._encode(self.encoder, some)) for some in images]
        with torch.no_grad():
            wanted = views_compared(self.mix)
            targets = {view: self._encode(self.target, views[view]) for view in wanted}
        found = agreement(predictions, targets, batch, self.mix, mixed)
        clean = None if found.clean is None else 4 - 2 * found.clean
        mixed_loss = None if found.mixed is None else 2 - 2 * found.mixed
        return total_losses(clean, mixed_loss, self.mix_weight, found.accuracy)

    def _encode(self, encoder: nn.Module, images: Tensor) -> Tensor:
        return encode_in_micro_batches(encoder, images, self.micro_batches)

    def after_step(self, progress: float) -> None:
        """The target follows the encoder, by 1 - momentum of the way."""
        slower = (1 + math.cos(math.pi * progress)) / 2 if self.rises else 1
        momentum_update(self.target, self.encoder, 1 - (1 - self.momentum) * slower)
