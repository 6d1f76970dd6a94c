"""SimCLR (Chen et al. 2020, arXiv 2002.05709), plain or mixed.

With a mixer it is MixCo on SimCLR (Kim et al. 2020): each view is mixed on its own, and
its mixtures are held against the clean outputs of the other view.
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
from mixco.runtime.device import send
from mixco.runtime.distributed import gather, rank, scale_local_mean, split_batch, world


class SimCLR(nn.Module):
    """NT-Xent over both views; mixtures of a view against the clean outputs of the other view.

    encoder: images [B, 3, S, S] -> projections [B, C].
    temperature, mix_temperature: T and T_mix. mix_weight: weight of the mixed loss.
    mix: a mixer, or None for plain SimCLR.
    micro_batches: that a batch passes the encoder in, see models/gradient_caching.py.
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

    def forward(
        self,
        view_i: Tensor,
        view_j: Tensor,
        generator: torch.Generator,
        batch: int | None = None,
    ) -> dict[str, Tensor]:
        """Two views [b, 3, S, S] of the same images -> scalars: loss, clean, (mixed), accuracy.

        accuracy: the share in percent of the clean outputs whose other view is more similar than the
            views of all other images.

        generator: on the CPU, equal on all processes; draws the shares of the mixtures.
        batch: B, the images of all processes together, of which these b are this process's part
            (`distributed.split_batch`); None with one process, whose B = b. The mean of the losses over
            the processes does not depend on how many there are.
        """
        here = view_i.shape[0]
        batch = batch or here
        parts = split_batch(batch, world())
        rows = parts[rank()]
        images = [view_i, view_j]
        if self.mix:
            pairs = rows[: here // 2]
            mixed_i = self.mix(view_i, draw_shares(batch // 2, generator)[pairs])
            mixed_j = self.mix(view_j, draw_shares(batch // 2, generator)[pairs])
            images += [mixed_i.images, mixed_j.images]
        outputs = encode_in_micro_batches(self.encoder, torch.cat(images), self.micro_batches)
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        outputs = F.normalize(outputs.to(dtype), dim=1)  # [2b (+ 2m), C]

        queries = outputs[: 2 * here]
        of_both = [torch.cat([some, some + batch]) for some in parts]
        views = gather(queries, tuple(of_both))  # [2B, C], with gradient
        itself = torch.eye(2 * batch, dtype=torch.bool, device=views.device)
        itself = itself[send(of_both[rank()], views.device)]  # [2b, 2B]
        other_view = itself.roll(batch, dims=1).to(dtype)
        logits = similarity_logits(queries, views, self.temperature, exclude=itself)
        clean = scale_local_mean(soft_cross_entropy(logits, other_view), here, batch)
        accuracy = scale_local_mean(contrastive_accuracy(logits, other_view), here, batch)
        if not self.mix:
            return {"loss": clean, "clean": clean.detach(), "accuracy": accuracy}

        of_i, of_j = outputs[2 * here :].chunk(2)
        z_i, z_j = views.chunk(2)
        rows = send(rows, views.device)

        def of_all(targets: Tensor) -> Tensor:  # [m, b] -> [m, B]
            return targets.new_zeros(len(targets), batch).index_copy(1, rows, targets)

        mixed = 0.5 * (
            soft_infonce(of_i, z_j, of_all(mixed_i.targets), self.mix_temperature)
            + soft_infonce(of_j, z_i, of_all(mixed_j.targets), self.mix_temperature)
        )
        mixed = scale_local_mean(mixed, here // 2, batch // 2)
        return {
            "loss": clean + self.mix_weight * mixed,
            "clean": clean.detach(),
            "mixed": mixed.detach(),
            "accuracy": accuracy,
        }
