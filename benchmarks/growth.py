"""How pretraining grows: images a second, waiting, and memory, by one factor at a time.

    python benchmarks/growth.py [--factors images batch queue workers] [--data FOLDER] [--rounds 1]
    python benchmarks/growth.py --plot-only [--device cpu]

The factors are the number of images, the batch size, MoCo's queue, and the number of processes that
decode streamed images. One varies, the others stay: MoCo with MixCo, ResNet-18 at 64 px, packed images.
Each point is a process of its own, `pretrain` as it is (see few_steps.py), for --seconds of steps, at
least four; the first are not timed, and of streamed images as many more as workers prepare ahead.
All points run once in each round.

--data is a folder of at least 100,000 images for all sizes (Tiny-ImageNet's train/ has as many); sizes
that it has not are left out. Without it the built-in sample's 1,600 images are taken, as files.
Each size is packed once, before anything is timed.

Memory is that of the process and all below it, looked at twice a second, where shared pages count once
(PSS, Linux only), in MiB; `file` is the part of it that the system may drop: the packed pixels. On CUDA
the device's peak is beside it.

The figures of factors that are not asked for stay in the file where they are of the same commit, machine
and base: so the whole may be measured in pieces. The command in the file is then the last piece's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from few_steps import few_steps
from measuring import commit, in_turn, machine, spread, write_figures

from mixco.data.datasets import list_images
from mixco.data.packing import pack
from mixco.runtime.device import pick_device
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
)
from mixco.training.pretrain import pretrain

UNTIMED = 2  # steps
AXES = {
    "images": "images",
    "batch": "images in a batch",
    "queue": "keys in MoCo's queue",
    "workers": "decoding processes (streamed)",
}
MEASURES = {
    "images_per_second": "images / s",
    "waiting_share": "time spent waiting for data, %",
    "memory_mib": "peak memory, GiB",
}


def config_of(point: dict[str, Any]) -> PretrainConfig:
    """A run that would never end, few_steps() ends it; MoCo with MixCo, but for a point that says."""
    method, _, mix = point.get("method", "moco+mixco").partition("+")
    return PretrainConfig(
        data=DataConfig(
            data=point["data"],
            size=point["size"],
            cache=Path(point["cache"]),
            loading="packed" if point["workers"] is None else "streamed",
            workers=point["workers"],
        ),
        model=ModelConfig(arch=point["arch"]),
        method=MethodConfig(
            method=method, mix=mix or "none", queue=point["queue"] if method == "moco" else None
        ),
        optimisation=OptimisationConfig(epochs=10**6, batch_size=point["batch"]),
        run=RunConfig(
            out=Path(point["out"]), knn_every=0, checkpoint_minutes=0, device=point["device"]
        ),
    )


def run_point(point: dict[str, Any]) -> None:
    """In a process of its own: prints the figures as its last line."""
    ahead = 2 * (point["workers"] or 0)  # batches that were made before they are timed
    figures = few_steps(
        lambda: pretrain(config_of(point)),
        untimed=UNTIMED + ahead,
        seconds=point["seconds"],
        least=point["least"],
    )
    if torch.cuda.is_available() and point["device"] != "cpu":
        figures["device_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(figures), flush=True)


def measure(point: dict[str, Any]) -> dict[str, float]:
    """A point in a process of its own, with the peak of memory of it and all that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        given = json.dumps({**point, "out": f"{folder}/run"})
        with log.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, __file__, "--point", given], stdout=file, stderr=subprocess.STDOUT
            )
            peak: dict[str, float] = {}
            while child.poll() is None:
                found = memory_of_tree(child.pid)
                peak = max(peak, found, key=lambda memory: memory.get("memory_mib", 0))
                time.sleep(0.5)
        text = log.read_text()
        if child.returncode != 0:
            raise SystemExit(f"{text}\nthe point {given} failed")
        return {**json.loads(text.splitlines()[-1]), **peak}


def memory_of_tree(root: int) -> dict[str, float]:
    """MiB of a process and all its descendants; nothing where the system does not tell."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:  # "pid (name) state parent": the name may hold anything
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    total = {"Pss": 0, "Pss_File": 0}
    for pid in tree:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        kib = {
            name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)
        }
        total = {name: total[name] + kib.get(name, 0) for name in total}
    if not total["Pss"]:
        return {}
    return {"memory_mib": total["Pss"] / 1024, "file_mib": total["Pss_File"] / 1024}


def make_subset(files: list[Path], root: Path, count: int, folder: Path) -> None:
    """Links to `count` of the files, spread over the whole list."""
    for number in range(count):
        original = files[number * len(files) // count]
        link = folder / original.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(original)


def files_of(data: Path | None, work: Path) -> tuple[Path, list[Path]]:
    """The root and all image files below it; the sample's are unpacked into `work`."""
    if data is not None:
        source = list_images(str(data.resolve()), None, "pretrain")
        return source.root, [source.root / name for name in source.files]
    source, files = list_images("sample", None, "train"), []
    for number, name in enumerate(source.files):
        files.append(work / "sample" / name)
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_bytes(source.read(number))
    return work / "sample", files


def points_of(arguments: argparse.Namespace, sizes: list[int]) -> dict[str, dict[str, Any]]:
    """Name -> what differs from the base."""
    values = {
        "images": sizes,
        "batch": arguments.batch,
        "queue": arguments.queue,
        "workers": arguments.workers,
    }
    return {
        f"{factor} {value}": {"factor": factor, "value": value}
        for factor in arguments.factors
        for value in values[factor]
    }


def plot(path: Path, figures: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = figures["rows"]
    factors = [factor for factor in AXES if any(row["factor"] == factor for row in rows)]
    measures = [m for m in MEASURES if any(m in row for row in rows)]
    size = (3.4 * len(factors), 2.6 * len(measures))
    figure, grid = plt.subplots(
        len(measures), len(factors), figsize=size, squeeze=False, sharey="row"
    )
    scale = {"images_per_second": 1.0, "waiting_share": 100.0, "memory_mib": 1 / 1024}
    for column, factor in enumerate(factors):
        some = [row for row in rows if row["factor"] == factor]
        for line, measure_ in enumerate(measures):
            axes = grid[line][column]
            there = [row for row in some if measure_ in row]
            x = range(len(there))  # evenly: the values are powers, or few
            for key, style in (("median", "o-"), ("min", "_"), ("max", "_")):
                y = [row[measure_][key] * scale[measure_] for row in there]
                axes.plot(x, y, style, color="tab:blue", markersize=6 if key == "median" else 9)
            axes.set_xticks(list(x), [f"{row['value']:,}" for row in there])
            top = max(row[measure_]["max"] * scale[measure_] for row in rows if measure_ in row)
            axes.set_ylim(0, max(5, 1.15 * top) if measure_ == "waiting_share" else 1.15 * top)
            axes.grid(axis="y", alpha=0.3)
            if column == 0:
                axes.set_ylabel(MEASURES[measure_])
            if line == len(measures) - 1:
                axes.set_xlabel(AXES[factor])
    base = figures["rows"][0]["base"]
    figure.suptitle(
        f"MoCo + MixCo, {base['arch']} at {base['size']} px. What does not vary: {base['images']:,} "
        f"images, packed;\nbatch {base['batch']}, queue {base['queue']:,}. {figures['machine']}",
        fontsize=9,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def kept_rows(path: Path, factors: list[str], base: dict[str, Any]) -> list[dict[str, Any]]:
    """Of an earlier file, the rows of other factors, where they go with those to come."""
    if not path.is_file():
        return []
    old = json.loads(path.read_text("utf-8"))
    others = [row for row in old["rows"] if row["factor"] not in factors]
    alike = (old["commit"].rstrip("+"), old["machine"]) == (commit().rstrip("+"), machine())
    if alike and all(row["base"] == base for row in others):
        return others
    print(f"{path} is of another commit, machine or base: its rows are not kept")
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factors", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--data", type=Path, help="a folder of images; default: the sample")
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--queue", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--base-images", type=int, default=10_000)
    parser.add_argument("--base-batch", type=int, default=256)
    parser.add_argument("--base-queue", type=int, default=4096)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--seconds", type=float, default=12, help="timed, of each point")
    parser.add_argument("--least", type=int, default=4, help="steps that are timed at least")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/growth-DEVICE.json")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/growth.png"))
    parser.add_argument("--plot-only", action="store_true")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        run_point(json.loads(arguments.point))
        return
    device = pick_device(arguments.device)
    out = arguments.out or Path(f"benchmarks/results/growth-{device.type}.json")
    if not arguments.plot_only:
        measure_all(arguments, out, device)
    plot(arguments.picture, json.loads(out.read_text("utf-8")))


def measure_all(arguments: argparse.Namespace, out: Path, device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        root, files = files_of(arguments.data, work)
        sizes = sorted({min(count, len(files)) for count in arguments.images})
        base = {
            "arch": arguments.arch,
            "size": arguments.size,
            "images": min(arguments.base_images, len(files)),
            "batch": arguments.base_batch,
            "queue": arguments.base_queue,
            "workers": None,
        }
        points = points_of(arguments, sizes)
        used = {base["images"]} | {p["value"] for p in points.values() if p["factor"] == "images"}
        for count in sorted(used):
            subset = work / f"images-{count}"
            make_subset(files, root, count, subset)
            source = list_images(str(subset), None, "pretrain", work / "cache")
            pack(source, size=arguments.size, cache=work / "cache")
            print(f"packed: {count:,} images", flush=True)

        found: dict[str, list[dict[str, float]]] = {name: [] for name in points}

        def subject(name: str) -> float:
            point = {**base, points[name]["factor"]: points[name]["value"]}
            figures = measure(
                {
                    **point,
                    "data": str(work / f"images-{point['images']}"),
                    "cache": str(work / "cache"),
                    "device": device.type,
                    "seconds": arguments.seconds,
                    "least": arguments.least,
                }
            )
            found[name].append(figures)
            return figures["images_per_second"]

        in_turn({n: lambda n=n: subject(n) for n in points}, arguments.rounds)
    rows = kept_rows(out, arguments.factors, base)
    for name, point in points.items():
        measures = {key: spread(figures[key] for figures in found[name]) for key in found[name][0]}
        rows.append({**point, "base": base, **measures})
    write_figures(out, rows, device)


if __name__ == "__main__":
    main()
