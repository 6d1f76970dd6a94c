"""SimCLR (Chen et al. 2020, arXiv 2002.05709), plain or mixed.

With a mixer it is MixCo on SimCLR (Kim et al. 2020): each view is mixed on its own, and
its mixtures are held against the clean outputs of the other view.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixco.losses import soft_infonce
from mixco.mixing import Mixer


class SimCLR(nn.Module):
    """NT-Xent over both views; mixtures of a view against the clean outputs of the other view.

    encoder: images [B, 3, S, S] -> projections [B, C].
    temperature, mix_temperature: T and T_mix. mix_weight: weight of the mixed loss.
    mix: a mixer, or None for plain SimCLR.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        temperature: float,
        mix: Mixer | None,
        mix_temperature: float,
        mix_weight: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.temperature = temperature
        self.mix = mix
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight

    def forward(
        self, view_i: Tensor, view_j: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Two views [B, 3, S, S] of the same images -> the losses, scalars: loss, clean, (mixed).

        generator: on the CPU; draws the shares of the mixtures.
        """
        batch = view_i.shape[0]
        images = [view_i, view_j]
        if self.mix:
            mixed_i = self.mix(view_i, generator)
            mixed_j = self.mix(view_j, generator)
            images += [mixed_i.images, mixed_j.images]
        outputs = self.encoder(torch.cat(images))  # one forward for all
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        outputs = F.normalize(outputs.to(dtype), dim=1)  # [2B (+ 2M), C]

        views = outputs[: 2 * batch]
        itself = torch.eye(2 * batch, dtype=torch.bool, device=views.device)
        other_view = itself.roll(batch, dims=1).to(dtype)
        clean = soft_infonce(views, views, other_view, self.temperature, exclude=itself)
        if not self.mix:
            return {"loss": clean, "clean": clean.detach()}

        of_i, of_j = outputs[2 * batch :].chunk(2)
        z_i, z_j = views.chunk(2)
        mixed = 0.5 * (
            soft_infonce(of_i, z_j, mixed_i.targets, self.mix_temperature)
            + soft_infonce(of_j, z_i, mixed_j.targets, self.mix_temperature)
        )
        return {
            "loss": clean + self.mix_weight * mixed,
            "clean": clean.detach(),
            "mixed": mixed.detach(),
        }
