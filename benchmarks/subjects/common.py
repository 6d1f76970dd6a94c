"""What the subjects share: their settings, the timing of a loop over a loader, and their one line.

A subject is a script that runs one way of pretraining in a process of its own and prints one line of
JSON. `python benchmarks/pretraining.py` starts them; each also runs alone, from the files that
`write_images` of that script has left.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

WARM_UP = 2  # steps that are not timed, of subjects whose loop is a loader's


def read_settings(**more: dict[str, Any]) -> argparse.Namespace:
    """Those of every subject, and `more`: names with add_argument's keywords."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", default="moco")  # moco, simclr, and either with +mixco
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    for name, keywords in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    settings = parser.parse_args()
    settings.method, _, mix = settings.method.partition("+")
    settings.mix = mix or "none"
    settings.device = torch.device(settings.device)
    return settings


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def timed(
    loader: Iterable[Any], step: Callable[[Any], None], settings: argparse.Namespace
) -> dict[str, float]:
    """Images a second and share of waiting for the loader, over the steps after the warm-up.

    The loader must have more batches than are taken: one that has read everything leaves the
    processors to the step, and its last batches would come at no cost.
    """
    batches = iter(loader)
    for _ in range(WARM_UP):
        step(next(batches))
    synchronize(settings.device)
    waited, began = 0.0, time.perf_counter()
    for _ in range(settings.steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    synchronize(settings.device)
    seconds = time.perf_counter() - began
    return {
        "images_per_second": settings.steps * settings.batch_size / seconds,
        "waiting_share": waited / seconds,
    }


def tell(
    figures: dict[str, float], settings: argparse.Namespace, dtype: str, *libraries: str
) -> None:
    """The subject's line: its figures, what it computed in, and the versions of its libraries."""
    line: dict[str, Any] = {**figures, "dtype": dtype}
    if settings.device.type == "cuda":
        line["cuda_peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    if libraries:
        line["libraries"] = {name: metadata.version(name) for name in ("torch", *libraries)}
    print(f"\n{json.dumps(line)}", flush=True)  # a bar may stand on the line before
