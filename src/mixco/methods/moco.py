"""MoCo (He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020, arXiv 2003.04297), plain or mixed.

v1 and v2 differ in the head (linear, MLP), the augmentation and the schedule, not in this file.
With a mixer it is MixCo on MoCo (Kim et al. 2020, section 2.2).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixco.losses import (
    contrastive_accuracy,
    own_cross_entropy,
    similarity_logits,
    soft_cross_entropy,
    unit,
)
from mixco.methods.mixed import mixed_queries, total_losses
from mixco.methods.options import MoCoOptions
from mixco.mixing import Mixer, Pairs
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.models.key_queue import KeyQueue, own_key
from mixco.models.momentum import momentum_copy, momentum_update
from mixco.models.split_batchnorm import deal, dealt, split_batch_norms, undeal
from mixco.runtime.distributed import (
    Parts,
    all_to_all_rows,
    gather,
    scale_local_mean,
    split_batch,
    world,
)


def build(
    encoder: nn.Module,
    mix: Mixer | None,
    options: MoCoOptions,
    *,
    dim: int,
    micro_batches: int,
    generator: torch.Generator,
    **_: object,
) -> "MoCo":
    """MoCo by its settings."""
    return MoCo(
        encoder,
        dim=dim,
        queue=options.queue,
        momentum=options.momentum,
        temperature=options.temperature,
        mix=mix,
        mix_temperature=options.mix_temperature,
        mix_weight=options.mix_weight,
        bn_splits=options.bn_splits,
        generator=generator,
        micro_batches=micro_batches,
    )


class MoCoDraws(NamedTuple):
    """The draws of a step, of the whole batch."""

    pairs: Pairs | None
    """The mixer's pairs; None without a mixer."""
    order: Tensor
    """int64 [B]: the rows of the batch in the order in which their keys are encoded."""


class MoCo(nn.Module):
    """Queries against their own key and a queue; mixed queries against all keys and the queue.

    encoder: images [B, 3, S, S] -> projections [B, C]. It becomes the query encoder.
    dim: C. queue: K, the number of keys kept. momentum: of the key encoder.
    temperature, mix_temperature: T and T_mix. mix_weight: weight of the mixed loss.
    mix: a mixer, or None for plain MoCo.
    bn_splits: virtual devices of the batch norms, counted over all processes and micro-batches, at least
        one in each; 1 is for encoders without batch norm.
    generator: draws the first keys of the queue.
    micro_batches: parts in which the encoder takes a batch, see models/gradient_caching.py.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        dim: int,
        queue: int,
        momentum: float,
        temperature: float,
        mix: Mixer | None,
        mix_temperature: float,
        mix_weight: float,
        bn_splits: int,
        generator: torch.Generator,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        splits = max(1, bn_splits // (world() * micro_batches))  # of one forward pass
        self.encoder = split_batch_norms(adjust_momentum(encoder, micro_batches), splits)
        self.key_encoder = momentum_copy(self.encoder)
        self.queue = KeyQueue(queue, dim, generator)
        self.momentum = momentum
        self.temperature = temperature
        self.mix = mix
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight
        self.micro_batches = micro_batches
        self.splits = splits * micro_batches  # of all images of this process

    def draw(self, batch: int, generator: torch.Generator) -> MoCoDraws:
        """The draws of a step, on the CPU: the pairs of the mixer, and the order of the keys.

        The rows of the batch are permuted, so that a key shares the statistics of its part with other
        images than its query did (He et al. 2020, section 3.3). Each process gets as many as it holds,
        and deals them to its virtual devices.
        """
        pairs = self.mix.draw(batch, generator) if self.mix else None
        sizes = [len(rows) for rows in split_batch(batch, world())]
        shuffled = torch.split(torch.randperm(batch, generator=generator), sizes)
        order = [rows[dealt(len(rows), self.splits)] for rows in shuffled]
        return MoCoDraws(pairs, torch.cat(order))

    def forward(
        self,
        views: Sequence[Tensor],
        draws: torch.Generator | MoCoDraws,
        batch: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch: scalars loss, clean, accuracy, and mixed where there is a mixer.

        views: two of [b, 3, S, S], of the same images: the queries' and the keys'.
        draws: what `draw` gives, equal on all processes, or a generator on the CPU to draw it from.
        batch: B, the images of all processes, of which this one holds b (`distributed.split_batch`);
            None with one process. The mean of the losses over the processes does not depend on how many
            there are.

        accuracy: percentage of clean queries whose positive is more similar than every negative. Where
            the mixed loss is alone, there is no clean loss, and the positive is the larger source.
        """
        view_q, view_k = views
        here = len(view_q)
        batch = batch or here
        parts = split_batch(batch, world())
        pairs, order = self.draw(batch, draws) if isinstance(draws, torch.Generator) else draws
        mixed = mixed_queries(self.mix, view_q, parts, pairs) if self.mix and pairs else None
        clean_images = [] if self.mix and self.mix.alone else [view_q]
        queries = self.encode_queries([*clean_images, *([mixed.images] if mixed else [])])
        keys = self.encode_keys(view_k, parts, order)  # [B, C]
        candidates = torch.cat([keys, self.queue.keys])  # [B + K, C]
        clean = mixed_loss = None
        if clean_images:
            own, others = own_key(batch, candidates)
            logits = similarity_logits(queries[:here], candidates, self.temperature, exclude=others)
            clean = scale_local_mean(soft_cross_entropy(logits, own), here, batch)
            accuracy = scale_local_mean(contrastive_accuracy(logits, own), here, batch)
        if self.mix and mixed:
            asked = queries[here:] if clean_images else queries
            logits = similarity_logits(asked, candidates, self.mix_temperature)
            entropy = own_cross_entropy if self.mix.own_denominators else soft_cross_entropy
            mixed_loss = mixed.mean(entropy(logits, mixed.targets))
            if not clean_images:
                accuracy = mixed.mean(contrastive_accuracy(logits, mixed.targets))
        self.queue.push(keys)
        return total_losses(clean, mixed_loss, self.mix_weight, accuracy)

    def after_step(self, progress: float) -> None:
        """Nothing changes with the steps."""

    def encode_queries(self, images: Sequence[Tensor]) -> Tensor:
        """Clean images [b, 3, S, S], mixed ones [m, 3, S, S], or both -> unit queries [b + m, C].

        All of them go through the encoder in one forward pass.
        """
        return undeal(self._encode(self.encoder, deal(images, self.splits)), self.splits)

    @torch.no_grad()
    def encode_keys(self, view_k: Tensor, parts: Parts, order: Tensor) -> Tensor:
        """[b, 3, S, S] -> unit keys [B, C] of all, from the key encoder after its momentum update.

        order: as in `MoCoDraws`. The images come in this order, across the processes; the keys are put
        back in that of the batch.
        """
        momentum_update(self.key_encoder, self.encoder, self.momentum)
        ordered = torch.split(order, [len(rows) for rows in parts])
        keys = self._encode(self.key_encoder, all_to_all_rows(view_k, parts, ordered))
        return gather(keys, ordered)

    def _encode(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Projections of unit length, in at least float32."""
        outputs = encode_in_micro_batches(encoder, images, self.micro_batches)
        return unit(outputs)
