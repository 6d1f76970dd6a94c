"""Two augmented views of a batch, for other training loops."""

from typing import Any

import torch
from torch import Tensor, nn

from mixco.runtime.seeding import generator_for
from mixco.views import augment as views
from mixco.views.augmentation import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    Input,
    augmentation_of,
)


class TwoViews(nn.Module):
    """A batch of images -> two augmented views of each, on the images' device.

    size: side of the views in pixels. augmentation: the recipe of the views, a name of
        `views.augmentation.AUGMENTATIONS`. jitter: strength of its colour jitter, 0 to 1.25.
    min_crop: the smallest crop's share of the area, in (0, 1]. grey, blur, vertical_flip,
        quarter_turns (by 90, 180 or 270 degrees): probabilities. None: as in the recipe.
    mean, std: for normalisation, of pixels in [0, 1].
    seed, rank: of the draws, which do not touch torch's own generators. Processes need different ranks,
        or seeds. The number of batches so far is in the module's state, so that a resumed loop draws as
        if it had not stopped.

    It has no parameters, and does the same in training and evaluation mode.
    """

    def __init__(
        self,
        size: int,
        augmentation: str = "simclr",
        *,
        jitter: float = 1.0,
        min_crop: float | None = None,
        grey: float | None = None,
        blur: float | None = None,
        vertical_flip: float | None = None,
        quarter_turns: float | None = None,
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        super().__init__()
        if augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {augmentation}"
            )
        method = {
            "augmentation": augmentation,
            "jitter": jitter,
            "min_crop": min_crop,
            "grey": grey,
            "blur": blur,
            "vertical_flip": vertical_flip,
            "quarter_turns": quarter_turns,
        }
        self.augmentation = augmentation_of(method, Input(size, mean, std))
        self.seed, self.rank = seed, rank
        self.batches = 0

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: [B, 3, H, W] on any device, uint8, or floating in [0, 1].

        Returns two views, float32 [B, 3, size, size], channels_last, normalised.

        Raises ValueError for another shape or dtype.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {list(images.shape)}")
        if images.is_floating_point():
            images = 255 * images.float()
        elif images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 or floating in [0, 1], got {images.dtype}")
        generator = generator_for(self.seed, "two views", self.rank, self.batches)
        self.batches += 1
        extents = torch.tensor([images.shape[2:]]).expand(len(images), 2)
        return views.two_views(images, extents, self.augmentation, generator, torch.float32)

    def get_extra_state(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
