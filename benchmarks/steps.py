"""Where time and memory of pretraining go: parts of a step, micro-batches, growth, bases and mixers.

    python benchmarks/steps.py parts [--size 64] [--methods moco simclr]
    python benchmarks/steps.py micro-batches [--points 256x1 1024x1 1024x4 4096x16]
    python benchmarks/steps.py growth [--factors images batch queue workers] [--data FOLDER]
    python benchmarks/steps.py family

Each point is a process of its own that makes steps of a real run (`time_steps` in subjects.py).

parts: milliseconds of views, encoder passes, losses, momentum update, backward and optimiser, on the
sample. On an accelerator each border waits for the device, so the step is longer than without. `rest`
is the time between them.

micro-batches: SimCLR at 32 px with a batch, whole and in micro-batches (BATCHxMICRO_BATCHES). One step
is not timed, one is. memory_mib is how much the process's peak of memory (on CUDA the device's) has
grown since the first step began.

growth: MoCo with MixCo at 64 px. One factor varies, and the others stay at the base: the number of
images, the batch, the queue, or the processes that decode streamed images. Each point is timed for
--seconds, and for at least four steps. --data is a folder of at least 100,000 images, such as
Tiny-ImageNet's train/; with fewer, larger numbers of images are cut to what it has. Without --data the
sample's 1,600 images are used.
`python benchmarks/tables.py` draws the picture.

family: images per second of every base with every mixer, in bfloat16, with the network, size and batch
of experiments/sample.toml.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from harness import (
    METHODS,
    RESULTS,
    Figures,
    arguments_of,
    child,
    in_turn,
    packed,
    spreads,
    usual_batch,
    write_figures,
    write_sample,
)

from mixco.data.datasets import list_images
from mixco.methods import METHODS as BASES
from mixco.methods import MIXERS, NO_MIXER, run_name, works
from mixco.runtime.device import pick_device

SAMPLE = 1600  # training images
FACTORS = ("images", "batch", "queue", "workers")
POINTS = ["256x1", "1024x1", "1024x4", "4096x16"]


def measure(points: dict[str, Figures], rounds: int, cache: Path) -> dict[str, list[Figures]]:
    """time_steps with each point's settings, in turn."""

    def run(settings: Figures) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            given = {"cache": str(cache), "out": f"{folder}/run", **settings}
            return child("subjects:time_steps", given)

    found = in_turn({name: partial(run, settings) for name, settings in points.items()}, rounds)
    for name, figures in found.items():
        if "failed" in figures[-1]:
            raise SystemExit(f"{name} failed:\n{figures[-1]['failed']}")
    return found


def parts(arguments: Any, work: Path, device: str) -> list[Figures]:
    size, arch = arguments.size, arguments.arch
    common = {"data": "sample", "size": size, "arch": arch, "queue": 1024, "device": device}
    common |= {"batch_size": arguments.batch_size or usual_batch(size), "least": arguments.steps}
    points = {m: {**common, "method": m, "parts": True} for m in arguments.methods}
    return [
        {
            "method": method,
            "size": size,
            "arch": arch,
            "milliseconds": spreads([figures["parts"] for figures in rounds]),
        }
        for method, rounds in measure(points, arguments.rounds, work).items()
    ]


def micro_batches(arguments: Any, work: Path, device: str) -> list[Figures]:
    points, rows = {}, []
    method = "simclr" if arguments.mix == "none" else f"simclr+{arguments.mix}"
    for point in arguments.points:
        batch, number = map(int, point.split("x"))
        data = work / str(batch)
        if not data.exists():
            packed(write_sample(data, batch), 32, work)
        points[point] = {"method": method, "data": str(data), "size": 32, "arch": arguments.arch}
        points[point] |= {"batch_size": batch, "micro_batches": number, "untimed": 1}
        points[point] |= {"device": device}
    for point, rounds in measure(points, arguments.rounds, work).items():
        batch, number = map(int, point.split("x"))
        figures = spreads(rounds)
        names = {"growth_mib": "memory_mib"}
        kept = ("seconds", "images_per_second", "growth_mib")
        rows.append({"batch": batch, "micro_batches": number, "mix": arguments.mix})
        rows[-1] |= {names.get(key, key): figures[key] for key in kept if key in figures}
    return rows


def growth(arguments: Any, work: Path, device: str) -> list[Figures]:
    """A row for each value of each factor."""
    data = arguments.data
    root = data.resolve() if data else write_sample(work / "sample", SAMPLE)
    files = list_images(str(root), None, "pretrain").files
    images = sorted({min(count, len(files)) for count in arguments.images})
    values = {"images": images, "batch": arguments.batch, "queue": arguments.queue}
    values["workers"] = arguments.workers
    base = {"arch": arguments.arch, "size": arguments.size, "workers": None}
    base |= {"images": min(arguments.base_images, len(files))}
    base |= {"batch": arguments.base_batch, "queue": arguments.base_queue}
    for count in {base["images"], *(images if "images" in arguments.factors else [])}:
        folder = link_some(files, root, count, work / f"images-{count}")
        packed(folder, arguments.size, work / "cache")

    def settings(factor: str, value: int) -> Figures:
        point = {**base, factor: value}
        return {
            "method": "moco+mixco",
            "arch": point["arch"],
            "size": point["size"],
            "data": str(work / f"images-{point['images']}"),
            "batch_size": point["batch"],
            "queue": point["queue"],
            "loading": "packed" if point["workers"] is None else "streamed",
            "workers": point["workers"],
            "device": device,
            "seconds": arguments.seconds,
            "least": arguments.least,
        }

    points = {(f, v): settings(f, v) for f in arguments.factors for v in values[f]}
    named = {f"{f} {v}": point for (f, v), point in points.items()}
    found = measure(named, arguments.rounds, work / "cache")
    rows = []
    for (factor, value), rounds in zip(points, found.values(), strict=True):
        row = {"factor": factor, "value": value, "base": base, **spreads(rounds)}
        row |= {"memory_mib": row.pop("peak_memory_mib")} if "peak_memory_mib" in row else {}
        rows.append(row)
    return rows


def family(arguments: Any, work: Path, device: str) -> list[Figures]:
    common = {"data": "sample", "size": 32, "stem": "standard", "batch_size": 128}
    common |= {"arch": arguments.arch, "device": device, "least": arguments.steps}
    common |= {"precision": "bfloat16"}
    bases = [name for name, base in BASES.items() if not base.teacher]
    mixers = [name for name in MIXERS if not name.startswith("unmix-")]
    pairs = [(base, mix) for base in bases for mix in (NO_MIXER, *mixers) if works(base, mix)]
    points = {run_name(*pair): {**common, "method": run_name(*pair)} for pair in pairs}
    found = measure(points, arguments.rounds, work)
    rates = {name: spreads(rounds)["images_per_second"] for name, rounds in found.items()}
    return [{"pair": name, "images_per_second": rate} for name, rate in rates.items()]


def link_some(files: Any, root: Path, count: int, folder: Path) -> Path:
    """Link to `count` of the files, spread over the whole list."""
    for number in range(count):
        name = files[number * len(files) // count]
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / name)
    return folder


PARTS = {"parts": parts, "micro-batches": micro_batches, "growth": growth, "family": family}


def main() -> None:
    integers = {"type": int, "nargs": "+"}
    arguments = arguments_of(
        __doc__,
        what={"choices": list(PARTS)},
        size={"type": int, "default": 64},
        arch={"default": "resnet18"},
        methods={"nargs": "+", "choices": METHODS, "default": list(METHODS), "help": "parts"},
        batch_size={"type": int, "help": "parts; default: 256 up to 96 pixels, 64 beyond"},
        steps={"type": int, "default": 4, "help": "parts: timed steps"},
        points={"nargs": "+", "default": POINTS, "help": "micro-batches"},
        mix={"default": "none", "choices": ["none", "mixco"], "help": "micro-batches"},
        factors={"nargs": "+", "choices": FACTORS, "default": list(FACTORS), "help": "growth"},
        data={"type": Path, "help": "growth: a folder of images; default: the sample"},
        images={**integers, "default": [1_000, 10_000, 100_000], "help": "growth"},
        batch={**integers, "default": [64, 128, 256, 512], "help": "growth"},
        queue={**integers, "default": [1024, 4096, 16384, 65536], "help": "growth"},
        workers={**integers, "default": [0, 1, 2, 4], "help": "growth"},
        base_images={"type": int, "default": 10_000, "help": "growth"},
        base_batch={"type": int, "default": 256, "help": "growth"},
        base_queue={"type": int, "default": 4096, "help": "growth"},
        seconds={"type": float, "default": 12, "help": "growth: timed, of each point"},
        least={"type": int, "default": 4, "help": "growth: steps that are timed at least"},
        rounds=2,
    )
    device = pick_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = PARTS[arguments.what](arguments, Path(folder), device.type)
    names = {"parts": f"parts-{device.type}-{arguments.size}", "growth": f"growth-{device.type}"}
    names["family"] = f"family-{device.type}"
    name = names.get(arguments.what, f"gradient-caching-{device.type}")
    write_figures(arguments.out or RESULTS / f"{name}.json", rows, device)


if __name__ == "__main__":
    main()
