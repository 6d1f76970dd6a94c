"""Our pretraining against others and against the limit: images/s, memory and waiting, in turn.

    make peers    # once: lightly and lightly-train, in .venv-peers
    python benchmarks/pretraining.py [--size 64] [--methods moco simclr] [--subjects ours lightly]

The same encoder, image files, image size and batch for all; each subject in a process of its own, one
after the other, round by round. A ratio is ours over theirs, within a round. What each subject does
stands on top of its file in benchmarks/subjects/:

    ours              `pretrain`, its images packed before
    ours-streamed     the same, its images decoded anew each time, as all others do
    ours-float32      the same as ours, in float32 whatever the device is fast in
    bare              the limit: passes of the encoder alone, over resident random numbers
    bare-plain-norms  the same without splitting MoCo's batch norms into virtual devices
    lightly           the loops of its documentation: MoCo, SimCLR
    lightly-train     its `pretrain`: SimCLR
    2020              the way of the 2020 code: MoCo, and MoCo with MixCo
    2020-at-224       the same at 224 pixels, which the 2020 code trained everything at, batch 64

Images/s counts each image of a batch once, however many views and mixtures are made of it. The first
steps are not timed. Waiting is the share of the time in which the loop waits for its next batch; ours
makes its views in that time, the others' workers make theirs beside the loop. Peak memory is of the
subject's process and all below it, pages that they share counted once, from start to end; on CUDA also
what torch has allocated there. Packing is timed once, apart.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import in_turn, ratios, spread, write_figures

from mixco.data.datasets import list_images
from mixco.data.loading import open_images
from mixco.runtime.device import pick_device, processors

HERE = Path(__file__).parent
METHODS = ("moco", "simclr", "moco+mixco", "simclr+mixco")
# Of each subject: its script, what it is given beside the settings, the methods that it has.
SUBJECTS: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "ours": ("ours", [], METHODS),
    "ours-streamed": ("ours", ["--loading", "streamed"], METHODS),
    "ours-float32": ("ours", ["--precision", "float32"], METHODS),
    "bare": ("bare", [], METHODS),
    "bare-plain-norms": ("bare", ["--plain-norms"], ("moco", "moco+mixco")),
    "lightly": ("lightly_loop", [], ("moco", "simclr")),
    "lightly-train": ("lightly_train_run", [], ("simclr",)),
    "2020": ("pipeline_2020", [], ("moco", "moco+mixco")),
    "2020-at-224": (
        "pipeline_2020",
        ["--size", "224", "--batch-size", "64"],
        ("moco", "moco+mixco"),
    ),
}
DEFAULT = ("ours", "bare", "bare-plain-norms", "lightly", "lightly-train", "2020")
PEERS = {"lightly": "lightly", "lightly-train": "lightly_train"}  # what has to be importable
SECONDS_BETWEEN_LOOKS = 1.0  # at the memory; a look takes some 0.02 s of one processor
UNITS = ("images_per_second", "waiting_share", "peak_memory_mib", "cuda_peak_memory_mib")


def write_images(folder: Path, count: int) -> None:
    """The built-in sample's JPEG files, over and over until there are `count`."""
    source = list_images("sample", None, "train")
    folder.mkdir(parents=True)
    for number in range(count):
        data = source.read(number % len(source.files))
        (folder / f"{number:06}.jpg").write_bytes(data)


def pack_images(folder: Path, cache: Path, size: int, workers: int) -> float:
    """Pack for our pretraining, which finds it in the cache; seconds."""
    began = time.perf_counter()
    source = list_images(str(folder), None, "pretrain", cache)
    open_images(
        source, size=size, cache=cache, loading="packed", workers=workers, memory=sys.maxsize
    )
    return time.perf_counter() - began


def missing_peers(python: Path) -> dict[str, str]:
    """Of the peers that the interpreter cannot import: what to do about it."""
    if not python.is_file():
        found = {}
    else:
        code = (
            "import importlib.util as u, json, sys; "
            "print(json.dumps({n: bool(u.find_spec(n)) for n in sys.argv[1:]}))"
        )
        done = subprocess.run(
            [python, "-c", code, *PEERS.values()], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
    return {
        name: f"{name} is not installed for {python}: run `make peers`, or give --peers PYTHON"
        for name, module in PEERS.items()
        if not found.get(module)
    }


def memory_mib(root: int) -> float:
    """High-water marks of a process and all below it, less what they share. 0 without Linux's /proc.

    A mark is the most that was resident so far; pages that several processes map, as after a fork,
    count in each by their part.
    """
    pids, total = [root], 0.0
    for pid in pids:  # grows while it is walked
        process = Path("/proc", str(pid))
        try:
            status = _kib_lines((process / "status").read_text())
            rollup = _kib_lines((process / "smaps_rollup").read_text())
            total += status["VmHWM"] - (rollup["Rss"] - rollup["Pss"])
            for children in process.glob("task/*/children"):
                pids += [int(child) for child in children.read_text().split()]
        except (OSError, KeyError):
            continue  # it has ended
    return total / 1024


def _kib_lines(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines())
    return {line[0][:-1]: int(line[1]) for line in lines if line[-1:] == ["kB"]}


def run(command: list[str]) -> dict[str, Any]:
    """The line that the subject prints, with the peak of its memory. Raises RuntimeError."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            peak = 0.0
            while process.poll() is None:
                peak = max(peak, memory_mib(process.pid))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        lines = [line for line in output if line.startswith('{"images_per_second"')]
        if process.returncode or not lines:
            raise RuntimeError("\n".join(errors.read().strip().splitlines()[-5:]))
    return {**json.loads(lines[-1]), "peak_memory_mib": peak or None}


def measure(name: str, command: list[str], lines: list[dict[str, Any]]) -> float:
    """One more of the subject's lines, and its images/s. One that has failed is not tried again."""
    if lines and "failed" in lines[-1]:
        return math.nan
    try:
        lines.append(run(command))
    except RuntimeError as error:
        lines.append({"failed": str(error)})
        print(f"{name} cannot run:\n{error}", flush=True)
        return math.nan
    return float(lines[-1]["images_per_second"])


def row_of(name: str, lines: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """The subject's figures over the rounds, and ours over them."""
    if "failed" in lines[-1]:
        return {"subject": name, "failed": lines[-1]["failed"].splitlines()[-1:]}
    units = [unit for unit in UNITS if unit in lines[0] and lines[0][unit] is not None]
    row: dict[str, Any] = {"subject": name}
    row |= {key: lines[0][key] for key in ("dtype", "libraries") if key in lines[0]}
    row |= {unit: spread(line[unit] for line in lines) for unit in units}
    if name != "ours" and ours and "failed" not in ours[-1]:
        for unit in ("images_per_second", "peak_memory_mib"):
            of_ours, theirs = ([line[unit] for line in all_] for all_ in (ours, lines))
            if all(theirs):
                row[f"ours_over_theirs_{unit}"] = ratios(of_ours, theirs)
    return row


def show(row: dict[str, Any]) -> None:
    def shown(key: str, form: str) -> str:
        values = row.get(key)
        if values is None:
            return "-"
        low, middle, high = (format(values[k], form) for k in ("min", "median", "max"))
        return f"{middle} ({low} to {high})"

    print(
        f"{row['size']} px  {row['method']:<13}{row['subject']:<18}"
        f"{shown('images_per_second', ',.1f'):>26} images/s"
        f"{shown('ours_over_theirs_images_per_second', '.2f'):>22} ours/theirs"
        f"{shown('waiting_share', '.0%'):>20} waiting"
        f"{shown('peak_memory_mib', ',.0f'):>28} MiB"
        f"{shown('ours_over_theirs_peak_memory_mib', '.2f'):>22} ours/theirs",
        flush=True,
    )


def measure_size(size: int, arguments: argparse.Namespace, device: torch.device) -> list[Any]:
    """All methods and subjects at one size: a row each."""
    batch = arguments.batch_size or (64 if size > 96 else 256)
    steps = arguments.steps or (4 if device.type == "cpu" else 100)
    workers = processors() if arguments.workers is None else arguments.workers
    missing = missing_peers(arguments.peers)
    for name in arguments.subjects:
        if name in missing:
            print(f"skipped: {missing[name]}")
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        # An epoch of ours is what is timed; loaders need what they read ahead of the loop, too.
        write_images(data / "epoch", batch * steps)
        write_images(data / "ample" / "images", batch * (steps + 3 + 2 * max(workers, 8)))
        seconds = pack_images(data / "epoch", data / "cache", size, workers)
        print(f"packing {batch * steps:,} images at {size} px: {seconds:.1f} s")
        rows.append({"size": size, "packed_images": batch * steps, "packing_seconds": seconds})
        for method in arguments.methods:
            settings = {
                "data": data,
                "method": method,
                "size": size,
                "arch": arguments.arch,
                "batch-size": batch,
                "steps": steps,
                "queue": arguments.queue,
                "workers": workers,
                "device": device.type,
            }
            given = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
            lines: dict[str, list[dict[str, Any]]] = {}
            subjects = {}
            for name in arguments.subjects:
                script, more, methods = SUBJECTS[name]
                if method not in methods or name in missing:
                    continue
                python = arguments.peers if name in PEERS else Path(sys.executable)
                command = [str(python), str(HERE / "subjects" / f"{script}.py"), *given, *more]
                lines[name] = []
                subjects[name] = partial(measure, name, command, lines[name])
            print(f"\n{method} at {size} px: {', '.join(subjects)}")
            in_turn(subjects, arguments.rounds)
            for name in subjects:
                row = row_of(name, lines[name], lines.get("ours", []))
                rows.append({"size": size, "method": method, **row})
                show(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs="+", default=[64])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(DEFAULT))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="that are timed; default 4, not on a CPU 100")
    parser.add_argument("--batch-size", type=int, help="default 256 up to 96 pixels, 64 beyond")
    parser.add_argument("--queue", type=int, default=4096, help="MoCo's, of all subjects")
    parser.add_argument("--workers", type=int, help="of loaders; default: one a processor")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers/bin/python"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="benchmarks/results/pretraining-DEVICE-SIZE.json")
    arguments = parser.parse_args()
    if arguments.out and len(arguments.size) > 1:
        parser.error("--out names one file: give one --size")
    device = pick_device(arguments.device)
    for size in arguments.size:
        rows = measure_size(size, arguments, device)
        kind = "" if arguments.arch == "resnet18" else f"-{arguments.arch}"
        name = f"pretraining-{device.type}-{size}{kind}.json"
        write_figures(arguments.out or HERE / "results" / name, rows, device)


if __name__ == "__main__":
    main()
