"""Random views of images, made on the device: parameters per image, arithmetic per batch.

`sample_view` draws the parameters and `apply_view` applies them, so that a test can apply the same
parameters image by image with torchvision. Drawing happens on the CPU: the host then knows the size of
every group of images, and applying never waits for the device.

Images have any number of channels. Crop, flips, turns, blur, brightness and contrast act on all of
them; greyscale, saturation and hue only on three, which are taken as red, green and blue. The draws are
the same.

Streamed images are cropped by workers, before they reach the device. For them `draw_view` draws
everything, `place_crops` finds the crops once the extents are known, and `finish_view` does the rest.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mixco.runtime.device import send
from mixco.views.augmentation import Augmentation, Input
from mixco.views.colour import greyscale, jitter
from mixco.views.resampling import crop_resize, gaussian_blur

CROP_TRIES = 10
# Pixels of the views that are made together on a CPU: few enough to stay in its cache, many enough that
# the fixed cost of some hundred operations, microseconds each, does not matter.
CHUNK = 2**18


class ViewParameters(NamedTuple):
    """The drawn parameters of one view of each of B images; tensors on the CPU."""

    box: Tensor
    """int64 [B, 4]: top, left, height, width of the crop, in pixels of the canvas; [B, 0] until the
    crops are placed."""
    flip: Tensor
    """bool [B]"""
    jitter: Tensor
    """bool [B]"""
    factors: Tensor
    """float32 [B, 4]: brightness, contrast, saturation, and hue in turns of [-0.5, 0.5]."""
    order: Tensor
    """int64 [B, 4]: which of the four is applied at each stage."""
    grey: Tensor
    """bool [B]"""
    sigma: Tensor
    """float32 [B]: of the blur, in pixels of the view; 0 for none."""
    vertical: Tensor
    """bool [B]: flipped from top to bottom?"""
    turns: Tensor
    """int64 [B]: quarter turns, 0 to 3, counterclockwise and after the flips."""

    def rows(self, index: slice | Tensor) -> "ViewParameters":
        """The parameters of some images."""
        return ViewParameters(*(values[index] for values in self))


def sample_view(
    extents: Tensor, augmentation: Augmentation, generator: torch.Generator
) -> ViewParameters:
    """Draw the parameters of one view of each image.

    extents: int64 [B, 2] on the CPU, height and width of each image on its canvas.
    """
    crops, parameters = draw_view(len(extents), augmentation, generator)
    return parameters._replace(box=place_crops(crops, extents, augmentation))


def draw_view(
    batch: int, augmentation: Augmentation, generator: torch.Generator
) -> tuple[Tensor, ViewParameters]:
    """The draws of `sample_view` for images whose extents are not known yet.

    Returns the draws for `place_crops`, float64 [4, B, 10] in [0, 1), and the parameters without boxes.
    """
    a = augmentation

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    strength = torch.tensor(a.jitter)
    low, high = (1 - strength).clamp(min=0), 1 + strength
    low[3], high[3] = -strength[3], strength[3]  # of hue
    sigma = uniform(*a.blur_sigma) * a.input.size / 224
    crops = torch.rand(4, batch, CROP_TRIES, generator=generator, dtype=torch.float64)
    # The last two are drawn only where they are wanted: others draw as they did before these existed.
    return crops, ViewParameters(
        box=torch.empty(batch, 0, dtype=torch.int64),
        flip=uniform(0, 1) < a.flip,
        jitter=uniform(0, 1) < a.jitter_probability,
        factors=low + (high - low) * uniform(0, 1, 4),
        order=uniform(0, 1, 4).argsort(1),
        grey=uniform(0, 1) < a.grey,
        sigma=torch.where(uniform(0, 1) < a.blur, sigma, 0),
        vertical=uniform(0, 1) < a.vertical_flip if a.vertical_flip else torch.zeros(batch).bool(),
        turns=_turns(uniform(0, 1), a.quarter_turns)
        if a.quarter_turns
        else torch.zeros(batch).long(),
    )


def _turns(u: Tensor, probability: float) -> Tensor:
    """Uniform numbers [B] in [0, 1) -> int64 [B]: 1, 2 or 3 with this probability, else 0."""
    return torch.where(u < probability, 1 + (3 * u / probability).long().clamp(max=2), 0)


def place_crops(crops: Tensor, extents: Tensor, augmentation: Augmentation) -> Tensor:
    """Crops as by RandomResizedCrop: ten tries of area and log-ratio, else the largest central crop.

    crops: float64 [4, B, 10] of `draw_view`; extents: int64 [B, 2], height and width.

    Returns int64 [B, 4]: top, left, height, width.
    """
    scale, ratio = augmentation.scale, augmentation.ratio
    height, width = extents.double().unbind(1)
    area, log_ratio, top, left = crops
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * area)
    bounds = torch.tensor(ratio, dtype=torch.float64).log()
    aspect = (bounds[0] + (bounds[1] - bounds[0]) * log_ratio).exp()
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (h > 0) & (w <= width[:, None]) & (h <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)  # 0 if none fits, which is replaced below
    h, w, top, left = (v.gather(1, first).squeeze(1) for v in (h, w, top, left))

    fallback_w = torch.minimum(width, (height * ratio[1]).round())
    fallback_h = torch.minimum(height, (width / ratio[0]).round())
    fitted = fits.any(1)
    h, w = torch.where(fitted, h, fallback_h), torch.where(fitted, w, fallback_w)
    top = torch.where(fitted, (top * (height - h + 1)).floor(), ((height - h) / 2).floor())
    left = torch.where(fitted, (left * (width - w + 1)).floor(), ((width - w) / 2).floor())
    return torch.stack([top, left, h, w], dim=1).long()


def two_views(
    images: Tensor,
    extents: Tensor,
    augmentation: Augmentation,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Two independent views of images [B, C, H, W]; see `apply_view`."""
    first = sample_view(extents, augmentation, generator)
    second = sample_view(extents, augmentation, generator)
    return (
        apply_view(images, first, augmentation, dtype),
        apply_view(images, second, augmentation, dtype),
    )


def apply_view(
    images: Tensor,
    parameters: ViewParameters,
    augmentation: Augmentation,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Apply the parameters: crop and antialiased resize, flips and turns, colours, blur, normalisation.

    images: uint8 or uint16 [B, C, H, W] on any device; parameters: of the same B, on the CPU.

    Returns [B, C, size, size] of `dtype` in `memory_format`, normalised. Arithmetic is in float32. On
    the CPU it works in chunks that stay in the processor's cache.
    """

    size = augmentation.input.size

    def view(part: slice) -> Tensor:
        p = parameters.rows(part)
        x = crop_resize(images[part], p.box, p.flip, size)
        return _colour(_orient(x, p, augmentation), p, augmentation)

    return _in_chunks(view, images, size, dtype, memory_format)


def finish_view(
    crops: Tensor,
    parameters: ViewParameters,
    augmentation: Augmentation,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """`apply_view` after its crop: flips and turns, colours, blur, normalisation.

    crops: uint8 or uint16 [B, C, size, size] on any device, cropped and resized but not flipped.
    """

    def view(part: slice) -> Tensor:
        p, x = parameters.rows(part), unit(crops[part])
        flip = send(p.flip, x.device)[:, None, None, None]
        return _colour(_orient(torch.where(flip, x.flip(3), x), p, augmentation), p, augmentation)

    return _in_chunks(view, crops, augmentation.input.size, dtype, memory_format)


class ViewFunctions(NamedTuple):
    """A way of making views."""

    apply: Callable[..., Tensor]
    finish: Callable[..., Tensor]
    """For images that were cropped before."""


GROUPED = ViewFunctions(apply_view, finish_view)
"""Images are grouped by operation, and each operation is done only where it is wanted."""


def _in_chunks(
    view: Callable[[slice], Tensor],
    images: Tensor,
    size: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    batch, channels = images.shape[:2]
    views = torch.empty(
        (batch, channels, size, size),
        dtype=dtype,
        device=images.device,
        memory_format=memory_format,
    )
    chunk = batch if images.device.type != "cpu" else max(1, CHUNK // size**2)
    for start in range(0, batch, chunk):
        part = slice(start, start + chunk)
        views[part] = view(part).to(dtype)
    return views


def _orient(x: Tensor, p: ViewParameters, a: Augmentation) -> Tensor:
    if not a.vertical_flip and not a.quarter_turns:
        return x
    return orient(x, send(p.vertical, x.device), send(p.turns, x.device))


def orient(x: Tensor, vertical: Tensor, turns: Tensor) -> Tensor:
    """Flip images from top to bottom, then turn them.

    x: [B, C, S, S]; vertical: bool [B], turns: int64 [B], 0 to 3 quarters counterclockwise; all on one
    device.
    """
    vertical, turns = vertical[:, None, None, None], turns[:, None, None, None]
    x = torch.where(vertical, x.flip(2), x)
    x = torch.where(turns % 2 == 1, x.rot90(1, (2, 3)), x)
    return torch.where(turns >= 2, x.flip(2, 3), x).contiguous()


def _colour(x: Tensor, p: ViewParameters, a: Augmentation) -> Tensor:
    """Everything after `_orient`. x: [B, C, size, size] in [0, 1]; may be changed in place."""
    if a.grey_first:
        x = greyscale(x, p.grey)
    x = jitter(x, p.jitter, p.order, p.factors)
    if not a.grey_first:
        x = greyscale(x, p.grey)
    x = gaussian_blur(x, p.sigma, a.blur_kernel)
    return normalise(x, a.input)


def evaluation_view(
    images: Tensor,
    extents: Tensor,
    input: Input,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """The central square, resized and normalised, as evaluation sees it.

    Returns [B, C, size, size] of `dtype` in `memory_format`.

    images: uint8 or uint16 [B, C, H, W]; extents: int64 [B, 2] on the CPU. Above 112 pixels the
    square is 7/8 of the shorter side (224 of 256, as published for ImageNet); up to 112 pixels it is all
    of it, because small images are framed tightly already.
    """
    box = central_squares(extents, input.size)
    x = crop_resize(images, box, torch.zeros(len(images), dtype=torch.bool), input.size)
    return normalise(x, input).to(dtype).contiguous(memory_format=memory_format)


def central_squares(extents: Tensor, size: int) -> Tensor:
    """The boxes of `evaluation_view`: int64 [B, 4], top, left, height, width."""
    side = (extents.amin(1) * (1.0 if size <= 112 else 0.875)).round().long()
    corner = ((extents - side[:, None]) / 2).round().long()
    return torch.cat([corner, side[:, None], side[:, None]], dim=1)


def finish_evaluation_view(
    crops: Tensor,
    input: Input,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """`evaluation_view` after its crop; crops: uint8 or uint16 [B, C, size, size]."""
    x = normalise(unit(crops), input)
    return x.to(dtype).contiguous(memory_format=memory_format)


def unit(images: Tensor) -> Tensor:
    """uint8 or uint16 -> float32 in [0, 1], where 1 is the type's maximum."""
    return images.to(torch.float32) / torch.iinfo(images.dtype).max


def normalise(x: Tensor, input: Input) -> Tensor:
    """(x - mean) / std of each channel; x: float32 [B, C, S, S] in [0, 1]."""
    scale, shift = normalisation(input, x.device)
    return torch.addcmul(shift, x, scale)


@lru_cache(maxsize=16)
def normalisation(input: Input, device: torch.device) -> Tensor:
    """1 / std and -mean / std: float32 [2, C, 1, 1] on the device, copied there once."""
    scale = 1 / torch.tensor(input.std)
    shift = -torch.tensor(input.mean) * scale
    return send(torch.stack([scale, shift]), device)[..., None, None]
