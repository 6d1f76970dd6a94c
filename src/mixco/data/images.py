"""What packed and streamed images have in common."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mixco.data.image_list import ImageList
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.views.augment import ViewFunctions, ViewParameters
from mixco.views.augmentation import Augmentation, Input

FEATURE_BATCH = 512

Plan = Iterable[tuple[Tensor, torch.Generator]]
"""For each batch the indices of its images, int64 [B], and the generator of its views."""

Views = tuple[Tensor, list[Tensor]]
"""The indices of a batch's images, int64 [B] on the CPU, and its views, each [B, C, size, size]."""


class Drawn(NamedTuple):
    """What the views of a batch are made from. The tensors are on the CPU, until they are sent."""

    images: Tensor
    """int64 [b]: their indices."""
    pixels: Tensor
    """Where their pixels are. int64 [b]: rows of images that are on the device already; or uint8 or
    uint16 [b, C, S, S]: canvases, or [count, b, C, size, size]: crops, one for each view."""
    parameters: tuple[ViewParameters, ...]
    """The parameters of each view."""
    others: tuple[Tensor, ...] = ()
    """[b, ...]: the method takes these after the views, as they are."""


class Images(Protocol):
    """The images of one split, decoded once (packed) or each time that they are needed (streamed)."""

    @property
    def source(self) -> ImageList:
        """The list that they come from."""

    @property
    def files(self) -> Sequence[str]:
        """One name an image, below source.root."""

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], indices into `classes`; None without labels."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def loading(self) -> Literal["packed", "streamed"]: ...

    @property
    def prefetched(self) -> int:
        """How many batches may be ready before they are asked for."""

    @property
    def longest_side(self) -> int | None:
        """Of all images, in pixels; None if unknown. Packing reduces it to at most twice its `size`."""

    @property
    def unreadable_files(self) -> Sequence[tuple[str, str]]:
        """(file, reason) of those that cannot be read, as far as is known."""

    @property
    def readable(self) -> int:
        """How many of the N images can be read, as far as is known."""

    def __len__(self) -> int: ...

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
        """What `count` views of each batch of a plan are made from; device: of the views.

        The same draws make the same crops, packed and streamed. Streamed, the plan is read a few batches
        ahead.
        members: int64, sorted: all images that the plan may name. batch_size: of the largest batch.
        rows: int64 [b]: make only these rows of each batch, where other processes make the others; None
            for all. The draws of an image do not depend on it.
        on_unreadable(file, reason) is called once for each file that cannot be read; the next of the
            members takes its place.

        Closing the generator ends its worker processes. Raises UserError as `decode_batches` does.
        """

    def make_views(
        self,
        drawn: Drawn,
        augmentation: Augmentation,
        compute: Compute,
        functions: ViewFunctions = ...,
    ) -> list[Tensor]:
        """The views of a batch, each [b, C, size, size] on compute's device and in its formats."""

    def evaluation_batches(
        self,
        index: Tensor,
        input: Input,
        *,
        compute: Compute,
        on_unreadable: Callable[[str, str], None],
        batch_size: int = FEATURE_BATCH,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The evaluation views (see `evaluation_view`) of those images that can be read, in order.

        index: int64 [N]. Yields part after part of it, and [b, C, size, size] on compute's device
        and in its formats; b may be 0. Raises UserError where too many files are unreadable
        (source.max_unreadable).
        """

    def canvases(self, index: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """A few images as they are: uint8 or uint16 [n, C, S, S], and their heights and widths [n, 2].

        An image lies in the top left of its canvas; the rest is 0, and so is all of an unreadable one.
        side: of the canvases of streamed images.
        """


def view_batches(
    images: Images, plan: Plan, augmentation: Augmentation, *, compute: Compute, **how: Any
) -> Generator[Views, None, None]:
    """The views of each batch of a plan; how: the arguments of `Images.draw_batches`."""
    with closing(images.draw_batches(plan, augmentation, device=compute.device, **how)) as batches:
        for drawn in batches:
            yield drawn.images, images.make_views(drawn, augmentation, compute)


def refuse_lost_classes(source: ImageList, labels: Tensor) -> None:
    """Raises UserError when none of the readable images has a label of some class."""
    lost = sorted(set(range(len(source.classes))) - set(labels.tolist()))
    if lost:
        raise UserError(
            f"{source.root}: no readable image left of class {source.classes[lost[0]]}; "
            "mend or add some, or remove the class"
        )


def refuse_too_many(source: ImageList, unreadable: Sequence[tuple[int, str]]) -> None:
    """Raises UserError when no file is readable, or more are not than `source` allows.

    Of shards the same part may be damaged: how many images they have lost is unknown.

    unreadable: (index, reason). Where the source allows inf, all files may be unreadable.
    """
    count, most = len(source.files), source.max_unreadable
    shards = len({*source.containers, *(source.root / file for file, _ in source.damaged)})
    if source.damaged and len(source.damaged) > most * shards:
        some = "; ".join(f"{shown(file)}: {reason}" for file, reason in source.damaged[:3])
        raise UserError(
            f"{source.root}: {len(source.damaged):,} of {shards:,} shards cannot be read to their end "
            f"({some}); get them again or remove them, or allow more than --max-unreadable "
            f"{source.max_unreadable:g}"
        )
    if most == math.inf or (len(unreadable) < count and len(unreadable) <= most * count):
        return
    some = "; ".join(f"{shown(source.files[i])}: {reason}" for i, reason in unreadable[:3])
    if len(unreadable) == count:
        raise UserError(f"{source.root}: none of its {count:,} images can be read ({some})")
    raise UserError(
        f"{source.root}: {len(unreadable):,} of {count:,} images cannot be read ({some}); mend or "
        f"remove them, or allow more than --max-unreadable {most:g}"
    )
