"""What training sees of some images: two views of each, and mixed images."""

from typing import NamedTuple

import torch
from torch import Tensor

from mixco.mixing import Mixer
from mixco.views.augment import Augmentation, brightened, two_views


class Preview(NamedTuple):
    originals: Tensor
    extents: Tensor
    view_q: Tensor
    view_k: Tensor
    mixed: Tensor | None
    pairs: list[tuple[int, int, float]]


def preview(
    originals: Tensor,
    extents: Tensor,
    augmentation: Augmentation,
    mixer: Mixer | None,
    generator: torch.Generator,
) -> Preview:
    view_q, view_k = two_views(originals, extents, augmentation, generator, torch.float32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in augmentation.input[1:])

    def visible(view: Tensor) -> Tensor:
        pixels = view * std + mean
        if originals.dtype == torch.uint8:
            return pixels.clamp(0, 1)
        return brightened(pixels, augmentation.input)

    mixed, pairs = None, []
    if mixer is not None and len(originals) >= 2:
        made = mixer(view_q, generator)
        mixed = visible(made.images)
        for row in made.targets:
            sources = row.nonzero().squeeze(1).tolist()
            pairs.append((sources[0], sources[-1], row[sources[0]].item()))
    shown = brightened(originals, augmentation.input)
    return Preview(shown, extents, visible(view_q), visible(view_k), mixed, pairs)
