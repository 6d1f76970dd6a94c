"""Tensors at fixed places of a GPU's memory, where a CUDA graph finds those of each step."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ALIGNED = 256  # bytes; every dtype may begin there
LARGE = 2**20  # bytes from which a tensor is copied on its own


class StaticInputs:
    """The tensors of a tree on a device. A tree is a tensor, None, or a tuple of trees, named or not.

    example: a tree of tensors on the CPU. All that come later have its structure, shapes and dtypes.
    """

    def __init__(self, example: Any, device: torch.device) -> None:
        leaves = _tensors(example)
        self._like = [_like(leaf) for leaf in leaves]
        small = [leaf for leaf in leaves if leaf.nbytes < LARGE]
        sizes = (-(-leaf.nbytes // ALIGNED) * ALIGNED for leaf in small)
        *self._starts, count = itertools.accumulate(sizes, initial=0)
        self._together = torch.empty(count, dtype=torch.uint8, device=device)
        cut = iter(self._cut(self._together, small))
        self._places = [
            next(cut) if leaf.nbytes < LARGE else torch.empty_like(leaf, device=device)
            for leaf in leaves
        ]
        self.tree = _with_tensors(example, iter(self._places))
        """The example's tree, on the device, with the values of the last `fill`."""

    def fill(self, tree: Any) -> None:
        """Copy a tree of the CPU to the device, without waiting for the device.

        Small tensors go together, in one copy. Raises ValueError for a tree that is unlike the example.
        """
        leaves = _tensors(tree)
        if [_like(leaf) for leaf in leaves] != self._like:
            raise ValueError("the tensors of this step are unlike those of the first one")
        small = [leaf for leaf in leaves if leaf.nbytes < LARGE]
        # torch keeps pinned memory until the device has read it, and only then gives it out again.
        pinned = self._together.is_cuda
        buffer = torch.empty(len(self._together), dtype=torch.uint8, pin_memory=pinned)
        for place, leaf in zip(self._cut(buffer, small), small, strict=True):
            place.copy_(leaf)
        self._together.copy_(buffer, non_blocking=True)
        for place, leaf in zip(self._places, leaves, strict=True):
            if leaf.nbytes >= LARGE:
                place.copy_(leaf.pin_memory() if pinned else leaf, non_blocking=True)

    def _cut(self, memory: Tensor, small: list[Tensor]) -> list[Tensor]:
        return [
            memory[start : start + leaf.nbytes].view(leaf.dtype).view(leaf.shape)
            for start, leaf in zip(self._starts, small, strict=True)
        ]


def _like(leaf: Tensor) -> tuple[torch.dtype, torch.Size]:
    return leaf.dtype, leaf.shape


def _tensors(tree: Any) -> list[Tensor]:
    if tree is None:
        return []
    return (
        [tree] if isinstance(tree, Tensor) else [leaf for part in tree for leaf in _tensors(part)]
    )


def _with_tensors(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree with other tensors in its places."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return next(tensors)
    parts = [_with_tensors(part, tensors) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
