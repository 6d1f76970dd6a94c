"""Where the time of a step goes: views, passes of the encoder, losses, momentum update, optimiser.

    python benchmarks/step_parts.py [--size 64] [--methods moco simclr] [--rounds 2]

The built-in sample's images, packed; each method is a process of its own, `pretrain` as it is (see
few_steps.py), whose parts are timed from outside by hooks. On an accelerator each border waits for the
device, so the step is longer than without. `rest` is what the hooks do not see: logging, the progress
bar, keeping the queue.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from few_steps import few_steps, finish_device
from growth import config_of
from measuring import spread, write_figures
from torch import nn

import mixco.methods.moco as moco
import mixco.training.pretrain as loop
from mixco.runtime.device import pick_device
from mixco.settings.config import PretrainConfig

METHODS = ("moco", "simclr", "moco+mixco", "simclr+mixco")
UNTIMED = 2  # steps
PARTS = ("views", "queries", "keys", "momentum", "losses", "backward", "optimiser", "rest")


class Parts:
    """Seconds of each part, less those of the parts within it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.open: list[str] = []
        self.since = 0.0
        self.after_step: list[tuple[float, Counter[str]]] = []

    def _until_now(self) -> None:
        finish_device()
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def enter(self, part: str) -> None:
        self._until_now()
        self.open.append(part)

    def leave(self) -> None:
        self._until_now()
        self.open.pop()

    def end_step(self) -> None:
        self.leave()
        self.after_step.append((time.perf_counter(), self.seconds.copy()))

    def of_module(self, module: nn.Module, part: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.enter(part))
        module.register_forward_hook(lambda *_: self.leave())

    def of_function(self, place: Any, name: str, part: str) -> None:
        """Replace place.name by itself, timed."""
        function = getattr(place, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self.enter(part)
            try:
                return function(*arguments, **keywords)
            finally:
                self.leave()

        setattr(place, name, timed)


def run_one(settings: dict[str, Any]) -> dict[str, float]:
    """Milliseconds a step of each part; only once in a process, for it replaces parts of the package."""
    parts = Parts()
    build_method, build_optimizer = loop.build_method, loop.build_optimizer

    def built(config: PretrainConfig) -> Any:
        method = build_method(config)
        parts.of_module(method, "losses")
        parts.of_module(method.encoder, "queries")
        if isinstance(method, moco.MoCo):
            parts.of_module(method.key_encoder, "keys")
        return method

    def built_optimizer(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*arguments)
        optimizer.register_step_pre_hook(lambda *_: parts.enter("optimiser"))
        optimizer.register_step_post_hook(lambda *_: parts.end_step())
        return optimizer

    loop.build_method, loop.build_optimizer = built, built_optimizer
    parts.of_function(moco, "momentum_update", "momentum")
    parts.of_function(torch.Tensor, "backward", "backward")
    config = config_of(settings)
    figures = few_steps(lambda: loop.pretrain(config), untimed=UNTIMED, least=settings["steps"])
    (began, before), (ended, after) = parts.after_step[UNTIMED - 1], parts.after_step[-1]
    steps = len(parts.after_step) - UNTIMED
    each = {part: (after[part] - before[part]) / steps * 1000 for part in PARTS}
    whole = (ended - began) / steps * 1000
    each["views"] = figures["waiting_share"] * whole
    each["rest"] = whole - sum(each.values())
    return {"step": whole, **each}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch", type=int, help="default 256 up to 96 pixels, 64 beyond")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=4, help="that are timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="benchmarks/results/parts-DEVICE-SIZE.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(json.loads(arguments.one))), flush=True)
        return
    device = pick_device(arguments.device)
    found: dict[str, list[dict[str, float]]] = {method: [] for method in arguments.methods}
    for _ in range(arguments.rounds):
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as folder:
                settings = {
                    "data": "sample",
                    "workers": None,
                    "queue": 1024,
                    "method": method,
                    "size": arguments.size,
                    "arch": arguments.arch,
                    "batch": arguments.batch or (64 if arguments.size > 96 else 256),
                    "steps": arguments.steps,
                    "device": device.type,
                    "cache": f"{folder}/cache",
                    "out": f"{folder}/run",
                }
                done = subprocess.run(
                    [sys.executable, __file__, "--one", json.dumps(settings)],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
            found[method].append(json.loads(done.stdout.splitlines()[-1]))
            shown = {part: f"{ms:.0f}" for part, ms in found[method][-1].items()}
            print(f"{method}, ms: {shown}", flush=True)
    rows = [
        {
            "method": method,
            "size": arguments.size,
            "arch": arguments.arch,
            "milliseconds": {part: spread(r[part] for r in rounds) for part in ("step", *PARTS)},
        }
        for method, rounds in found.items()
    ]
    name = f"parts-{device.type}-{arguments.size}.json"
    write_figures(arguments.out or Path(__file__).parent / "results" / name, rows, device)


if __name__ == "__main__":
    main()
