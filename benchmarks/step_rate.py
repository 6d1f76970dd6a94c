"""How close pretraining comes to bare passes of its encoder: ratios, in one run, in turn.

    python benchmarks/step_rate.py [--size 64] [--arch resnet18] [--rounds 5] [--out FILE.json]

Ours is the real thing: `pretrain` on the built-in sample, its own images/s of the second epoch (the
first warms up), with views, losses, optimiser, momentum update and logging. Bare is forward and
backward of the same encoder (for MoCo also the forward of the key encoder) over resident random
tensors, with the same dtype, memory format and number of image passes, but with plain batch norm and
without an optimiser. The two run in turn; a ratio is of neighbours in time.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mixco.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
    resolve,
)
from mixco.hardware import describe, pick_device, pick_dtype
from mixco.results import read_metrics, versions
from mixco.training.pretrain import build_method, pretrain

IMAGES = 1600  # of the sample's train split
EPOCHS = 2


def config_of(method: str, mix: str, arguments: argparse.Namespace, out: Path) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(size=arguments.size),
        model=ModelConfig(arch=arguments.arch),
        method=MethodConfig(method=method, mix=mix),
        optimisation=OptimisationConfig(epochs=EPOCHS, batch_size=arguments.batch_size),
        run=RunConfig(out=out, knn_every=0, device=arguments.device),
    )


def ours(config: PretrainConfig) -> float:
    """Images a second of the last epoch."""
    return float(read_metrics(pretrain(config))[-1]["images_per_second"])


def bare(config: PretrainConfig, steps: int) -> float:
    """Images of the batch a second, with the image passes of the method and nothing else."""
    config = resolve(config, IMAGES)
    device = pick_device(config.run.device)
    dtype = pick_dtype(device, config.run.precision)
    batch, size = config.optimisation.batch_size, config.data.size
    mixed = config.method.mix != "none"
    # Plain batch norm: what splitting it costs is ours to answer for.
    plain = dataclasses.replace(config, method=dataclasses.replace(config.method, bn_splits=1))
    method = build_method(plain).to(device, memory_format=torch.channels_last).train()
    moco = config.method.method == "moco"
    passes = (1 if moco else 2) * (3 if mixed else 2) * batch // 2
    random = torch.randn(passes, 3, size, size, device=device)
    random = random.to(dtype, memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            if moco:
                with torch.no_grad():
                    method.key_encoder(random[:batch])
            outputs = method.encoder(random)
        outputs.float().square().mean().backward()
        method.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("moco", "simclr"):
            for mix in ("none", "mixco"):
                pairs = []
                for number in range(arguments.rounds):
                    config = config_of(
                        method, mix, arguments, Path(folder) / f"{method}-{mix}-{number}"
                    )
                    steps = IMAGES // arguments.batch_size
                    pairs.append((ours(config), bare(config, steps)))
                ratios = [a / b for a, b in pairs]
                row = {
                    "method": method,
                    "mix": mix,
                    "ours_images_per_second": statistics.median(a for a, _ in pairs),
                    "bare_images_per_second": statistics.median(b for _, b in pairs),
                    "ratio_median": statistics.median(ratios),
                    "ratio_min": min(ratios),
                    "ratio_max": max(ratios),
                }
                rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
                print(rows[-1], flush=True)
    if arguments.out:
        device = pick_device(arguments.device)
        figures = {
            "command": f"python benchmarks/step_rate.py --size {arguments.size} --arch "
            f"{arguments.arch} --batch-size {arguments.batch_size} --rounds {arguments.rounds}",
            "versions": versions(describe(device)),
            "dtype": str(pick_dtype(device, "auto")),
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
