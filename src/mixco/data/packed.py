"""Images that were decoded once, in one memory-mapped file."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mixco.data.image_list import ImageList
from mixco.data.images import FEATURE_BATCH, Drawn, Plan
from mixco.runtime.device import Compute, free_memory, send
from mixco.views.augment import GROUPED, ViewFunctions, evaluation_view, sample_view
from mixco.views.augmentation import Augmentation, Input


@dataclass(frozen=True)
class PackedImages:
    """The images of one split, decoded. See `Images`; all of these can be read."""

    images: Tensor
    """uint8 or uint16 [N, C, S, S] by source.pixel, memory-mapped; an image lies in the top left of
    its canvas, the rest is 0."""
    extents: Tensor
    """int64 [N, 2]: height and width of each image."""
    labels: Tensor | None
    files: Sequence[str]
    unreadable_files: tuple[tuple[str, str], ...]
    """(file, reason) of those left out."""
    source: ImageList
    path: Path
    """The packed file."""
    _resident: WeakValueDictionary[torch.device, Tensor] = field(
        default_factory=WeakValueDictionary, init=False, repr=False, compare=False
    )
    """The images on each device, as long as some `draw_batches` draws from them."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def loading(self) -> Literal["packed"]:
        return "packed"

    @property
    def prefetched(self) -> int:
        return 0

    @property
    def longest_side(self) -> int:
        return self.images.shape[-1]

    @property
    def readable(self) -> int:
        return len(self)

    def __len__(self) -> int:
        return len(self.images)

    def draw_batches(
        self,
        plan: Plan,
        augmentation: Augmentation,
        *,
        members: Tensor,  # noqa: ARG002
        batch_size: int,  # noqa: ARG002
        device: torch.device,
        on_unreadable: Callable[[str, str], None],  # noqa: ARG002
        count: int = 2,
        rows: Tensor | None = None,
    ) -> Generator[Drawn, None, None]:
        images = self._resident.get(device)
        if images is None:
            images = self._resident[device] = make_resident(self.images, device)
        here = slice(None) if rows is None else rows
        # Images that do not fit stay in the machine's memory, from where each batch is sent.
        sent = device.type == "cuda" and not images.is_cuda

        def batches() -> Generator[Drawn, None, None]:
            for index, generator in plan:
                extents = self.extents[index]
                drawn = [sample_view(extents, augmentation, generator) for _ in range(count)]
                pixels = take_rows(images, index[here], images.device) if sent else index[here]
                yield Drawn(index[here], pixels, tuple(p.rows(here) for p in drawn))

        return batches()

    def make_views(
        self,
        drawn: Drawn,
        augmentation: Augmentation,
        compute: Compute,
        functions: ViewFunctions = GROUPED,
    ) -> list[Tensor]:
        images = self._resident.get(compute.device, self.images)
        if drawn.pixels.ndim == 1:
            batch = take_rows(images, drawn.pixels, compute.device)
        else:
            batch = send(drawn.pixels, compute.device)
        return [
            functions.apply(batch, parameters, augmentation, *compute.formats)
            for parameters in drawn.parameters
        ]

    def evaluation_batches(
        self,
        index: Tensor,
        input: Input,
        *,
        compute: Compute,
        on_unreadable: Callable[[str, str], None],  # noqa: ARG002
        batch_size: int = FEATURE_BATCH,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images = self._resident.get(compute.device, self.images)
        for part in torch.split(index, batch_size):
            batch = take_rows(images, part, compute.device)
            yield part, evaluation_view(batch, self.extents[part], input, *compute.formats)

    def canvases(self, index: Tensor, side: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return self.images[index], self.extents[index]


def make_resident(images: Tensor, device: torch.device) -> Tensor:
    """Copy images [N, C, S, S] to a GPU when they take at most half of its free memory.

    On a CPU the memory-mapped file is the resident copy: the system keeps its pages in memory.
    """
    if device.type == "cuda" and images.nbytes <= free_memory(device) // 2:
        return images.to(device)
    return images


def take_rows(images: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """images[index] on the device; index: int64 [B] on the CPU."""
    # Not every device can index torch.uint16, but all can index int16, which has the same bits.
    signed = images.view(torch.int16) if images.dtype == torch.uint16 else images
    return send(signed[send(index, images.device)], device).view(images.dtype)
