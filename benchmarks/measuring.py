"""What the benchmarks share: measuring in turn, ratios of neighbours in time, and the file of figures.

Every benchmark measures its subjects one after the other, round by round. A ratio is taken within a
round, so that what else the machine does, or how warm it is, meets both sides alike.
"""

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from mixco.runtime.device import describe
from mixco.runtime.run_folder import versions

Rates = dict[str, list[float]]


def in_turn(subjects: dict[str, Callable[[], float]], rounds: int) -> Rates:
    """Each subject's figure of each round; in every round all subjects run, in order."""
    figures: Rates = {name: [] for name in subjects}
    for number in range(rounds):
        for name, measure in subjects.items():
            figures[name].append(measure())
            print(f"round {number + 1}/{rounds}  {name}: {figures[name][-1]:,.1f}", flush=True)
    return figures


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1]}


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Ours over theirs, round by round: median, smallest and largest."""
    return spread(a / b for a, b in zip(ours, theirs, strict=True))


def write_figures(path: Path, rows: list[dict[str, object]], device: torch.device) -> None:
    """The rows with the command, the commit, the versions and the machine they were measured on."""
    command = ["python", str(Path(sys.argv[0])), *sys.argv[1:]]
    figures = {
        "command": " ".join(command),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(describe(device)),
        "rows": _rounded(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    print(f"written: {path}")


def commit() -> str:
    """Of the checkout, with a plus where files differ from it, but for what benchmarks write themselves.

    "unknown" outside of one.
    """
    here = Path(__file__).parent
    written = (":(top,exclude)benchmarks/results", ":(top,exclude)docs/images")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top)", *written)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed not in ("", "unknown") else "")


def machine() -> str:
    """The processor in words, and how much memory there is."""
    name, memory = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = f"{len(models)} x {models[0]}" if models else name
        kib = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f", {kib / 2**20:.0f} GiB"
    except (OSError, ValueError):
        pass  # no Linux
    return name + memory


def _rounded(value: object) -> object:
    """Floats with four significant digits, anywhere in lists and dicts."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
