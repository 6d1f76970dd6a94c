"""Every mixer on every base, on the built-in sample; the best three and the plain bases on CIFAR-10.

    python experiments/family.py [--seeds 0 1] [--pairs simclr moco+unmix ...] [--out DIR]
    python experiments/family.py --data cifar10 --data-path DATA --seeds 0 1 2
    python experiments/family.py [--data cifar10] --table

sample: the settings of sample.toml, so a ResNet-18 at 32 px, 24 epochs on 1,600 photographs. kNN and
the linear probe then learn from their labels and are tested on the 400 test images. No setting was
chosen for a pair. All have those that were chosen for SimCLR + MixCo on held-out training images
(experiments/choose_demo.txt), so this is no ranking. Only SimSiam has a learning rate of its own, its
default. Equal epochs are not equal cost, so the table has passes too.

cifar10: the settings of cifar10_10k.py, so 9 epochs on the first 1,000 training images of each class,
tested on the whole test split. Nothing was tuned on CIFAR-10.

All runs are in bfloat16. Their figures are added to experiments/logs/family_DATA.json, and what is there
is not done again; several processes may work on it at once. At the end, or with --table, tables are
printed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import cifar10_10k
from from_weights import evaluated, mixco, results_of

from mixco.methods import METHODS, MIXERS, NO_MIXER, mixer_of, passes_of, run_name, works
from mixco.runtime.locks import one_at_a_time

HERE = Path(__file__).parent
LOGS = HERE / "logs"
RATES = HERE.parent / "benchmarks" / "results" / "family-cpu.json"
BASES = [name for name, base in METHODS.items() if not base.teacher]
OURS = [NO_MIXER, *(name for name in MIXERS if not name.startswith("unmix-"))]
PAIRS = {run_name(base, mix): (base, mix) for base in BASES for mix in OURS if works(base, mix)}
BEST = ["simclr+cutmix", "simclr+unmix", "simclr+imix"]  # on the sample, by kNN and probe together
CHOSEN = {"sample": list(PAIRS), "cifar10": [*BASES, *BEST]}
SETTINGS = {
    "sample": ("--recipe", HERE / "sample.toml"),
    "cifar10": (*cifar10_10k.SETTINGS, "--epochs", 9),
}
# SimSiam's default for a batch of 128: at 1e-3 it falls below random weights.
OWN_RATE = {("sample", "simsiam"): ("--lr", 2.12e-4)}

Log = dict[str, dict[str, dict[str, Any]]]  # pair -> seed -> the figures of the run


def run(
    pair: str, seed: int, settings: tuple[object, ...], out: Path, precision: str = "bfloat16"
) -> dict[str, Any]:
    """Pretrain and evaluate a pair with one seed; what is done stays."""
    folder = out / f"{pair}-s{seed}"
    base, mixer = PAIRS[pair]
    if "pretrain" not in results_of(folder):
        chosen = ("--method", base, "--mix", mixer, "--seed", seed, "--knn-every", 0)
        mixco("pretrain", *settings, *chosen, "--out", folder, "--precision", precision)
    records = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rates = [json.loads(line)["images_per_second"] for line in records]
    results = evaluated(folder, ("--run", folder))
    figures = {kind: results[kind]["top1"] for kind in ("knn", "linear")}
    versions = json.loads((folder / "versions.json").read_text("utf-8"))
    where = {key: versions[key] for key in ("mixco", "torch", "hardware", "processor")}
    return {**figures, "images_per_second": statistics.median(rates), **where}


def logged(path: Path) -> Log:
    found: Log = {}
    return json.loads(path.read_text("utf-8")) if path.exists() else found


def log(path: Path, pair: str, seed: int, figures: dict[str, Any], lock: Path) -> None:
    with one_at_a_time(lock):
        found = logged(path)
        found.setdefault(pair, {})[str(seed)] = figures
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")


def spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}" if len(values) > 1 else text


def images_per_second() -> dict[str, str]:
    """Pair -> median and range of `python benchmarks/steps.py family`; nothing where it was not run."""
    rows = json.loads(RATES.read_text("utf-8"))["rows"] if RATES.exists() else []
    rates = {row["pair"]: row["images_per_second"] for row in rows}
    return {
        pair: f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})"
        for pair, rate in rates.items()
    }


def table(found: Log, rates: dict[str, str]) -> None:
    """A row for each pair that ran."""
    head = ["base", "mixer", "passes an image", *(["images/s"] if rates else [])]
    head += ["kNN top-1, %", "linear probe top-1, %", "seeds"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for pair, (base, mixer) in PAIRS.items():
        runs = [*found.get(pair, {}).values()]
        if runs:
            passes = passes_of(METHODS[base], mixer_of(mixer))
            cells = [base, mixer, f"{passes:g}", *([rates[pair]] if rates else [])]
            cells += [spread([each[kind] for each in runs]) for kind in ("knn", "linear")]
            print(f"| {' | '.join(cells)} | {len(runs)} |")


def grid(found: Log) -> None:
    """kNN / linear probe, the means over the seeds: a row for each mixer, a column for each base."""
    print(f"\n| `--mix` | {' | '.join(BASES)} |\n|{' --- |' * (1 + len(BASES))}")
    for mixer in OURS:
        cells = []
        for base in BASES:
            runs = [*found.get(run_name(base, mixer), {}).values()]
            means = [
                statistics.mean(each[kind] for each in runs) for kind in ("knn", "linear") if runs
            ]
            cells.append(" / ".join(f"{mean:.1f}" for mean in means) or "–")
        print(f"| `{mixer}` | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample", choices=list(SETTINGS))
    parser.add_argument("--data-path", type=Path, help="where cifar10 lies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), help="default: as said above")
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--table", action="store_true", help="print the table and do nothing else")
    arguments = parser.parse_args()
    path = LOGS / f"family_{arguments.data}.json"
    out = arguments.out / arguments.data
    settings: tuple[object, ...] = SETTINGS[arguments.data]
    if arguments.data == "cifar10" and not arguments.table:
        images = cifar10_10k.lay_out(arguments.data_path, out / "images", cifar10_10k.PARTS)
        settings = (*settings, "--data", images)
    for seed in [] if arguments.table else arguments.seeds:
        for pair in arguments.pairs or CHOSEN[arguments.data]:
            own_rate = OWN_RATE.get((arguments.data, PAIRS[pair][0]), ())
            if str(seed) not in logged(path).get(pair, {}):
                figures = run(pair, seed, (*settings, *own_rate), out)
                log(path, pair, seed, figures, out / ".log.lock")
    table(logged(path), images_per_second() if arguments.data == "sample" else {})
    grid(logged(path))


if __name__ == "__main__":
    main()
