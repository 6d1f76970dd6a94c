"""The same images as a folder, as tar shards and as Parquet: what reading and starting cost.

    python benchmarks/forms.py reading --data tiny-imagenet-200 [--size 64] [--workers 2]
    python benchmarks/forms.py startup [--entries 1300000] [--size 64]

reading: packing, in images a second, and then two views of random images, streamed; first the packed
pixels of the three forms are compared, which must be equal bit for bit. The shards are written beside
the cache, with their original bytes: 10,000 images a tar file, 100 rows a row group as the hub writes
them. The disk's cache is warm: an untimed round comes first.

startup: seconds to list a set of this size, the first time and with the index of an earlier start, and
from the start of a process to the end of the fifth step of a streamed run: the workers prepare four
batches ahead. (Not of Parquet, whose images are copied first.) The files are hard links to a few, so the
disk's cache is warm; a cold or a network disk adds its own times.
"""

import functools
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from data import UNTIMED, views_of
from harness import RESULTS, Figures, arguments_of, child, in_turn, ratios, spreads, write_figures

from mixco.data import file_index
from mixco.data.datasets import list_images
from mixco.data.image_list import ImageList
from mixco.data.loading import open_images
from mixco.data.packing import pack
from mixco.runtime.device import pick_device, processors

IN_TAR, IN_GROUP = 10_000, 100
Labelled = Sequence[tuple[bytes, int]]


def parts(count: int, size: int) -> list[range]:
    """range(count) in consecutive parts."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def write_tar(path: Path, images: Labelled, first: int = 0) -> None:
    """Samples as WebDataset writes them: 000017.jpg and 000017.cls."""
    with tarfile.open(path, "w") as tar:
        for number, (content, label) in enumerate(images, first):
            for ending, data in (("jpg", content), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:08d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, images: Labelled, names: Sequence[str]) -> None:
    """Rows as the hub's library writes them."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    kinds = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", kinds), ("label", pyarrow.int64())]).with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for some in parts(len(images), IN_GROUP):
            rows = [{"bytes": images[i][0], "path": f"photo_{i:08d}.jpg"} for i in some]
            writer.write_table(pyarrow.table([rows, [images[i][1] for i in some]], schema=schema))


def forms_of(source: ImageList, work: Path) -> dict[str, ImageList]:
    """The list, and the same images in shards."""
    assert source.labels is not None
    for kind in ("tar", "parquet"):
        (work / kind).mkdir()
    for number, some in enumerate(parts(len(source.files), IN_TAR)):
        images = [(source.read(i), source.labels[i]) for i in some]
        write_tar(work / "tar" / f"train-{number:06d}.tar", images, some[0])
        write_parquet(work / "parquet" / f"train-{number:06d}.parquet", images, source.classes)
    time.sleep(file_index.SETTLED_NS / 1e9)  # the index of a younger shard is not kept
    cache = work / "cache"
    shards = {
        kind: list_images(str(work / kind), None, "pretrain", cache) for kind in ("tar", "parquet")
    }
    return {"folder": source, **shards}


def packing(source: ImageList, size: int, work: Path) -> Figures:
    with tempfile.TemporaryDirectory(dir=work) as cache:
        began = time.perf_counter()
        pack(source, size=size, cache=Path(cache), workers=processors())
        return {"images_per_second": len(source.files) / (time.perf_counter() - began)}


def streaming(source: ImageList, size: int, workers: int, work: Path, a: Any) -> Figures:
    images = open_images(
        source,
        size=size,
        cache=work / "cache",
        loading="streamed",
        workers=workers,
        memory=2**40,
    )
    device = torch.device("cpu")
    views = views_of(images, size, a.batch_size, UNTIMED + a.batches, device)
    for _ in range(UNTIMED):
        next(views)
    began = time.perf_counter()
    count = sum(len(index) for index, _ in views)
    return {"images_per_second": count / (time.perf_counter() - began)}


def reading(a: Any, work: Path) -> Iterator[Figures]:
    if a.data is None:
        raise SystemExit("give --data, a folder with train/<class>/")
    forms = forms_of(list_images(str(a.data.resolve()), None, "pretrain"), work)
    images = {
        form: pack(source, size=a.size, cache=work / "cache") for form, source in forms.items()
    }
    first = images["folder"]
    equal = all(
        torch.equal(first.images, other.images) and torch.equal(first.extents, other.extents)
        for other in images.values()
    )
    yield {"what": "the packed pixels are equal", "images": len(first), "equal": equal}
    assert equal
    del images, first
    subjects = {
        **{
            ("packing", form): functools.partial(packing, source, a.size, work)
            for form, source in forms.items()
        },
        **{
            ("streaming", form): functools.partial(streaming, source, a.size, a.workers, work, a)
            for form, source in forms.items()
        },
    }
    named = {" ".join(key): subject for key, subject in subjects.items()}
    in_turn(named, 1)  # the files are read, Parquet is copied
    found = in_turn(named, a.rounds)
    for what, form in subjects:
        rounds = found[f"{what} {form}"]
        yield {
            "what": what,
            "form": form,
            **spreads(rounds),
            "ratio": ratios(rounds, found[f"{what} folder"]),
        }


def large_sets(entries: int, work: Path) -> dict[str, Path]:
    """Sets of this size from few images, by hard links."""
    sample = list_images("sample", None, "train")
    assert sample.labels is not None
    places = {form: work / form for form in ("folder", "tar", "parquet")}
    content = [(sample.read(i), label) for i, label in enumerate(sample.labels)]
    images = [content[i % len(content)] for i in range(IN_TAR)]
    for form in ("tar", "parquet"):
        places[form].mkdir()
        first = places[form] / f"train-000000.{form}"
        if form == "tar":
            write_tar(first, images)
        else:
            write_parquet(first, images, sample.classes)
        for number in range(1, entries // IN_TAR):
            first.with_name(f"train-{number:06d}.{form}").hardlink_to(first)
    for number in range(entries):
        name = sample.classes[number % len(sample.classes)]
        path = places["folder"] / "train" / f"{name}-{number % 1000:03d}" / f"{number}.jpg"
        if number < 1000:
            path.parent.mkdir(parents=True, exist_ok=True)
        if number % 10_000 == 0:  # file systems limit the links to one file
            path.write_bytes(content[0][0])
            original = path
        else:
            os.link(original, path)
    time.sleep(file_index.SETTLED_NS / 1e9)
    return places


def startup(a: Any, work: Path) -> Iterator[Figures]:
    places = large_sets(a.entries, work)

    def listing(place: Path, cache: Path) -> float:
        began = time.perf_counter()
        found = len(list_images(str(place), None, "pretrain", cache).files)
        assert found == a.entries
        return time.perf_counter() - began

    def rounds_of(form: str, number: Iterator[int]) -> Figures:
        place, cache = places[form], work / f"cache-{form}-{next(number)}"
        first, later = listing(place, cache), listing(place, cache)
        found = {"first_time": first, "later": later}
        if form == "parquet":  # its steps would come after a copy of all images
            return found
        with tempfile.TemporaryDirectory(dir=work) as folder:
            run = {"method": "simclr+mixco", "data": str(place), "size": a.size, "arch": a.arch}
            run |= {"loading": "streamed", "workers": a.workers, "batch_size": 64, "untimed": 0}
            run |= {"cache": str(cache), "out": f"{folder}/run", "began": time.time()}
            return found | {"five_steps": child("subjects:time_steps", run)["seconds_to_here"]}

    subjects = {form: functools.partial(rounds_of, form, iter(range(a.rounds))) for form in places}
    for form, rounds in in_turn(subjects, a.rounds).items():
        yield {"form": form, "entries": a.entries, **spreads(rounds)}


WHAT = {"reading": reading, "startup": startup}


def main() -> None:
    a = arguments_of(
        __doc__,
        what={"choices": list(WHAT)},
        data={"type": Path, "help": "reading: a folder with train/<class>/"},
        size={"type": int, "default": 64},
        workers={"type": int, "default": 2},
        batch_size={"type": int, "default": 128},
        batches={"type": int, "default": 24, "help": "reading"},
        entries={"type": int, "default": 1_300_000, "help": "startup"},
        arch={"default": "resnet18", "help": "startup"},
        folder={"type": Path, "help": "where files are made"},
    )
    rows = []
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for row in WHAT[a.what](a, Path(folder)):
            rows.append(row)
            print(row, flush=True)
    write_figures(a.out or RESULTS / f"forms-{a.what}.json", rows, pick_device("cpu"))


if __name__ == "__main__":
    main()
