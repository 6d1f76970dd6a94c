"""What a step with a large batch takes, whole and in micro-batches: peak memory and time.

    python benchmarks/gradient_caching.py [--points 256x1 1024x1 1024x4 4096x16] [--rounds 2]

A point is a batch and the number of its micro-batches (`mixco pretrain --batch-size B --micro-batches
N`). Each is a process of its own: SimCLR, ResNet-18 at 32 px, views of the sample's photographs (drawn
again where the batch is larger than the sample), autocast as usual, AdamW; one step not timed, and
one that is. Memory is the process's peak without what it had before the first step, in MiB; on CUDA the
device's peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from measuring import in_turn, spread, write_figures

from mixco.data.datasets.sources import list_images
from mixco.data.packed import take_rows
from mixco.data.packing import pack
from mixco.runtime.device import Compute, pick_device, pick_dtype
from mixco.runtime.seeding import generator_for
from mixco.settings.config import DataConfig, MethodConfig, OptimisationConfig, PretrainConfig
from mixco.settings.resolve import resolve
from mixco.training.optimisers import build_optimizer
from mixco.training.pretrain import build_method
from mixco.views import augment as views


def run_point(batch: int, micro_batches: int, mix: str, device: torch.device, cache: Path) -> None:
    """In a process of its own: prints the figures as its last line."""
    config = resolve(
        PretrainConfig(
            data=DataConfig(size=32),
            method=MethodConfig(method="simclr", mix=mix),  # type: ignore[arg-type]
            optimisation=OptimisationConfig(
                batch_size=batch, micro_batches=micro_batches, epochs=1
            ),
        ),
        images=batch,
    )
    compute = Compute(device, pick_dtype(device, "auto"))
    source = list_images("sample", None, "pretrain")
    images = pack(source, size=32, cache=cache)
    chosen = views.AUGMENTATIONS["simclr"](views.Input(32, source.mean, source.std))
    method = build_method(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(method, "adamw", 0.05)
    before = peak(device)
    for step in range(2):
        began = time.perf_counter()
        draws = generator_for(0, "views", step=step)
        index = torch.randint(len(images), (batch,), generator=draws)
        some = take_rows(images.images, index, device)
        drawn = [views.sample_view(images.extents[index], chosen, draws) for _ in range(2)]
        first, second = (views.apply_view(some, p, chosen, compute.dtype) for p in drawn)
        with compute.autocast():
            losses = method(first, second, generator_for(0, "method", step=step))
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = losses["loss"].item()  # waits for the device
        seconds = time.perf_counter() - began
    print(json.dumps({"memory_mib": peak(device) - before, "seconds": seconds, "loss": loss}))


def peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    points = ["256x1", "1024x1", "1024x4", "4096x16"]
    parser.add_argument("--points", nargs="+", default=points, help="BATCHxPIECES")
    parser.add_argument("--mix", choices=["none", "mixco"], default="none")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/mixco").expanduser())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if arguments.point:
        batch, micro_batches = map(int, arguments.point.split("x"))
        run_point(batch, micro_batches, arguments.mix, device, arguments.cache)
        return

    memory: dict[str, list[float]] = {point: [] for point in arguments.points}

    def measure(point: str) -> float:
        options = ["--mix", arguments.mix, "--device", device.type, "--cache", arguments.cache]
        command = [sys.executable, __file__, "--point", point, *map(str, options)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        memory[point].append(figures["memory_mib"])
        return float(figures["seconds"])

    seconds = in_turn(
        {point: lambda point=point: measure(point) for point in arguments.points},  # type: ignore[misc]
        arguments.rounds,
    )
    rows: list[dict[str, object]] = []
    for point in arguments.points:
        batch, micro_batches = map(int, point.split("x"))
        rows.append(
            {
                "batch": batch,
                "pieces": micro_batches,
                "mix": arguments.mix,
                "seconds": spread(seconds[point]),
                "images_per_second": spread(batch / s for s in seconds[point]),
                "memory_mib": spread(memory[point]),
            }
        )
    out = arguments.out or Path(f"benchmarks/results/gradient-caching-{device.type}.json")
    write_figures(out, rows, device)


if __name__ == "__main__":
    main()
