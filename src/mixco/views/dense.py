"""Views by operations whose shapes do not depend on the draws.

`apply_view` sorts the images by what is done with them, so that each operation is computed only where it
is wanted; the host then sends small tables to the device at every step. Here each operation is computed
for every image, and `where` chooses. Alone that takes four times the work. But it can be compiled, which
fuses most of it, and replayed in a CUDA graph. The arithmetic is the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixco.views.augment import ViewFunctions, ViewParameters, normalisation, orient, unit
from mixco.views.augmentation import Augmentation
from mixco.views.colour import OPERATIONS, luma
from mixco.views.resampling import blur_by_products, crop_resize, gaussian_taps


def dense_views(compiled: bool = False) -> ViewFunctions:
    """`apply_view` and `finish_view` in this way; they take their parameters on the images' device.

    compiled: by torch.compile, at the first call, which takes some seconds.
    """
    return ViewFunctions(_with_constants(_apply, compiled), _with_constants(_finish, compiled))


def _with_constants(view: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    """The function with the constants of normalisation as an argument that it need not be given."""
    inner = torch.compile(view, fullgraph=True, dynamic=False) if compiled else view

    def outer(
        images: Tensor, parameters: ViewParameters, augmentation: Augmentation, *formats: Any
    ) -> Tensor:
        constants = normalisation(augmentation.input, images.device)
        return inner(images, parameters, constants, augmentation, *formats)

    return outer


def _apply(images: Tensor, parameters: ViewParameters, *how: Any) -> Tensor:
    augmentation: Augmentation = how[1]
    x = crop_resize(images, parameters.box, parameters.flip, augmentation.input.size)
    return _after_crop(x, parameters, *how)


def _finish(crops: Tensor, parameters: ViewParameters, *how: Any) -> Tensor:
    x = unit(crops)
    x = torch.where(parameters.flip[:, None, None, None], x.flip(3), x)
    return _after_crop(x, parameters, *how)


def _after_crop(
    x: Tensor,
    p: ViewParameters,
    constants: Tensor,
    a: Augmentation,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    if a.vertical_flip or a.quarter_turns:
        x = orient(x, p.vertical, p.turns)
    if a.grey_first:
        x = greyscale(x, p.grey)
    if a.jitter_probability > 0:
        x = jitter(x, p.jitter, p.order, p.factors)
    if not a.grey_first:
        x = greyscale(x, p.grey)
    if a.blur > 0:
        x = gaussian_blur(x, p.sigma, a.blur_kernel)
    scale, shift = constants
    return torch.addcmul(shift, x, scale).to(dtype).contiguous(memory_format=memory_format)


def greyscale(x: Tensor, grey: Tensor) -> Tensor:
    """`colour.greyscale`; grey: bool [B] on x's device."""
    return torch.where(grey[:, None, None, None], luma(x), x) if x.shape[1] == 3 else x


def jitter(x: Tensor, chosen: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """`colour.jitter`; all on x's device."""
    for stage in range(len(OPERATIONS)):
        kind = torch.where(
            chosen, order[:, stage], len(OPERATIONS)
        )  # the last number: none of them
        out = x
        for number, operation in enumerate(OPERATIONS):
            changed = operation(x.clone(), factors[:, number, None, None, None])  # works in place
            out = torch.where((kind == number)[:, None, None, None], changed, out)
        x = out
    return x


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """`resampling.gaussian_blur`; sigma: float32 [B] on x's device, 0 for images that stay sharp."""
    blurred = (sigma > 0)[:, None]
    taps = gaussian_taps(torch.where(sigma > 0, sigma, 1.0), kernel)
    middle = torch.arange(kernel, device=x.device) == kernel // 2
    return blur_by_products(x, torch.where(blurred, taps, middle.to(taps.dtype)))
