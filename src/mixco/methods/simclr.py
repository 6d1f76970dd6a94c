"""SimCLR (Chen et al. 2020, arXiv 2002.05709), plain or mixed.

With a mixer it is MixCo on SimCLR (Kim et al. 2020): each view is mixed on its own, and its mixed images
are compared with the clean outputs of the other view.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixco.losses import (
    contrastive_accuracy,
    similarity_logits,
    soft_cross_entropy,
    soft_infonce,
    unit,
)
from mixco.methods.mixed import mixed_queries, total_losses
from mixco.methods.options import ContrastiveOptions
from mixco.mixing import Mixer, Pairs
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.runtime.distributed import gather, local_rows, scale_local_mean, split_batch, world


def build(
    encoder: nn.Module,
    mix: Mixer | None,
    options: ContrastiveOptions,
    *,
    micro_batches: int,
    **_: object,
) -> "SimCLR":
    """SimCLR by its settings."""
    return SimCLR(
        encoder,
        temperature=options.temperature,
        mix=mix,
        mix_temperature=options.mix_temperature,
        mix_weight=options.mix_weight,
        micro_batches=micro_batches,
    )


class SimCLR(nn.Module):
    """NT-Xent over both views; mixed images of a view against the clean outputs of the other view.

    encoder: images [B, 3, S, S] -> projections [B, C].
    temperature, mix_temperature: T and T_mix. mix_weight: weight of the mixed loss.
    mix: a mixer, or None for plain SimCLR.
    micro_batches: parts in which the encoder takes a batch, see models/gradient_caching.py.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        temperature: float,
        mix: Mixer | None,
        mix_temperature: float,
        mix_weight: float,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = adjust_momentum(encoder, micro_batches)
        self.temperature = temperature
        self.mix = mix
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight
        self.micro_batches = micro_batches

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Pairs, ...]:
        """The draws of a step: the pairs of each view that is mixed."""
        mixed_views = 0 if self.mix is None else 1 if self.mix.alone else 2
        return tuple(self.mix.draw(batch, generator) for _ in range(mixed_views) if self.mix)

    def forward(
        self,
        views: Sequence[Tensor],
        draws: torch.Generator | tuple[Pairs, ...],
        batch: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch: scalars loss, clean, accuracy, and mixed where there is a mixer.

        views: two of [b, 3, S, S], of the same images.
        draws: what `draw` gives, equal on all processes, or a generator on the CPU to draw it from.
        batch: B, the images of all processes, of which this one holds b (`distributed.split_batch`);
            None with one process. The mean of the losses over the processes does not depend on how many
            there are.

        accuracy: percentage of outputs whose other view is more similar than the views of all other
            images. Where the mixed loss is alone, there is no clean loss, and it is the percentage of
            mixed images whose larger source is more similar than all others.
        """
        view_i, view_j = views
        here = len(view_i)
        batch = batch or here
        parts = split_batch(batch, world())
        pairs = self.draw(batch, draws) if isinstance(draws, torch.Generator) else draws
        if self.mix and self.mix.alone:
            return self.mixed_alone(self.mix, views, pairs[0], batch)
        mixed = (
            [mixed_queries(self.mix, *each) for each in zip(views, [parts] * 2, pairs, strict=True)]
            if self.mix
            else []
        )
        images = torch.cat([view_i, view_j, *(some.images for some in mixed)])
        outputs = self._encode(images)  # [2b (+ 2m), C]
        queries = outputs[: 2 * here]  # one slice: two would add their gradients in another order
        z = queries  # [2B, C], with gradient
        if world() > 1:
            z = gather(queries, tuple(torch.cat([rows, rows + batch]) for rows in parts))
        rows = local_rows(batch, z.device)
        rows = torch.cat([rows, rows + batch])
        itself = rows[:, None] == torch.arange(2 * batch, device=z.device)  # [2b, 2B]
        other_view = itself.roll(batch, dims=1).to(outputs.dtype)
        logits = similarity_logits(queries, z, self.temperature, exclude=itself)
        clean = scale_local_mean(soft_cross_entropy(logits, other_view), here, batch)
        accuracy = scale_local_mean(contrastive_accuracy(logits, other_view), here, batch)
        mixed_loss = None
        if mixed:
            z_i, z_j = z.chunk(2)
            mixed_i, mixed_j = mixed
            outputs_i, outputs_j = outputs[2 * here :].chunk(2)
            both = soft_infonce(outputs_i, z_j, mixed_i.targets, self.mix_temperature)
            both = both + soft_infonce(outputs_j, z_i, mixed_j.targets, self.mix_temperature)
            mixed_loss = mixed_i.mean(0.5 * both)
        return total_losses(clean, mixed_loss, self.mix_weight, accuracy)

    def mixed_alone(
        self, mixer: Mixer, views: Sequence[Tensor], pairs: Pairs, batch: int
    ) -> dict[str, Tensor]:
        """The losses where the mixed loss replaces the clean one: the N-pair loss of i-Mix.

        Mixed images of the first view are compared with clean outputs of the second (Lee et al. 2021).
        Both have a gradient. It takes two passes an image, not four.
        """
        parts = split_batch(batch, world())
        mixed = mixed_queries(mixer, views[0], parts, pairs)
        count = len(mixed.images)
        outputs = self._encode(torch.cat([mixed.images, views[1]]))
        queries, z = outputs[:count], outputs[count:]
        if world() > 1:
            z = gather(z, parts)  # [B, C], with gradient
        logits = similarity_logits(queries, z, self.mix_temperature)
        loss = mixed.mean(soft_cross_entropy(logits, mixed.targets))
        accuracy = mixed.mean(contrastive_accuracy(logits, mixed.targets))
        return total_losses(None, loss, self.mix_weight, accuracy)

    def _encode(self, images: Tensor) -> Tensor:
        """Outputs of unit length, in at least float32."""
        outputs = encode_in_micro_batches(self.encoder, images, self.micro_batches)
        return unit(outputs)

    def after_step(self, progress: float) -> None:
        """Nothing changes with the steps."""
