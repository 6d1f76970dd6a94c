"""MoCo (He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020, arXiv 2003.04297), plain or mixed.

v1 and v2 differ in the head (linear, MLP), the augmentation and the schedule, not in this file.
With a mixer it is MixCo on MoCo (Kim et al. 2020, section 2.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixco.losses import (
    contrastive_accuracy,
    similarity_logits,
    soft_cross_entropy,
    soft_infonce,
)
from mixco.mixing import Mixer, draw_shares
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.models.key_queue import KeyQueue
from mixco.models.momentum import momentum_copy, momentum_update
from mixco.models.split_batchnorm import split_batch_norms
from mixco.runtime.device import send
from mixco.runtime.distributed import (
    Parts,
    all_to_all_rows,
    gather,
    rank,
    scale_local_mean,
    split_batch,
    world,
)


class MoCo(nn.Module):
    """Queries against their own key and a queue; mixtures against all keys and the queue.

    encoder: images [B, 3, S, S] -> projections [B, C]. It becomes the query encoder, its batch
        norms split into `bn_splits` virtual devices; 1 is for encoders without batch norm. So many
        are all processes and micro_batches together; at least one each.
    micro_batches: that a batch passes the encoder in, see models/gradient_caching.py.
    queue: K, the number of keys kept. momentum: of the key encoder.
    temperature, mix_temperature: T and T_mix. mix_weight: weight of the mixed loss.
    mix: a mixer, or None for plain MoCo.
    generator: draws the first keys of the queue.
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
        splits_of_a_pass = max(1, bn_splits // (world() * micro_batches))
        self.encoder = split_batch_norms(adjust_momentum(encoder, micro_batches), splits_of_a_pass)
        self.key_encoder = momentum_copy(self.encoder)
        self.queue = KeyQueue(queue, dim, generator)
        self.momentum = momentum
        self.temperature = temperature
        self.mix = mix
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight
        self.micro_batches = micro_batches
        self.parts = splits_of_a_pass * micro_batches  # parts of batch norm in this process

    def forward(
        self,
        view_q: Tensor,
        view_k: Tensor,
        generator: torch.Generator,
        batch: int | None = None,
    ) -> dict[str, Tensor]:
        """Two views [b, 3, S, S] of the same images -> scalars: loss, clean, (mixed), accuracy.

        accuracy: the share in percent of the clean queries whose own key is more similar than every key
            of the queue.

        generator: on the CPU, equal on all processes; draws the shares of the mixtures and the
            permutation of the keys.
        batch: B, the images of all processes together, of which these b are this process's part
            (`distributed.split_batch`); None with one process, whose B = b. The mean of the losses over
            the processes does not depend on how many there are.
        """
        here = view_q.shape[0]
        batch = batch or here
        parts = split_batch(batch, world())
        rows = parts[rank()]  # [b]
        mixed = None
        if self.mix:
            shares = draw_shares(batch // 2, generator)
            mixed = self.mix(view_q, shares[rows[: here // 2]])
        queries = self.encode_queries(
            view_q if mixed is None else torch.cat([view_q, mixed.images])
        )
        keys = self.encode_keys(view_k, parts, generator)  # [B, C]
        candidates = torch.cat([keys, self.queue.keys])  # [B + K, C]

        rows = send(rows, keys.device)
        own = torch.eye(batch, device=keys.device)[rows]  # [b, B]
        others = F.pad(own == 0, (0, candidates.shape[0] - batch))  # [b, B + K]
        logits = similarity_logits(queries[:here], candidates, self.temperature, exclude=others)
        clean = scale_local_mean(soft_cross_entropy(logits, own), here, batch)
        accuracy = scale_local_mean(contrastive_accuracy(logits, own), here, batch)
        losses = {"loss": clean, "clean": clean.detach()}
        if mixed is not None:
            targets = mixed.targets.new_zeros(here // 2, batch)
            targets = targets.index_copy(1, rows, mixed.targets)
            mixed_loss = soft_infonce(queries[here:], candidates, targets, self.mix_temperature)
            mixed_loss = scale_local_mean(mixed_loss, here // 2, batch // 2)
            losses = {
                "loss": clean + self.mix_weight * mixed_loss,
                "clean": clean.detach(),
                "mixed": mixed_loss.detach(),
            }
        self.queue.push(keys)
        return {**losses, "accuracy": accuracy}

    def encode_queries(self, images: Tensor) -> Tensor:
        """[B (+ M), 3, S, S], clean images and then mixtures -> unit queries [B (+ M), C].

        All pass the encoder in one forward.
        """
        return self._encode(self.encoder, images)

    @torch.no_grad()
    def encode_keys(self, view_k: Tensor, parts: Parts, generator: torch.Generator) -> Tensor:
        """[b, 3, S, S] -> unit keys [B, C] of all, from the key encoder after its momentum update.

        The images are permuted before the encoder, across the processes, and the keys put back after
        it, so that a key shares the statistics of its part with other images than its query did
        (He et al. 2020, section 3.3).
        """
        momentum_update(self.key_encoder, self.encoder, self.momentum)
        sizes = [len(rows) for rows in parts]
        shuffled = torch.split(torch.randperm(sum(sizes), generator=generator), sizes)
        keys = self._encode(self.key_encoder, all_to_all_rows(view_k, parts, shuffled))
        return gather(keys, shuffled)

    def _encode(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Deal the images to the virtual devices in turn, encode, put the outputs back in order.

        Split batch norms take contiguous parts. Dealt in turn, each part gets its share of the
        clean images and its share of the mixtures, as each real device would.
        """
        number = torch.arange(images.shape[0], device=images.device)
        order = torch.argsort(number % self.parts, stable=True)
        outputs = _unit(encode_in_micro_batches(encoder, images[order], self.micro_batches))
        return torch.empty_like(outputs).index_copy(0, order, outputs)


def _unit(outputs: Tensor) -> Tensor:
    """Projections of any dtype to unit length, in at least float32."""
    return F.normalize(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), dim=1)
