"""Where packed and streamed images meet: which it is to be, and the batches of either."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mixco.data.image_list import ImageList
from mixco.data.packing import (
    PackedImages,
    is_whole,
    pack,
    packed_path,
    picture_size,
    read_reduced,
    torch_type,
)
from mixco.data.pixel_format import LOOKED_AT, infer_pixel_format, spread
from mixco.data.streaming import Batch, Request, StreamedImages, decode_batches, stream
from mixco.runtime.device import send
from mixco.runtime.errors import UserError
from mixco.runtime.files import free_space
from mixco.views import augment as views

Images = PackedImages | StreamedImages

MOST_WORKERS = 1024
MOST_LOSING = 0.05  # share of the images that may lose detail by packing
FEATURE_BATCH = 512


def open_images(
    source: ImageList,
    *,
    size: int,
    cache: Path,
    loading: Literal["auto", "packed", "streamed"],
    workers: int,
    memory: int,
    channels: int | None = 3,
    bits: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Images:
    """The images of a list: packed (see `pack`), or streamed by `workers` processes.

    "auto" packs when the packed file fits (`fits_packed`) into `memory`, in bytes.
    channels, bits: of a pixel, None for what the files have (see `infer_pixel_format`).

    Raises UserError as `pack` and `infer_pixel_format` do.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers {workers}: 0 to {MOST_WORKERS}")
    source = infer_pixel_format(source, channels, bits)
    if loading == "auto":
        loading = "packed" if fits_packed(source, size, cache, memory) else "streamed"
    if loading == "streamed":
        return stream(source, workers)
    return pack(source, size=size, cache=cache, workers=workers, on_progress=on_progress)


def fits_packed(source: ImageList, size: int, cache: Path, memory: int) -> bool:
    """Does the packed file take at most half of the memory, and packing at most half the free disk?

    A file that does not stay in the memory is read at random places, which is slower than to stream.
    How large the canvases will be is estimated from the headers of some files, spread over the list.
    Nor does it fit where many of them are so tall or wide that little would be left of their shorter
    side once the longer one is reduced.
    """
    if source.arrays is not None:
        return True  # small images, whose pixels lie in a file already; workers would copy it
    count = len(source.files)
    some = [picture_size(source, i) for i in spread(count, LOOKED_AT)]
    side = min(2 * size, max(map(max, some)))
    if sum(loses_detail(*each, size) for each in some) > MOST_LOSING * len(some):
        return False
    needed = count * source.pixel.bytes * side * side
    if needed > memory // 2:
        return False
    # Packing writes the pixels twice before the first copy goes.
    return 2 * needed <= free_space(cache) // 2 or is_whole(packed_path(source, size, cache))


def loses_detail(height: int, width: int, size: int) -> bool:
    """Packed, is the shorter side less than half of what is seen, and less than it was?"""
    scale = min(1.0, 2 * size / max(height, width, 1))
    return scale < 1 and 2 * min(height, width) * scale < size


Plan = Iterable[tuple[Tensor, torch.Generator]]
"""Of each batch the indices of its images, int64 [B], and the generator of its draws."""

Seen = tuple[Tensor, list[Tensor]]
"""The indices of a batch's images, int64 [B], and its views."""


def view_batches(
    images: Images,
    plan: Plan,
    augmentation: views.Augmentation,
    *,
    members: Tensor,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    on_unreadable: Callable[[str, str], None],
    count: int = 2,
    rows: Tensor | None = None,
) -> Generator[Seen, None, None]:
    """`count` views of each batch of a plan, [B, C, size, size] of `dtype` on the device.

    Yields the indices of the images, int64 [B] on the CPU, and their views (see `apply_view`).
    Streamed, the plan is followed a few batches ahead. The same draws make the same crops packed and
    streamed.
    rows: int64 [b], of each batch only these, where other processes make the others; None for all. What
        is drawn for an image does not depend on it.
    members: int64, sorted: all images that the plan may name; batch_size: the most of them at once.
    on_unreadable(file, reason) is called once for each file that cannot be read; the next of the
        members takes its place.

    Closing the generator ends its worker processes. It raises UserError as `decode_batches` does.
    """
    if isinstance(images, PackedImages):
        canvases = make_resident(images.images, device)
        extents = images.extents
        return _packed_views(canvases, extents, plan, augmentation, device, dtype, count, rows)
    parameters: deque[list[views.ViewParameters]] = deque()

    def requests() -> Iterator[Request]:
        for index, generator in plan:
            drawn = [views.draw_view(len(index), augmentation, generator) for _ in range(count)]
            here = slice(None) if rows is None else rows
            parameters.append([rest[here] for _, rest in drawn])
            crops = torch.stack([crops[:, here] for crops, _ in drawn], dim=2)
            yield Request(index[here].numpy(), crops.numpy())

    decoded = decode_batches(
        images,
        requests(),
        size=augmentation.size,
        most=count * batch_size,
        on_unreadable=on_unreadable,
        augmentation=augmentation,
        members=members,
        pin=device.type == "cuda",
    )
    return _streamed_views(decoded, parameters, augmentation, device, dtype)


def _packed_views(
    canvases: Tensor,
    extents: Tensor,
    plan: Plan,
    augmentation: views.Augmentation,
    device: torch.device,
    dtype: torch.dtype,
    count: int,
    rows: Tensor | None,
) -> Generator[Seen, None, None]:
    here = slice(None) if rows is None else rows
    for index, generator in plan:
        batch = take_rows(canvases, index[here], device)
        drawn = [views.sample_view(extents[index], augmentation, generator) for _ in range(count)]
        yield index[here], [views.apply_view(batch, p[here], augmentation, dtype) for p in drawn]


def _streamed_views(
    decoded: Iterator[Batch],
    parameters: deque[list[views.ViewParameters]],
    augmentation: views.Augmentation,
    device: torch.device,
    dtype: torch.dtype,
) -> Generator[Seen, None, None]:
    for batch in decoded:
        crops = send(batch.crops, device)
        yield (
            batch.files,
            [
                views.finish_view(crop, rest, augmentation, dtype)
                for crop, rest in zip(crops, parameters.popleft(), strict=True)
            ],
        )


def evaluation_batches(
    images: Images,
    index: Tensor,
    *,
    size: int,
    mean: views.Channels,
    std: views.Channels,
    device: torch.device,
    dtype: torch.dtype,
    on_unreadable: Callable[[str, str], None],
    batch_size: int = FEATURE_BATCH,
    tolerated: float | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What evaluation sees (`evaluation_view`), in order, of those images that can be read.

    index: int64 [N]. Yields parts of it and [b, C, size, size] of `dtype` on the device; b may be 0.
    tolerated: the share of unreadable streamed images above which it raises UserError; default: 1 %.
    """
    parts = torch.split(index, batch_size)
    if isinstance(images, PackedImages):
        for part in parts:
            batch = take_rows(images.images, part, device)
            yield part, views.evaluation_view(batch, images.extents[part], size, mean, std, dtype)
        return
    decoded = decode_batches(
        images,
        (Request(part.numpy(), None) for part in parts),
        size=size,
        most=batch_size,
        on_unreadable=on_unreadable,
        pin=device.type == "cuda",
        tolerated=tolerated,
    )
    for part, read in zip(parts, decoded, strict=True):
        readable = read.readable
        crops = read.crops[0] if readable.all() else read.crops[0][readable]
        seen = send(crops, device)
        yield part[readable], views.finish_evaluation_view(seen, mean, std, dtype)


def canvases(images: Images, index: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """A few images for pictures: uint8 or uint16 [n, C, S, S] and extents [n, 2], as packing has them.

    side: the canvases' of streamed images; those that cannot be read are black.
    """
    if isinstance(images, PackedImages):
        return images.images[index], images.extents[index]
    pixel = images.source.pixel
    pictures = torch.zeros(len(index), pixel.channels, side, side, dtype=torch_type(pixel))
    extents = torch.full((len(index), 2), side)
    for place, i in enumerate(index.tolist()):
        found = read_reduced(images.source, i, side)
        if not isinstance(found, str):
            height, width = found.shape[:2]
            pictures[place, :, :height, :width] = torch.tensor(found).permute(2, 0, 1)
            extents[place] = torch.tensor([height, width])
    return pictures, extents


def make_resident(images: Tensor, device: torch.device) -> Tensor:
    """Copy images [N, C, S, S] to a GPU when they take at most half of its free memory.

    On a CPU the memory-mapped file is the resident copy: the system keeps its pages in memory.
    """
    if device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
        return images.to(device)
    return images


def take_rows(images: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """images[index] on the device; index: int64 [B] on the CPU."""
    # Not every device can index torch.uint16, but all can index int16, which has the same bits.
    signed = images.view(torch.int16) if images.dtype == torch.uint16 else images
    return send(signed[send(index, images.device)], device).view(images.dtype)


def epoch_batches(members: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: `members` int64 [N] in a new random order, in whole batches; the rest is left out."""
    order = members[torch.randperm(len(members), generator=generator)]
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
