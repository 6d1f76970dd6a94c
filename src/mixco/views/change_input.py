"""Views that were made for one encoder, as another one takes them."""

from functools import lru_cache

import torch
from torch import Tensor

from mixco.runtime.device import send
from mixco.views.augmentation import Input
from mixco.views.resampling import crop_resize


def change_input(views: Tensor, made_for: Input, wanted: Input) -> Tensor:
    """Resize views and normalise them anew: [B, C, S, S] -> [B, C, wanted.size, wanted.size].

    views: floating, normalised for `made_for`. The resize is bilinear, antialiased where it reduces.

    Returns the dtype of the views, channels_last. It computes in float32.
    """
    if made_for == wanted:
        return views
    x = views.to(torch.float32)
    (scale, shift), whole, flip = _constants(made_for, wanted, x.device)
    if made_for.size != wanted.size:
        # Resizing before or after the normalisation is the same: the weights of a pixel sum to one.
        x = crop_resize(x, whole.expand(len(x), 4), flip.expand(len(x)), wanted.size)
    x = torch.addcmul(shift, x, scale)
    return x.to(views.dtype).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _constants(
    made_for: Input, wanted: Input, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift, float32 [2, C, 1, 1]; the whole view as a crop, not flipped. Sent once."""
    mean, std, new_mean, new_std = map(torch.tensor, (*made_for[1:], *wanted[1:]))
    scale, shift = std / new_std, (mean - new_mean) / new_std
    if made_for.size != wanted.size:
        scale = 255 * scale  # by which `crop_resize` divides
    whole = torch.tensor([[0, 0, made_for.size, made_for.size]])
    constants = torch.stack([scale, shift])[..., None, None], whole, torch.tensor([False])
    first, second, third = (send(each, device) for each in constants)
    return first, second, third
