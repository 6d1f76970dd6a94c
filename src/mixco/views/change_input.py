"""Views that were made for one encoder, as another one takes them."""

import torch
from torch import Tensor

from mixco.runtime.device import send
from mixco.views.augment import Input
from mixco.views.resampling import crop_resize


def change_input(views: Tensor, made_for: Input, wanted: Input) -> Tensor:
    """Resize views and normalise them anew: [B, C, S, S] -> [B, C, wanted.size, wanted.size].

    views: floating, normalised for `made_for`. The resize is bilinear, antialiased where it reduces.

    Returns the dtype of the views, channels_last. It computes in float32.
    """
    if made_for == wanted:
        return views
    x = views.to(torch.float32)
    mean, std, new_mean, new_std = map(torch.tensor, (*made_for[1:], *wanted[1:]))
    scale, shift = std / new_std, (mean - new_mean) / new_std
    if made_for.size != wanted.size:
        # Resizing before or after the normalisation is the same: the weights of a pixel sum to one.
        whole = torch.tensor([[0, 0, made_for.size, made_for.size]]).expand(len(x), 4)
        x = crop_resize(x, whole, torch.zeros(len(x), dtype=torch.bool), wanted.size)
        scale = 255 * scale  # by which it divides
    scale, shift = send(torch.stack([scale, shift]), x.device)[..., None, None]
    x = torch.addcmul(shift, x, scale)
    return x.to(views.dtype).contiguous(memory_format=torch.channels_last)
