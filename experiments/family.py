"""Every mixer on every base, with the demo's settings on the built-in sample.

    python experiments/family.py [--seeds 0 1] [--out DIR] [--bases simclr moco] [--mixers none mixco]
    python experiments/family.py --table

Each run pretrains a ResNet-18 at 32 px in bfloat16 for 24 epochs on 1,600 photographs. kNN and the
linear probe then learn from their labels and are tested on the 400 test images. No setting was chosen
for a pair. All have those that were chosen for SimCLR + MixCo on held-out training images
(experiments/choose_demo.txt), so this is no ranking. Equal epochs are not equal cost, so the table has
passes too.

The figures of each run are added to experiments/logs/family.json, and what is there is not done again;
several processes may work on it at once. At the end, or with --table, the table is printed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from from_weights import evaluated, mixco, results_of

from mixco.methods import METHODS, MIXERS, NO_MIXER, mixer_of, passes_of, run_name, works
from mixco.runtime.locks import one_at_a_time

LOG = Path(__file__).parent / "logs" / "family.json"
BASES = [name for name, base in METHODS.items() if not base.teacher]
OURS = [NO_MIXER, *(name for name in MIXERS if not name.startswith("unmix-"))]


def run(base: str, mixer: str, seed: int, out: Path) -> dict[str, Any]:
    """Pretrain and evaluate a pair with one seed; what is done stays."""
    folder = out / f"{run_name(base, mixer)}-s{seed}"
    if "pretrain" not in results_of(folder):
        pair = ("--method", base, "--mix", mixer, "--seed", seed, "--knn-every", 0)
        mixco("pretrain", "--recipe", "demo", *pair, "--out", folder, "--precision", "bfloat16")
    records = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rates = [json.loads(line)["images_per_second"] for line in records]
    results = evaluated(folder, ("--run", folder))
    figures = {kind: results[kind]["top1"] for kind in ("knn", "linear")}
    versions = json.loads((folder / "versions.json").read_text("utf-8"))
    where = {key: versions[key] for key in ("mixco", "torch", "hardware")}
    return {**figures, "images_per_second": statistics.median(rates), **where}


def logged() -> dict[str, dict[str, dict[str, Any]]]:
    """Pair -> seed -> the figures of the run."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    return json.loads(LOG.read_text("utf-8")) if LOG.exists() else found


def log(pair: str, seed: int, figures: dict[str, Any], lock: Path) -> None:
    with one_at_a_time(lock):
        found = logged()
        found.setdefault(pair, {})[str(seed)] = figures
        LOG.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")


def spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}" if len(values) > 1 else text


def table() -> None:
    print("| base | mixer | passes an image | kNN top-1, % | linear probe top-1, % | seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    found = logged()
    for base in BASES:
        for mixer in OURS:
            runs = [*found.get(run_name(base, mixer), {}).values()]
            if not runs:
                continue
            passes = passes_of(METHODS[base], mixer_of(mixer))
            knn, linear = (spread([each[kind] for each in runs]) for kind in ("knn", "linear"))
            print(f"| {base} | {mixer} | {passes:g} | {knn} | {linear} | {len(runs)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--bases", nargs="+", default=BASES, choices=BASES)
    parser.add_argument("--mixers", nargs="+", default=OURS, choices=OURS)
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--table", action="store_true", help="print the table and do nothing else")
    arguments = parser.parse_args()
    for seed in [] if arguments.table else arguments.seeds:
        for base in arguments.bases:
            for mixer in (name for name in arguments.mixers if works(base, name)):
                pair = run_name(base, mixer)
                if str(seed) not in logged().get(pair, {}):
                    figures = run(base, mixer, seed, arguments.out)
                    log(pair, seed, figures, arguments.out / ".log.lock")
    table()


if __name__ == "__main__":
    main()
