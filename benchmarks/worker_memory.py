"""Does the memory of the workers grow with the names of the files? Linux only.

    python benchmarks/worker_memory.py [--names 0 200000 1300000] [--workers 2 4]

Prints the memory of all workers together, after each has answered requests: RSS, which counts shared
pages in each of them, and PSS, which divides a page by the processes that share it. `as strings` is
what it would be with the names as a tuple of Python strings in each worker.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixco.data import workers as decoding
from mixco.data.datasets.sources import ImageList, list_images
from mixco.data.streaming import stream
from mixco.runtime.device import Compute
from mixco.views.augment import Input, moco_v2

BATCH, STEPS = 8, 32


def plan(count: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        yield torch.randint(count, (BATCH,), generator=generator), generator


def memory(source: ImageList, workers: int) -> dict[str, float]:
    """MiB of all workers together, while the last batch is there."""
    images = stream(source, workers)
    batches = images.view_batches(
        plan(len(images)),
        moco_v2(Input(64)),
        members=torch.arange(len(images)),
        batch_size=BATCH,
        compute=Compute(torch.device("cpu"), torch.float32),
        on_unreadable=print,
    )
    for _ in range(STEPS - 1):
        next(batches)
    total = {"Rss": 0, "Pss": 0}
    children = multiprocessing.active_children()
    assert len(children) == workers
    for child in children:
        lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
        for kind in total:
            total[kind] += next(int(x.split()[1]) for x in lines if x.startswith(f"{kind}:"))
    batches.close()
    return {kind: kib / 1024 for kind, kib in total.items()}


def as_strings(names: Sequence[str]) -> tuple[str, ...]:
    """In the place of FileNames."""
    return tuple(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, nargs="+", default=[0, 200_000, 1_300_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    ours = decoding.FileNames
    with tempfile.TemporaryDirectory() as folder:
        photo = list_images("sample", None, "train").read(0)
        (Path(folder) / "n01440764_10026.JPEG").write_bytes(photo)
        for table in (ours, as_strings):
            decoding.FileNames = table  # type: ignore[assignment,misc]
            for count in arguments.names:
                # Each name is a string of its own, as a listing gives it, and all lead to one photo.
                dots = ("./" * (i % 8) for i in range(max(1, count)))
                names = tuple(f"{d}n01440764_10026.JPEG" for d in dots)
                source = ImageList("names/pretrain", Path(folder), names, None, ())
                for workers in arguments.workers:
                    found = memory(source, workers)
                    print(
                        f"{'one buffer' if table is ours else 'as strings'}, {count:>9,} names, "
                        f"{workers} workers: RSS {found['Rss']:,.0f} MiB, "
                        f"PSS {found['Pss']:,.0f} MiB, together",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
