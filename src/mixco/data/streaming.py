"""Images too big to stay packed: decoded anew for each batch, by worker processes."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mixco.data.image_list import ImageList, read_reduced, torch_type
from mixco.data.images import FEATURE_BATCH, Drawn, Plan, refuse_too_many
from mixco.data.workers import PREFETCHED, Request, decode_batches
from mixco.runtime.device import Compute, send
from mixco.views import augment as views
from mixco.views.augment import GROUPED, ViewFunctions, ViewParameters
from mixco.views.augmentation import Augmentation, Input


@dataclass(frozen=True)
class StreamedImages:
    """The images of one split, decoded each time that they are needed. See `Images`."""

    source: ImageList
    labels: Tensor | None
    workers: int
    """Processes that decode; 0 decodes in this one."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """index -> reason, of those met so far."""

    @property
    def files(self) -> Sequence[str]:
        return self.source.files

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def loading(self) -> Literal["streamed"]:
        return "streamed"

    @property
    def prefetched(self) -> int:
        return PREFETCHED * self.workers

    @property
    def longest_side(self) -> None:
        return None

    @property
    def unreadable_files(self) -> list[tuple[str, str]]:
        met = ((self.files[i], reason) for i, reason in self.unreadable.items())
        return [*self.source.damaged, *met]

    @property
    def readable(self) -> int:
        return len(self) - len(self.unreadable)

    def __len__(self) -> int:
        return len(self.source.files)

    def draw_batches(
        self,
        plan: Plan,
        augmentation: Augmentation,
        *,
        members: Tensor,
        batch_size: int,
        device: torch.device,
        on_unreadable: Callable[[str, str], None],
        count: int = 2,
        rows: Tensor | None = None,
    ) -> Generator[Drawn, None, None]:
        here = slice(None) if rows is None else rows
        parameters: deque[tuple[ViewParameters, ...]] = deque()

        def requests() -> Iterator[Request]:
            for index, generator in plan:
                drawn = [views.draw_view(len(index), augmentation, generator) for _ in range(count)]
                parameters.append(tuple(rest.rows(here) for _, rest in drawn))
                crops = torch.stack([crops[:, here] for crops, _ in drawn], dim=2)
                yield Request(index[here].numpy(), crops.numpy())

        decoded = decode_batches(
            self.source,
            requests(),
            workers=self.workers,
            unreadable=self.unreadable,
            size=augmentation.input.size,
            most=count * batch_size,
            on_unreadable=on_unreadable,
            augmentation=augmentation,
            members=members,
            pin=device.type == "cuda",
        )
        return (Drawn(b.files, b.crops, parameters.popleft()) for b in decoded)

    def make_views(
        self,
        drawn: Drawn,
        augmentation: Augmentation,
        compute: Compute,
        functions: ViewFunctions = GROUPED,
    ) -> list[Tensor]:
        crops = send(drawn.pixels, compute.device)
        return [
            functions.finish(crop, parameters, augmentation, *compute.formats)
            for crop, parameters in zip(crops, drawn.parameters, strict=True)
        ]

    def evaluation_batches(
        self,
        index: Tensor,
        input: Input,
        *,
        compute: Compute,
        on_unreadable: Callable[[str, str], None],
        batch_size: int = FEATURE_BATCH,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        parts = torch.split(index, batch_size)
        decoded = decode_batches(
            self.source,
            (Request(part.numpy(), None) for part in parts),
            workers=self.workers,
            unreadable=self.unreadable,
            size=input.size,
            most=batch_size,
            on_unreadable=on_unreadable,
            pin=compute.device.type == "cuda",
        )
        for part, read in zip(parts, decoded, strict=True):
            readable = read.readable
            crops = read.crops[0] if readable.all() else read.crops[0][readable]
            crops = send(crops, compute.device)
            yield part[readable], views.finish_evaluation_view(crops, input, *compute.formats)

    def canvases(self, index: Tensor, side: int) -> tuple[Tensor, Tensor]:
        pixel = self.source.pixel
        pictures = torch.zeros(len(index), pixel.channels, side, side, dtype=torch_type(pixel))
        extents = torch.full((len(index), 2), side)
        for place, i in enumerate(index.tolist()):
            found = read_reduced(self.source, i, side)
            if not isinstance(found, str):
                height, width = found.shape[:2]
                pictures[place, :, :height, :width] = torch.tensor(found).permute(2, 0, 1)
                extents[place] = torch.tensor([height, width])
        return pictures, extents


def stream(source: ImageList, workers: int) -> StreamedImages:
    """workers: processes that decode; 0 decodes in this one."""
    refuse_too_many(source, ())
    labels = None if source.labels is None else torch.tensor(source.labels)
    return StreamedImages(source, labels, workers)
