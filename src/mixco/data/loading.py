"""Opens a list of images, packed or streamed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mixco.data.image_list import ImageList, picture_size
from mixco.data.images import Images
from mixco.data.packing import is_whole, pack, packed_path
from mixco.data.pixel_format import LOOKED_AT, infer_pixel_format, spread
from mixco.data.streaming import stream
from mixco.runtime.errors import UserError
from mixco.runtime.files import free_space

MOST_WORKERS = 1024
MOST_LOSING = 0.05  # share of the images that may lose detail by packing


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


def epoch_batches(members: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: `members` int64 [N] in a new random order, in whole batches; the rest is left out."""
    order = members[torch.randperm(len(members), generator=generator)]
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
