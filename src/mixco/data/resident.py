"""Batches of uint8 or uint16 images, resident on the device where they fit."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def make_resident(images: Tensor, device: torch.device) -> Tensor:
    """Copy images [N, C, S, S] to the device when they take at most half of its free memory.

    On the CPU the memory-mapped file is the resident copy: the system keeps its pages in memory.
    """
    if device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        return images.to(device)
    return images


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy from the CPU to the device without waiting until it has done what it was told before.

    CUDA takes a copy of what is not pinned before it returns; Apple's devices do not, so there the
    host waits.
    """
    return x.to(device, non_blocking=device.type != "mps")


def batches(members: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: `members` int64 [N] in a new random order, in whole batches; the rest is left out."""
    order = members[torch.randperm(len(members), generator=generator)]
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def change(x: Tensor, those: Tensor, operation: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """x with operation(x[those], *numbers) in the place of x[those]; x is changed, use what is returned.

    those: int64, ascending, on x's device; numbers: of as many rows. Where nothing needs to be gathered
    it is not, so the operation may get a part of x itself; it may change what it gets.
    """
    if len(those) == 0:
        return x
    if len(those) == len(x):
        return operation(x, *numbers)
    if len(those) == 1 and x.device.type == "cpu":
        one = x[int(those)][None]
        one.copy_(operation(one, *numbers))
        return x
    return x.index_copy_(0, those, operation(x[those], *numbers))


def gather(images: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """images[index] on the device; index int64 [B] on the CPU."""
    signed = images.view(torch.int16) if images.dtype == torch.uint16 else images
    # Not every device can index torch.uint16; the same bits with a sign are common everywhere.
    return send(signed[send(index, images.device)], device).view(images.dtype)
