"""Can MixCo cost less? Fewer pairs, tested on held-out training images.

    mixco download cifar10 --data-path DATA
    python experiments/mixco_savings.py --data-path DATA [--method simclr] [--epochs 9] [--seeds 0 1 2]

Like experiments/cifar10_10k.py, but without the test split. Pretraining uses the first 1,000 training
images of each class, without labels. kNN and the linear probe then use their labels, and are tested on
the next 1,000 training images of each class. Variants, each a mixer or none, on MoCo or SimCLR:

    none        the base method
    mixco       MixCo unchanged
    half-pairs  mixes only the first half of the pairs, so half as many mixed images

RESULTS.md has a fourth variant, mixed images at three quarters of the side, encoded on their own. It is
not here any more: all queries pass the encoder together, so a mixer cannot change their size.

Started again, the script continues with the missing runs. It prints a table with mean and spread over
the seeds.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from cifar10_10k import Parts, lay_out

import mixco
from mixco.methods import MIXERS, MixerEntry
from mixco.mixing import Mixer, Pairs, blend, halves
from mixco.runtime.device import describe, pick_device
from mixco.runtime.run_folder import versions

PARTS: Parts = {"train": ("train", range(1000)), "test": ("train", range(1000, 2000))}


def half_of_the_pairs(batch: int, generator: torch.Generator) -> Pairs:
    """The first half of MixCo's pairs, at least one."""
    pairs = halves(batch, generator)
    return pairs.rows(torch.arange((len(pairs.lam) + 1) // 2))


half_pairs = Mixer(half_of_the_pairs, blend, per_image=0.25)

OURS = {
    "half-pairs": MixerEntry("MixCo of half of the pairs", "2010.06300", f"{__name__}:half_pairs")
}
VARIANTS = ("none", "mixco", *OURS)
SETTINGS = {"size": 32, "stem": "standard", "batch_size": 128, "knn_every": 0}


def pretrain_and_evaluate(
    variant: str, photos: Path, out: Path, method: str, seed: int, epochs: int
) -> None:
    """In a process of its own, which knows our mixers."""
    MIXERS.update(OURS)
    mixco.pretrain(
        data=photos, out=out, method=method, mix=variant, seed=seed, epochs=epochs, **SETTINGS
    )
    mixco.evaluate_knn(run=out)
    mixco.evaluate_linear(run=out)


def run(variant: str, photos: Path, out: Path, *rest: object) -> dict[str, float]:
    """Pretrain and evaluate, unless it is done. Return the figures of the run."""
    results = out / "results.json"
    done = json.loads(results.read_text("utf-8")) if results.exists() else {}
    if not {"pretrain", "knn", "linear"} <= done.keys():
        shutil.rmtree(out, ignore_errors=True)
        given = [str(value) for value in (variant, photos, out, *rest)]
        subprocess.run([sys.executable, __file__, "--one", *given], check=True)
        done = json.loads(results.read_text("utf-8"))
    lines = (out / "metrics.jsonl").read_text("utf-8").splitlines()
    return {
        "knn": done["knn"]["top1"],
        "linear": done["linear"]["top1"],
        "images_per_second": statistics.median(json.loads(x)["images_per_second"] for x in lines),
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        variant, photos, out, method, seed, epochs = sys.argv[2:]
        pretrain_and_evaluate(variant, Path(photos), Path(out), method, int(seed), int(epochs))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mixco-savings"))
    parser.add_argument("--method", choices=["moco", "simclr"], default="simclr")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--log", type=Path, help="the figures of each run, as JSON")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    photos = lay_out(arguments.data_path, arguments.out / "cifar10-held-out", PARTS)
    method, epochs = arguments.method, arguments.epochs
    found = {
        (variant, seed): run(
            *(variant, photos, arguments.out / f"{method}-{variant}-{epochs}-s{seed}"),
            *(method, seed, epochs),
        )
        for seed in arguments.seeds
        for variant in VARIANTS
    }
    print("| variant | kNN top-1, % | linear probe top-1, % | images/s |")
    print("| --- | --- | --- | --- |")
    for variant in VARIANTS:
        cells = []
        for key, form in (("knn", ".1f"), ("linear", ".1f"), ("images_per_second", ".0f")):
            values = [found[variant, seed][key] for seed in arguments.seeds]
            spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):{form}}{spread}")
        print(f"| {variant} | {' | '.join(cells)} |")
    if arguments.log:
        rows = [{"variant": v, "seed": s, **row} for (v, s), row in found.items()]
        used = versions(describe(pick_device("auto")))
        log = {"method": method, "epochs": epochs, "versions": used, "runs": rows}
        arguments.log.write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
