"""What loading and starting cost, and what large folders cost.

    python benchmarks/data.py loading [--size 64 128] [--side 256 512] [--workers 1 2]
    python benchmarks/data.py startup [--data FOLDER] [--files 4000] [--side 64 256]
    python benchmarks/data.py listing [--files 100000] [--folders 100] [--folder FOLDER]
    python benchmarks/data.py worker-memory [--names 0 200000 1300000] [--workers 2 4]

loading: two views of each image, ready for the step, packed and then streamed with each number of
workers. The files are JPEGs of --side pixels, mosaics of the sample. Two batches are not timed.

startup: seconds of processes, from outside: `mixco --help` and `--version`; a run on packed images up to
the end of its first step; beside them Python itself and `import torch`. Then packing, in files a second,
against Pillow alone that decodes the same files in a pool of processes, one a processor. Packing also
reads each header beforehand, reduces what is larger than twice --size, and writes the pixels. The files
are mosaics, or the first --files of --data. The disk's cache is warm: an untimed round comes first.

listing: seconds to list a large folder, without an index, and with one the first and a later time. The
files are hard links to one small photograph. The disk's cache is warm; a cold disk adds its seeks, about
one a folder with an index, far more without.

worker-memory (Linux): memory of all workers together, after each has answered requests, for a number of
file names: RSS counts shared pages in each process, PSS divides them. `as strings` is what it would be
with the names as a tuple of Python strings in each worker.
"""

import functools
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from harness import (
    RESULTS,
    Figures,
    arguments_of,
    child,
    in_turn,
    kib_lines,
    packed,
    ratios,
    spreads,
    write_figures,
    write_mosaics,
)
from PIL import Image
from torch import Tensor

from mixco.data import file_index
from mixco.data.datasets import list_images
from mixco.data.formats import endings
from mixco.data.image_list import ImageList
from mixco.data.images import Images, view_batches
from mixco.data.loading import open_images
from mixco.data.packing import pack
from mixco.data.streaming import stream
from mixco.runtime.device import Compute, pick_device, processors, synchronise
from mixco.runtime.seeding import generator_for
from mixco.views.augmentation import Input, moco_v2

UNTIMED = 2  # batches
TARGETS = {"mixco --help": 0.5, "first step": 10.0}  # seconds


def views_of(
    images: Images, size: int, batch: int, batches: int, device: torch.device
) -> Iterator[Any]:
    """Batches of two views of random images."""

    def plan() -> Iterator[tuple[Tensor, torch.Generator]]:
        for step in range(batches):
            draws = generator_for(0, "benchmark", step=step)
            yield torch.randint(len(images), (batch,), generator=draws), draws

    return view_batches(
        images,
        plan(),
        moco_v2(Input(size)),
        members=torch.arange(len(images)),
        batch_size=batch,
        compute=Compute(device, torch.float32),
        on_unreadable=print,
    )


def loading(a: Any, work: Path) -> Iterator[Figures]:
    device = pick_device(a.device)
    for side in a.side:
        photos = write_mosaics(work / str(side), a.images, side)
        source = list_images(str(photos), None, "pretrain")
        for size in a.size:

            def rate(kind: str, number: int, size: int = size, source: Any = source) -> Figures:
                images = open_images(
                    source,
                    size=size,
                    cache=work / "cache",
                    loading=kind,  # type: ignore[arg-type]
                    workers=number,
                    memory=2**40,
                )
                views = views_of(images, size, a.batch_size, UNTIMED + a.batches, device)
                for _ in range(UNTIMED):
                    next(views)
                synchronise(device)
                began = time.perf_counter()
                count = sum(len(index) for index, _ in views)
                synchronise(device)
                return {"images_per_second": count / (time.perf_counter() - began)}

            packed(photos, size, work / "cache")
            pairs = [(kind, n) for n in a.workers for kind in ("packed", "streamed")]
            found = in_turn(
                {f"{kind} {n}": functools.partial(rate, kind, n) for kind, n in pairs}, a.rounds
            )
            for number in a.workers:
                of_packed, streamed = found[f"packed {number}"], found[f"streamed {number}"]
                yield {
                    "side": side,
                    "size": size,
                    "workers": number,
                    "packed_images_per_second": spreads(of_packed)["images_per_second"],
                    "streamed_images_per_second": spreads(streamed)["images_per_second"],
                    "ratio": ratios(streamed, of_packed),
                }


def startup(a: Any, work: Path) -> Iterator[Figures]:
    def ends(*command: str) -> Callable[[], Figures]:
        def seconds() -> Figures:
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            return {"seconds": time.perf_counter() - began}

        return seconds

    def first_step() -> Figures:
        """A new run folder each time; the cache, with the packed images in it, stays."""
        with tempfile.TemporaryDirectory(dir=work) as folder:
            run = {"method": "moco", "data": "sample", "size": a.size[0], "arch": a.arch}
            run |= {"batch_size": a.batch_size, "cache": f"{work}/cache", "out": f"{folder}/run"}
            run |= {"began": time.time(), "untimed": 0}
            return {"seconds": child("subjects:time_steps", run)["seconds_to_here"]}

    first_step()  # packs the sample, and Python compiles what it has not yet
    starts = {
        "python": ends("-c", "pass"),
        "import torch": ends("-c", "import torch"),
        "mixco --version": ends("-m", "mixco", "--version"),
        "mixco --help": ends("-m", "mixco", "--help"),
        "mixco pretrain --help": ends("-m", "mixco", "pretrain", "--help"),
        "first step": first_step,
    }
    for name, rounds in in_turn(starts, a.rounds).items():
        target = {"target": TARGETS[name]} if name in TARGETS else {}
        yield {"what": name, **spreads(rounds), **target}
    # Not forked: this process has threads, torch's.
    with ProcessPoolExecutor(processors(), multiprocessing.get_context("spawn")) as pool:
        for name, source in sources_of(a, work).items():
            subjects = {
                "packing": lambda source=source: packing(source, a.size[0], work),
                "decoder": lambda source=source: decoding(pool, source),
            }
            in_turn(subjects, 1)  # the processes start, the files are read
            ours, bare = in_turn(subjects, a.rounds).values()
            yield {
                "what": f"packing, {name}",
                "files": len(source.files),
                **spreads(ours),
                "decoder_files_per_second": spreads(bare)["files_per_second"],
                "ratio": ratios(ours, bare, "files_per_second"),
            }


def sources_of(a: Any, work: Path) -> dict[str, ImageList]:
    if a.data:
        whole = list_images(str(a.data.resolve()), None, "pretrain")
        files = tuple(whole.files[:: max(1, len(whole.files) // a.files)][: a.files])
        return {a.data.name: ImageList(whole.name, whole.root, files, None, ())}
    folders = {f"{side} px": write_mosaics(work / str(side), a.files, side) for side in a.side}
    return {name: list_images(str(at), None, "pretrain") for name, at in folders.items()}


def packing(source: ImageList, size: int, work: Path) -> Figures:
    with tempfile.TemporaryDirectory(dir=work) as cache:
        began = time.perf_counter()
        pack(source, size=size, cache=Path(cache), workers=processors())
        return {"files_per_second": len(source.files) / (time.perf_counter() - began)}


def decoding(pool: ProcessPoolExecutor, source: ImageList) -> Figures:
    began, count = time.perf_counter(), len(source.files)
    decode = functools.partial(decode_one, source)
    for _ in pool.map(decode, range(count), chunksize=max(1, count // 100)):
        pass
    return {"files_per_second": count / (time.perf_counter() - began)}


def decode_one(source: ImageList, index: int) -> None:
    with Image.open(BytesIO(source.read(index))) as image:
        image.convert("RGB")


def listing(a: Any, work: Path) -> Iterator[Figures]:
    root, made = work / "photos", 0
    content = list_images("sample", None, "train").read(0)
    for number in range(a.folders):
        folder = root / f"n{number:08}"
        folder.mkdir(parents=True)
        while made < a.files * (number + 1) // a.folders:
            path = folder / f"n{number:08}_{made}.JPEG"
            if made % 1000 == 0:  # file systems limit the links to one file
                path.write_bytes(content)
                original = path
            else:
                path.hardlink_to(original)
            made += 1
    time.sleep(file_index.SETTLED_NS / 1e9)  # younger folders are listed again
    caches = iter(range(2 * a.rounds))

    def seconds(cache: Path | None) -> Figures:
        began = time.perf_counter()
        found = len(file_index.list_files(root, endings(), cache).files)
        assert found == a.files
        return {"seconds": time.perf_counter() - began}

    def newest() -> Path:
        return work / f"cache-{next(caches) // 2}"

    subjects = {"no index": lambda: seconds(None)}
    subjects |= {"first time": lambda: seconds(newest()), "later": lambda: seconds(newest())}
    for what, rounds in in_turn(subjects, a.rounds).items():
        yield {"files": a.files, "folders": a.folders, "what": what, **spreads(rounds)}
    size = next((work / "cache-0").iterdir()).stat().st_size
    yield {"what": "size of the index", "mib": size / 2**20}


def worker_memory(a: Any, work: Path) -> Iterator[Figures]:
    (work / "n01440764_10026.JPEG").write_bytes(list_images("sample", None, "train").read(0))
    for what in ("one buffer", "as strings"):
        for count in a.names:
            # Each name is a string of its own, as a listing gives it, and all lead to one photo.
            dots = ("./" * (i % 8) for i in range(max(1, count)))
            names = tuple(f"{d}n01440764_10026.JPEG" for d in dots)
            title = TakesAlong("names/pretrain")
            title.names = names if what == "as strings" else ()
            for number in a.workers:
                source = ImageList(title, work, names, None, ())
                memory = memory_of_workers(source, number)
                yield {"what": what, "names": count, "workers": number, **memory}


class TakesAlong(str):
    """A list's name that carries all file names to each worker, as Python strings."""

    names: tuple[str, ...] = ()


def memory_of_workers(source: ImageList, number: int) -> dict[str, float]:
    """MiB of all workers together, while the last batch is there."""
    views = views_of(stream(source, number), 64, 8, 32, torch.device("cpu"))
    for _ in range(31):
        next(views)
    children = multiprocessing.active_children()
    assert len(children) == number
    rollups = [kib_lines(Path(f"/proc/{one.pid}/smaps_rollup")) for one in children]
    views.close()  # type: ignore[attr-defined]
    return {f"{kind}_mib": sum(r[kind.title()] for r in rollups) / 1024 for kind in ("rss", "pss")}


WHAT = {
    "loading": loading,
    "startup": startup,
    "listing": listing,
    "worker-memory": worker_memory,
}


def main() -> None:
    integers = {"type": int, "nargs": "+"}
    a = arguments_of(
        __doc__,
        what={"choices": list(WHAT)},
        size={**integers, "default": [64, 128], "help": "startup takes the first"},
        side={**integers, "help": "default: 256 512 for loading, 64 256 for startup"},
        workers={**integers, "help": "default: 1 2 for loading, 2 4 for worker-memory"},
        images={"type": int, "default": 512, "help": "loading"},
        batch_size={"type": int, "help": "default: 128 for loading, 256 for startup"},
        # More than the workers prepare ahead, or it is what they made before that is timed.
        batches={"type": int, "default": 24, "help": "loading"},
        arch={"default": "resnet18", "help": "startup"},
        data={"type": Path, "help": "startup: a folder of images to pack"},
        files={"type": int, "help": "default: 4000 for startup, 100000 for listing"},
        folders={"type": int, "default": 100, "help": "listing"},
        folder={"type": Path, "help": "listing: where files are made"},
        names={**integers, "default": [0, 200_000, 1_300_000], "help": "worker-memory"},
    )
    usual = {
        "loading": {"side": [256, 512], "workers": [1, 2], "batch_size": 128},
        "startup": {"side": [64, 256], "batch_size": 256, "files": 4000},
        "listing": {"files": 100_000},
        "worker-memory": {"workers": [2, 4]},
    }[a.what]
    for name, value in usual.items():
        setattr(a, name, value if getattr(a, name) is None else getattr(a, name))
    rows = []
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for row in WHAT[a.what](a, Path(folder)):
            rows.append(row)
            print(row, flush=True)
    device = pick_device(a.device if a.what == "loading" else "cpu")
    write_figures(a.out or RESULTS / f"{a.what}.json", rows, device)


if __name__ == "__main__":
    main()
