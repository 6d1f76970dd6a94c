"""Opens a list of images, packed or streamed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mixco.data.image_list import ImageList, picture_size
from mixco.data.images import Images
from mixco.data.packing import is_whole, pack, packed_path
from mixco.data.pixel_format import LOOKED_AT, infer_pixel_format, spread
from mixco.data.rows import Rows, sliced
from mixco.data.streaming import stream
from mixco.runtime.errors import UserError
from mixco.runtime.files import free_space

MOST_WORKERS = 1024
MOST_LOSING = 0.05  # fraction of the images that may lose detail by packing


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
    leave_out: Mapping[str, str] | None = None,
) -> Images:
    """The images of a list: packed (see `pack`), or streamed by `workers` processes.

    size: side of the encoder's input in pixels. cache: folder of packed files.
    loading: "auto" packs when the packed file fits (`fits_packed`) into `memory`, in bytes.
    channels, bits: of a pixel; None for those of the files (see `infer_pixel_format`).
    Images in Parquet files are copied into the cache once before they are streamed (see `rows`).
    on_progress(done, total) is called while packing or copying.
    leave_out: see `pack`; streamed images meet no such files, since each batch tries anew.

    Raises UserError as `pack` and `infer_pixel_format` do.
    """
    if not 0 <= workers <= MOST_WORKERS:
        raise UserError(f"--workers must be between 0 and {MOST_WORKERS}, got {workers}")
    source = infer_pixel_format(source, channels, bits)
    if loading == "auto":
        loading = "packed" if fits_packed(source, size, cache, memory) else "streamed"
    if loading == "streamed":
        if isinstance(source.stored, Rows):
            source = replace(source, stored=sliced(source.stored, cache, on_progress))
        return stream(source, workers)
    return pack(
        source,
        size=size,
        cache=cache,
        workers=workers,
        on_progress=on_progress,
        leave_out=leave_out,
    )


def fits_packed(source: ImageList, size: int, cache: Path, memory: int) -> bool:
    """Whether the packed file takes at most half of the memory, and packing half of the free disk.

    A file that does not stay in memory is read at random places, which is slower than streaming. The
    size of the canvases is estimated from the headers of some files, spread over the list. Very tall or
    wide images do not fit either: reducing their longer side would leave too little of the shorter one.
    """
    if source.arrays is not None:
        return True  # small images whose pixels are in a file already, which workers would copy
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
    """Whether packing reduces the shorter side, and to less than half of the input's size."""
    scale = min(1.0, 2 * size / max(height, width, 1))
    return scale < 1 and 2 * min(height, width) * scale < size


def epoch_batches(members: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`members` int64 [N] in a new random order, in whole batches; the rest is left out."""
    order = members[torch.randperm(len(members), generator=generator)]
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
