"""What benchmarks share: subjects measured in turn, child processes, memory, the file of figures.

Subjects run one after the other, round by round. A ratio is taken within a round, so that other load on
the machine, and its temperature, affect both sides alike.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from mixco.data.datasets import list_images
from mixco.data.decode import decode
from mixco.data.loading import open_images
from mixco.runtime.device import describe, processor, processors, synchronise
from mixco.runtime.run_folder import versions
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import with_settings

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METHODS = ("moco", "simclr", "moco+mixco", "simclr+mixco")

Figures = dict[str, Any]
"""What one measurement gives, such as images_per_second; or {"failed": why}."""


def in_turn(subjects: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """The figures of each subject, one entry a round. What has failed is not tried again."""
    found: dict[str, list[Figures]] = {name: [] for name in subjects}
    for number in range(rounds):
        for name, measure in subjects.items():
            if found[name] and "failed" in found[name][-1]:
                continue
            try:
                found[name].append(measure())
            except ChildFailed as error:
                found[name] = [{"failed": str(error)}]
            numbers = {k: v for k, v in found[name][-1].items() if not isinstance(v, dict)}
            print(f"round {number + 1}/{rounds}  {name}: {rounded(numbers)}", flush=True)
    return found


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def spreads(rounds: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """The spread of each number over the rounds."""
    numbers = [key for key, value in rounds[0].items() if isinstance(value, (int, float))]
    return {key: spread(figures[key] for figures in rounds) for key in numbers}


def ratios(
    ours: Sequence[Figures], theirs: Sequence[Figures], key: str = "images_per_second"
) -> dict[str, float]:
    """The spread of ours over theirs, taken within each round."""
    return spread(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))


def rate(step: Callable[[], object], images: int, steps: int, device: torch.device) -> Figures:
    """Call `step` `steps` times and measure images a second; a step takes `images` images."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise(device)
    return {"images_per_second": steps * images / (time.perf_counter() - began)}


class ChildFailed(Exception):
    """A child process ended without figures; the message is the end of what it printed."""


def child(
    function: str, settings: Figures, *, python: str | Path = sys.executable, look: float = 0.5
) -> Figures:
    """Call "module:function" of benchmarks/ with some settings in a process of its own.

    look: seconds between two looks at its memory. Returns the figures that the function returns, with
    peak_memory_mib and file_mib, see `memory_of_tree`. Raises ChildFailed.
    """
    command = [str(python), __file__, function, json.dumps(settings, default=str)]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak: Figures = {}
        try:
            while process.poll() is None:
                peak = max(
                    peak, memory_of_tree(process.pid), key=lambda m: m.get("peak_memory_mib", 0)
                )
                time.sleep(look)
        finally:
            process.kill()
        output.seek(0)
        lines = output.read().strip().splitlines()
    found = [line for line in lines if line.startswith('{"')]
    if process.returncode or not found:
        raise ChildFailed("\n".join(lines[-5:]) or f"exit code {process.returncode}")
    return {**json.loads(found[-1]), **peak}


def memory_of_tree(root: int) -> dict[str, float]:
    """MiB of a process and all below it: the peak so far, and file pages now. Empty without Linux.

    peak_memory_mib adds the peaks of the processes. Pages that several of them share, as after a fork,
    count in each by its part. file_mib are pages of files, such as packed images, that the system may
    drop; they are part of the peak.
    """
    pids, peak, file = [root], 0, 0
    for pid in pids:  # grows while it is walked
        try:
            process = Path("/proc", str(pid))
            status, rollup = (kib_lines(process / name) for name in ("status", "smaps_rollup"))
            peak += status["VmHWM"] - (rollup["Rss"] - rollup["Pss"])
            file += rollup.get("Pss_File", 0)
            for children in process.glob("task/*/children"):
                pids += [int(one) for one in children.read_text().split()]
        except (OSError, KeyError):
            continue  # it has ended
    return {"peak_memory_mib": peak / 1024, "file_mib": file / 1024} if peak else {}


def kib_lines(path: Path) -> dict[str, int]:
    """The lines "Name: 12 kB" of a file below /proc."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0][:-1]: int(line[1]) for line in lines if line[-1:] == ["kB"]}


def arguments_of(
    description: str | None, *, rounds: int = 3, **options: Mapping[str, Any]
) -> argparse.Namespace:
    """Parse the command line: --rounds, --device, --out, and more options with argparse's keywords."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--out", type=Path, help="the file of figures; default: in results/")
    for name, keywords in options.items():
        positional = "nargs" not in keywords and "choices" in keywords and "default" not in keywords
        parser.add_argument(name if positional else f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()


def usual_batch(size: int) -> int:
    """256 images, or 64 beyond 96 pixels."""
    return 64 if size > 96 else 256


def config_of(method: str, **settings: Any) -> PretrainConfig:
    """A run by flat names. method: such as "moco+mixco"; None leaves a setting unset."""
    base, _, mix = method.partition("+")
    if base != "moco":
        settings = {k: v for k, v in settings.items() if k not in ("queue", "bn_splits")}
    given = {"method": base, "mix": mix or "none", "knn_every": 0, **settings}
    given = {key: value for key, value in given.items() if value is not None}
    return with_settings(PretrainConfig(), given, "benchmark")


def write_sample(folder: Path, count: int) -> Path:
    """Write the built-in sample's JPEG files, over and over until there are `count`."""
    source = list_images("sample", None, "train")
    folder.mkdir(parents=True)
    for number in range(count):
        data = source.read(number % len(source.files))
        (folder / f"{number:06}.jpg").write_bytes(data)
    return folder


def write_mosaics(folder: Path, count: int, side: int) -> Path:
    """Write JPEG files of `side` pixels, mosaics of the sample, about as detailed as photographs."""
    import numpy as np
    from PIL import Image

    source = list_images("sample", None, "train")
    tiles = -(-side // 64)
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        chosen = generator.integers(len(source.files), size=(tiles, tiles))
        rows = [np.hstack([decode(source.read(int(i))) for i in row]) for row in chosen]
        buffer = BytesIO()
        Image.fromarray(np.vstack(rows)[:side, :side]).save(buffer, "JPEG", quality=90)
        (folder / f"{number:05}.jpg").write_bytes(buffer.getvalue())
    return folder


def packed(folder: Path, size: int, cache: Path, workers: int | None = None) -> float:
    """Pack a folder of images into the cache, where a run finds them. Returns the seconds."""
    began = time.perf_counter()
    source = list_images(str(folder), None, "pretrain", cache)
    workers = processors() if workers is None else workers
    open_images(
        source, size=size, cache=cache, loading="packed", workers=workers, memory=sys.maxsize
    )
    return time.perf_counter() - began


def write_figures(path: Path, rows: Sequence[Figures], device: torch.device) -> None:
    """Write the rows with the command, the commit, the machine and the versions that made them."""
    figures = {**origin(device), "rows": rounded(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(f"written: {path}")


def origin(device: torch.device) -> Figures:
    """Where figures come from: the command, the commit, the machine and the versions."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(describe(device), processor()),
    }


def commit() -> str:
    """The commit of the checkout, with a plus where files differ from it; "unknown" outside of one.

    Files that benchmarks write themselves do not count.
    """
    written = (":(top,exclude)benchmarks/results", ":(top,exclude)docs/images")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *written)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed not in ("", "unknown") else "")


def machine() -> str:
    """The processor, and how much memory there is."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        memory = kib_lines(Path("/proc/meminfo"))["MemTotal"] / 2**20
        return f"{len(models)} x {models[0]}, {memory:.0f} GiB"
    except (OSError, LookupError):  # no Linux
        return platform.processor() or platform.machine()


def rounded(value: Any) -> Any:
    """Round floats to four significant digits, anywhere in lists and dicts."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":  # a child process, see `child`
    print(f"\n{json.dumps(resolve_name(sys.argv[1])(**json.loads(sys.argv[2])))}", flush=True)
