"""Crop, antialiased resize, flip and Gaussian blur with separate parameters for each image.

All are linear and separable: a small matrix for the rows of an image and one for its columns. Matrix
products over a batch are fast on a GPU, and on a CPU for small images. Most of a large matrix is zero,
so on a CPU the resize of large images, and every blur, only uses the band that is not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.runtime.device import send
from mixco.views.selected_rows import apply_to_rows

# Multiplications of the dense resize, per image and channel, at which both ways took the same time on
# two cores with AVX-512.
DENSE_RESIZE = 6_000_000


def crop_resize(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop, antialiased bilinear resize and flip: [B, C, H, W] uint8 or uint16 -> [B, C, size, size].

    images: may be floating too, 0 to 255. box: int64 [B, 4], top, left, height, width. flip: bool [B].

    Returns float32 in [0, 1], where 1 is the type's maximum. Large images on a CPU go through torch's
    own resize, one by one.
    """
    batch, channels, height, width = images.shape
    most = 255 if images.is_floating_point() else torch.iinfo(images.dtype).max
    if images.device.type == "cpu" and height * size * (width + size) > DENSE_RESIZE:
        out = images.new_empty(batch, channels, size, size, dtype=torch.float32)
        for image, (top, left, h, w), flipped, place in zip(
            images, box.tolist(), flip.tolist(), out, strict=True
        ):
            crop = image[None, :, top : top + h, left : left + w].to(torch.float32)
            x = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
            place.copy_(x.flip(2) if flipped else x)
        return out.div_(most)
    top, left, h, w = send(box, images.device).unbind(1)
    rows = _resize_matrix(top, h, height, size)
    columns = _resize_matrix(left, w, width, size)
    columns = torch.where(send(flip, images.device)[:, None, None], columns.flip(1), columns)
    x = images.to(torch.float32).flatten(1, 2)  # [B, CH, W]
    x = torch.bmm(x, columns.transpose(1, 2) / most)  # [B, CH, size]
    return torch.matmul(rows[:, None], x.view(batch, channels, height, size))


def _resize_matrix(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """[B, size, source]: the weight of each source pixel in each pixel of the view.

    The weights form a triangle, whose half width is a pixel of the coarser grid, cut off at the crop's
    border and normalised: torchvision's bilinear resize with antialias=True.
    """
    step = length.float() / size  # source pixels per view pixel
    support = step.clamp(min=1.0)[:, None, None]
    view = torch.arange(size, device=start.device) + 0.5
    pixel = (
        torch.arange(source, device=start.device) - start[:, None]
    )  # within the crop, [B, source]
    distance = (pixel[:, None, :] + 0.5 - (view * step[:, None])[:, :, None]).abs()
    weights = (1 - distance / support).clamp(min=0)
    weights *= ((pixel >= 0) & (pixel < length[:, None]))[:, None, :]
    return weights / weights.sum(2, keepdim=True)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur the images whose sigma is above zero, in place; borders are mirrored.

    x: float [B, C, S, S]; sigma: float32 [B] on the CPU, in pixels; kernel: number of taps, odd.
    """
    chosen = (sigma > 0).nonzero().squeeze(1)
    taps = send(gaussian_taps(sigma[chosen], kernel), x.device)
    blur = _blur_by_taps if x.device.type == "cpu" else blur_by_products
    return apply_to_rows(x, send(chosen, x.device), blur, taps)


def blur_by_products(x: Tensor, taps: Tensor) -> Tensor:
    """Blur x [B, C, S, S] by taps [B, kernel] of each image."""
    matrix = _blur_matrix(taps, x.shape[-1])  # [B, S, S]
    x = torch.bmm(x.flatten(1, 2), matrix.transpose(1, 2)).view_as(x)
    return matrix[:, None] @ x


def _blur_by_taps(x: Tensor, taps: Tensor) -> Tensor:
    """Add shifted and weighted copies, along the rows, then the columns: faster on a CPU."""
    size, reach = x.shape[-1], taps.shape[1] // 2
    weights = taps[:, :, None, None, None].unbind(1)
    for dim, border in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        padded = F.pad(x, border, mode="reflect")
        x = padded.narrow(dim, reach, size) * weights[reach]
        for tap in range(reach):
            pair = padded.narrow(dim, tap, size) + padded.narrow(dim, 2 * reach - tap, size)
            x.addcmul_(pair, weights[tap])
    return x


def gaussian_taps(sigma: Tensor, kernel: int) -> Tensor:
    """[B] -> 1-D Gaussians [B, kernel] that sum to one."""
    tap = torch.arange(kernel, device=sigma.device) - kernel // 2
    weights = torch.exp(-0.5 * (tap / sigma[:, None]) ** 2)
    # Drop weights too small to change a float32 sum. Far taps of a narrow Gaussian are denormal numbers,
    # which are so slow to compute with that the blur would take three times as long.
    weights = torch.where(weights < 1e-9, 0.0, weights)
    return weights / weights.sum(1, keepdim=True)


def _blur_matrix(taps: Tensor, size: int) -> Tensor:
    """[B, kernel] -> [B, size, size]; taps beyond a border go to the mirrored pixel."""
    batch, kernel = taps.shape
    pixel = torch.arange(size, device=taps.device)
    source = pixel[:, None] + torch.arange(kernel, device=taps.device) - kernel // 2
    # Mirrored at both borders, whose own pixels are not repeated.
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    matrix = taps.new_zeros(batch, size, size)
    return matrix.scatter_add_(
        2, source.expand(batch, -1, -1), taps[:, None, :].expand(-1, size, -1).contiguous()
    )
