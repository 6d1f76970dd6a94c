"""SimSiam (Chen and He 2021, arXiv 2011.10566), plain or mixed.

It is BYOL without the momentum encoder: the targets are the encoder's own projections, which take no
gradient. The predictor's learning rate stays constant (section 4.2).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mixco.methods.mixed import mixed_queries, total_losses
from mixco.methods.options import PredictorOptions
from mixco.methods.prediction import agreement, views_compared
from mixco.mixing import Mixer, Pairs
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.models.heads import build_predictor
from mixco.runtime.distributed import split_batch, world


def build(
    encoder: nn.Module,
    mix: Mixer | None,
    options: PredictorOptions,
    *,
    dim: int,
    micro_batches: int,
    generator: torch.Generator,
    **_: object,
) -> "SimSiam":
    """SimSiam by its settings."""
    return SimSiam(
        encoder,
        build_predictor(dim, options.predictor_hidden, generator),
        mix=mix,
        mix_weight=options.mix_weight,
        micro_batches=micro_batches,
    )


class SimSiam(nn.Module):
    """Predictions of each view against the projections of the other view, which take no gradient.

    encoder: images [B, 3, S, S] -> projections [B, C]. predictor: [B, C] -> [B, C].
    mix: a mixer, or None for plain SimSiam. mix_weight: weight of the mixed loss.
    micro_batches: parts in which the encoder takes a batch, see models/gradient_caching.py.

    Each view, and the mixed images, go through the encoder on their own, as in the published code, so
    that each has its own statistics of batch norm.
    """

    def __init__(
        self,
        encoder: nn.Module,
        predictor: nn.Module,
        *,
        mix: Mixer | None,
        mix_weight: float,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = adjust_momentum(encoder, micro_batches)
        self.predictor = predictor
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

        clean: -cos(p1, z2) / 2 - cos(p2, z1) / 2, in [-1, 1], as in SimSiam's paper. mixed: -cos / 2, of
            one direction. accuracy: see `Agreement`.
        """
        batch = batch or len(views[0])
        pairs = self.draw(batch, draws) if isinstance(draws, torch.Generator) else draws
        mixed, parts = None, split_batch(batch, world())
        if self.mix:
            mixed = mixed_queries(self.mix, views[0], parts, pairs[0], views[1])
        alone = self.mix is not None and self.mix.alone
        with torch.set_grad_enabled(not alone):
            projections = {view: self._encode(views[view]) for view in views_compared(self.mix)}
        images = [] if alone else list(projections.values())
        images += [self._encode(mixed.images)] if mixed else []
        predictions = [self.predictor(some) for some in images]
        targets = {view: some.detach() for view, some in projections.items()}
        found = agreement(predictions, targets, batch, self.mix, mixed)
        clean = None if found.clean is None else -found.clean / 2
        mixed_loss = None if found.mixed is None else -found.mixed / 2
        return total_losses(clean, mixed_loss, self.mix_weight, found.accuracy)

    def _encode(self, images: Tensor) -> Tensor:
        return encode_in_micro_batches(self.encoder, images, self.micro_batches)

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """The weights that keep the peak learning rate at all steps."""
        return self.predictor.parameters()

    def after_step(self, progress: float) -> None:
        """Nothing changes with the steps."""
