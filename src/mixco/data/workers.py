"""Worker processes that read, decode and crop images, batch after batch.

A request names the files of a batch and holds the draws of their crops; a worker answers with uint8
or uint16 crops of the encoder's input size. All randomness is in the requests, so the answers do not
depend on the number of workers. File names lie in shared memory, once for all workers.
"""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixco.data.decode import Box, Pixels, decode_crops
from mixco.data.image_list import ImageList, torch_type
from mixco.data.images import refuse_too_many
from mixco.data.opening import UnreadableImage
from mixco.data.storage import FileNames
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.views.augment import central_squares, place_crops
from mixco.views.augmentation import Augmentation

PREFETCHED = 2  # batches that a worker prepares ahead
MOST_SUBSTITUTES = 100


class Request(NamedTuple):
    """One batch, as it is sent to a worker. NumPy arrays are sent by value."""

    files: NDArray[np.int64]
    """[B]: indices of images of the source."""
    crops: NDArray[np.float64] | None
    """[4, B, V, 10]: the draws of V crops of each image (`draw_view`); None for the central square."""


class Batch(NamedTuple):
    """A worker's answer."""

    crops: Tensor
    """uint8 or uint16 [V, B, C, size, size] by source.pixel"""
    files: Tensor
    """int64 [B]: which images these are; those that cannot be read are replaced by others."""
    readable: Tensor
    """bool [B]: False where no replacement could be read either; those crops are zero."""
    unreadable: list[tuple[int, str]]
    """(index, reason) of the files that could not be read."""


class CroppedFiles(Dataset[Batch]):
    """Requests -> batches; this runs in the workers."""

    def __init__(
        self,
        source: ImageList,
        size: int,
        augmentation: Augmentation | None,
        members: Tensor | None,
    ) -> None:
        names = source.files if isinstance(source.files, FileNames) else FileNames(source.files)
        self.source = dataclasses.replace(source, files=names, labels=None, classes=())
        self.size, self.augmentation, self.members = size, augmentation, members

    def __getitem__(self, request: Request) -> Batch:
        views = 1 if request.crops is None else request.crops.shape[2]
        pixel, size = self.source.pixel, self.size
        shape = (views, len(request.files), pixel.channels, size, size)
        crops = torch.zeros(shape, dtype=torch_type(pixel))
        files = torch.from_numpy(request.files.copy())
        readable = torch.zeros(len(files), dtype=torch.bool)
        unreadable: list[tuple[int, str]] = []
        for place, wanted in enumerate(request.files):
            for file in self._candidates(int(wanted)):
                found = self._read(file, request, place)
                if isinstance(found, str):
                    unreadable.append((file, found))
                    continue
                crops[:, place] = torch.from_numpy(found)
                files[place], readable[place] = file, True
                break
        return Batch(crops, files, readable, unreadable)

    def _candidates(self, wanted: int) -> Iterator[int]:
        """The file, then the members that follow it."""
        yield wanted
        if self.members is not None:
            after = int(torch.searchsorted(self.members, wanted, right=True))
            for i in range(after, after + min(MOST_SUBSTITUTES, len(self.members) - 1)):
                yield int(self.members[i % len(self.members)])

    def _read(self, file: int, request: Request, place: int) -> Pixels | str:
        """[V, C, size, size], or why it cannot be read."""

        def boxes_of(height: int, width: int) -> list[Box]:
            extent = torch.tensor([[height, width]])
            if request.crops is None or self.augmentation is None:
                return [tuple(box) for box in central_squares(extent, self.size).tolist()]
            draws = torch.from_numpy(request.crops[:, place])  # [4, V, 10]
            boxes = place_crops(draws, extent.expand(draws.shape[1], 2), self.augmentation)
            return [tuple(box) for box in boxes.tolist()]

        try:
            return decode_crops(self.source.read(file), boxes_of, self.size, self.source.pixel)
        except UnreadableImage as error:
            return str(error)


def decode_batches(
    source: ImageList,
    requests: Iterable[Request],
    *,
    workers: int,
    unreadable: dict[int, str],
    size: int,
    most: int,
    on_unreadable: Callable[[str, str], None],
    augmentation: Augmentation | None = None,
    members: Tensor | None = None,
    pin: bool = False,
) -> Iterator[Batch]:
    """The batches of the requests, in order.

    workers: processes that decode; 0 decodes in this one.
    unreadable: index -> reason, of the files met so far; it grows.
    size: side of the crops. most: crops of the largest request. pin: into page-locked memory.
    on_unreadable(file, reason) is called once for each file that cannot be read.
    members: int64, sorted: the next of them replaces an unreadable file, so that a batch is the same
        whichever worker makes it. None: nothing replaces it.

    Raises UserError when too many files are unreadable (source.max_unreadable),
    when a hundred members one after the other are, when the shared memory is too small, and when a
    worker is killed.
    """
    if workers:
        _refuse_little_shared_memory(workers, most * source.pixel.bytes * size**2)
    loader = DataLoader(
        CroppedFiles(source, size, augmentation, members),
        batch_size=None,  # a request is a batch already
        sampler=requests,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        multiprocessing_context=_start_method() if workers else None,
        worker_init_fn=_set_up_worker,
        pin_memory=pin,
        generator=torch.Generator(),  # else it would draw from the global one
    )
    for batch in _explain_killed_worker(iter(loader)):
        for file, reason in batch.unreadable:
            if file not in unreadable:
                unreadable[file] = reason
                on_unreadable(source.files[file], reason)
                refuse_too_many(source, sorted(unreadable.items()))
        if members is not None and not batch.readable.all():
            file, reason = batch.unreadable[-1]
            raise UserError(
                f"{source.root}: {MOST_SUBSTITUTES} files one after the other cannot be read "
                f"(the last: {shown(source.files[file])}: {reason}); is the disk still there?"
            )
        yield batch


def _explain_killed_worker(batches: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from batches
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        # The last three: a worker announced a batch and ended before it handed over the memory.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that decodes images ended ({error}). If the system killed it for its memory, "
            "lower --workers; if a script of yours called mixco, put its main part under "
            'if __name__ == "__main__": since workers import the script too'
        ) from None


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_method() -> str:
    """Never fork: the process has threads (progress, TensorBoard, CUDA) whose locks would be copied.

    On Linux, workers are forked from a small server that has loaded the libraries once.
    """
    if sys.platform != "linux":
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    return "forkserver"


def _set_up_worker(_number: int) -> None:
    """Ignore what a terminal sends to all of its processes, which the run handles, and end with the run.

    DataLoader's own check is of the parent process, which is the server here.
    """
    for name in {"SIGINT", "SIGHUP"} & set(signal.Signals.__members__):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    run = multiprocessing.parent_process()
    assert run is not None

    def end_with_it() -> None:
        run.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()

    def except_hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        # An interrupted run needs no traceback about the batch that it was fetching.
        if not issubclass(kind, (EOFError, ConnectionError)):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = except_hook


def _refuse_little_shared_memory(workers: int, batch_bytes: int) -> None:
    """Containers have 64 MiB by default; a worker that runs out of it dies without a message."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    needed = (PREFETCHED * workers + 1) * batch_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {workers} workers hold up to {needed / 2**20:,.0f} MiB of crops there, but "
            f"{free / 2**20:,.0f} MiB are free; lower --workers or --batch-size, or give the "
            "container more (docker run --shm-size)"
        )
