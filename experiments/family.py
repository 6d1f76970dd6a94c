"""Every mixer on every base, with the demo's settings on the built-in sample.

    python experiments/family.py [--seeds 0 1] [--out DIR] [--bases simclr moco] [--mixers none mixco]

Each run pretrains a ResNet-18 at 32 px for 24 epochs on 1,600 photographs. kNN and the linear probe then
learn from their labels and are tested on the 400 test images. No setting was chosen for a pair. All have
those that were chosen for SimCLR + MixCo on held-out training images (experiments/choose_demo.txt), so
this is no ranking. Equal epochs are not equal cost, so the table has passes and rates too. Started
again, the script does the missing runs. DIR/family.json has every run, and the table is printed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from from_weights import evaluated, mixco, results_of

from mixco.methods import METHODS, MIXERS, NO_MIXER, mixer_of, passes_of, run_name

BASES = [name for name, base in METHODS.items() if not base.teacher]
OURS = [NO_MIXER, *(name for name in MIXERS if not name.startswith("unmix-"))]


def run(base: str, mixer: str, seed: int, out: Path) -> dict[str, Any]:
    """Pretrain and evaluate a pair with one seed; what is done stays."""
    folder = out / f"{run_name(base, mixer)}-s{seed}"
    if "pretrain" not in results_of(folder):
        pair = ("--method", base, "--mix", mixer, "--seed", seed, "--knn-every", 0)
        mixco("pretrain", "--recipe", "demo", *pair, "--out", folder, "--precision", "float32")
    rates = [
        json.loads(line)["images_per_second"]
        for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    return {**evaluated(folder, ("--run", folder)), "images_per_second": statistics.median(rates)}


def spread(values: list[float], digits: int = 1) -> str:
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--bases", nargs="+", default=BASES, choices=BASES)
    parser.add_argument("--mixers", nargs="+", default=OURS, choices=[NO_MIXER, *MIXERS])
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pairs = [(base, mixer) for base in arguments.bases for mixer in arguments.mixers]
    found: dict[str, list[dict[str, Any]]] = {run_name(*pair): [] for pair in pairs}
    for seed in arguments.seeds:
        for pair in pairs:
            found[run_name(*pair)].append(run(*pair, seed, arguments.out))
            text = json.dumps(found, indent=1) + "\n"
            (arguments.out / "family.json").write_text(text, "utf-8")
    print("| base | mixer | passes an image | images/s | kNN top-1, % | linear probe top-1, % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for base, mixer in pairs:
        runs = found[run_name(base, mixer)]
        passes = passes_of(METHODS[base], mixer_of(mixer))
        rates = spread([run["images_per_second"] for run in runs], 0)
        knn, linear = (spread([run[kind]["top1"] for run in runs]) for kind in ("knn", "linear"))
        print(f"| {base} | {mixer} | {passes:g} | {rates} | {knn} | {linear} |")


if __name__ == "__main__":
    main()
