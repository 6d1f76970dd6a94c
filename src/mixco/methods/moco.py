"""MoCo (He et al. 2020, arXiv 1911.05722; v2: Chen et al. 2020, arXiv 2003.04297), plain or mixed.

v1 and v2 differ in the head (linear, MLP), the augmentation and the schedule, not in this file.
With a mixer it is MixCo on MoCo (Kim et al. 2020, section 2.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixco.losses import soft_infonce
from mixco.mixing import Mixer
from mixco.models.key_queue import KeyQueue
from mixco.models.momentum import momentum_copy, momentum_update
from mixco.models.split_batchnorm import split_batch_norms


class MoCo(nn.Module):
    """Queries against their own key and a queue; mixtures against all keys and the queue.

    encoder: images [B, 3, S, S] -> projections [B, C]. It becomes the query encoder, its batch
        norms split into `bn_splits` virtual devices; 1 is for encoders without batch norm.
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
    ) -> None:
        super().__init__()
        self.encoder = split_batch_norms(encoder, bn_splits)
        self.key_encoder = momentum_copy(self.encoder)
        self.queue = KeyQueue(queue, dim, generator)
        self.momentum = momentum
        self.temperature = temperature
        self.mix = mix
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight
        self.bn_splits = bn_splits

    def forward(
        self, view_q: Tensor, view_k: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Two views [B, 3, S, S] of the same images -> the losses, scalars: loss, clean, (mixed).

        generator: on the CPU; draws the shares of the mixtures and the permutation of the keys.
        """
        batch = view_q.shape[0]
        mixed = self.mix(view_q, generator) if self.mix else None
        queries = self.encode_queries(
            view_q if mixed is None else torch.cat([view_q, mixed.images])
        )
        keys = self.encode_keys(view_k, generator)  # [B, C]
        candidates = torch.cat([keys, self.queue.keys])  # [B + K, C]

        own = torch.eye(batch, device=keys.device)  # [B, B]
        others = F.pad(own == 0, (0, candidates.shape[0] - batch))  # [B, B + K]
        clean = soft_infonce(queries[:batch], candidates, own, self.temperature, exclude=others)
        losses = {"loss": clean, "clean": clean.detach()}
        if mixed is not None:
            mixed_loss = soft_infonce(
                queries[batch:], candidates, mixed.targets, self.mix_temperature
            )
            losses = {
                "loss": clean + self.mix_weight * mixed_loss,
                "clean": clean.detach(),
                "mixed": mixed_loss.detach(),
            }
        self.queue.push(keys)
        return losses

    def encode_queries(self, images: Tensor) -> Tensor:
        """[B (+ M), 3, S, S], clean images and then mixtures -> unit queries [B (+ M), C].

        All pass the encoder in one forward.
        """
        return self._encode(self.encoder, images)

    @torch.no_grad()
    def encode_keys(self, view_k: Tensor, generator: torch.Generator) -> Tensor:
        """[B, 3, S, S] -> unit keys [B, C], from the key encoder after its momentum update.

        The keys are permuted before the encoder and put back after it, so that a key shares the
        statistics of its part with other images than its query did (He et al. 2020, section 3.3).
        """
        momentum_update(self.key_encoder, self.encoder, self.momentum)
        order = torch.randperm(view_k.shape[0], generator=generator)
        order = order.to(view_k.device, non_blocking=view_k.device.type != "mps")
        keys = self._encode(self.key_encoder, view_k[order])
        return torch.empty_like(keys).index_copy(0, order, keys)

    def _encode(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Deal the images to the virtual devices in turn, encode, put the outputs back in order.

        Split batch norms take contiguous parts. Dealt in turn, each part gets its share of the
        clean images and its share of the mixtures, as each real device would.
        """
        number = torch.arange(images.shape[0], device=images.device)
        order = torch.argsort(number % self.bn_splits, stable=True)
        outputs = _unit(encoder(images[order]))
        return torch.empty_like(outputs).index_copy(0, order, outputs)


def _unit(outputs: Tensor) -> Tensor:
    """Projections of any dtype to unit length, in at least float32."""
    return F.normalize(outputs.to(torch.promote_types(outputs.dtype, torch.float32)), dim=1)
