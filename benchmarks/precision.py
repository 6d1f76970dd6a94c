"""What it brings to choose number format and memory format by measurement (runtime/precision.py).

    python benchmarks/precision.py [--arch resnet18 vit_tiny_patch16_224] [--size 64] [--device cpu]

Images a second of training passes, forward and backward, of an encoder on random images: in the usual
formats, which were the rule before (bfloat16 where the hardware computes in it, channels_last), and in
those that are chosen now. The batch is that of a run, --batch-size, not that of the measurement. Before
and after are timed in turn, and the ratio is taken within a round. `seconds_to_choose` is what the
measurement costs, once a machine. Where the choice stays with the rule, the ratio shows the noise.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import (
    RESULTS,
    Figures,
    arguments_of,
    in_turn,
    rate,
    ratios,
    spreads,
    write_figures,
)
from torch import nn

from mixco.models.encoder import build_backbone
from mixco.runtime.device import keep_freed_memory, pick_device
from mixco.runtime.precision import Formats, Workload, fastest, formats

ARCHS = [
    "resnet18",
    "mobilenetv3_small_100",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "regnety_002",
]


def passes(backbone: nn.Module, which: Formats, a: Any, device: torch.device) -> Figures:
    """Images a second of --steps training passes in these formats, after one that is not timed."""
    compute = which.compute(device)
    backbone.to(device, memory_format=compute.memory_format)
    images = torch.randn(a.batch_size, 3, a.size, a.size, device=device)
    images = images.to(compute.dtype).contiguous(memory_format=compute.memory_format)

    def step() -> None:
        with compute.autocast():
            outputs = backbone(images)
        outputs.float().square().mean().backward()
        backbone.zero_grad(set_to_none=True)

    step()
    return rate(step, a.batch_size, a.steps, device)


def of_arch(arch: str, a: Any, device: torch.device) -> Figures:
    backbone = build_backbone(arch, a.size).train()
    workload = Workload(arch, "auto", a.size, 3, training=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:  # measured now, whatever a run has found before
        chosen, why = fastest(backbone, workload, device, Path(cache))
    seconds = time.perf_counter() - began
    print(f"{arch}: {' '.join(chosen)}: {why}")
    subjects = {"before": formats(device)[0], "after": chosen}
    found = in_turn(
        {
            n: lambda which=which: passes(backbone, which, a, device)
            for n, which in subjects.items()
        },
        a.rounds,
    )
    return {
        "arch": arch,
        "size": a.size,
        "batch_size": a.batch_size,
        **{
            name: {"formats": " ".join(subjects[name]), **spreads(found[name])} for name in subjects
        },
        "after_over_before": ratios(found["after"], found["before"]),
        "seconds_to_choose": seconds,
        "choice": why,
    }


def main() -> None:
    integer = {"type": int}
    a = arguments_of(
        __doc__,
        arch={"nargs": "+", "default": ARCHS},
        size={**integer, "default": 64},
        batch_size={**integer, "default": 128},
        steps={**integer, "default": 3, "help": "timed passes of each round"},
    )
    device = pick_device(a.device)
    keep_freed_memory(device)  # as every command does
    rows = [of_arch(arch, a, device) for arch in a.arch]
    write_figures(a.out or RESULTS / f"precision-{device.type}.json", rows, device)


if __name__ == "__main__":
    main()
