"""Is MixCo better than its base trained longer? On the sample, on CIFAR-10, and from ImageNet weights.

    python experiments/equal_time.py --data sample [--seeds 0 1 2] [--out DIR]

    mixco download cifar10 --data-path DATA
    python experiments/family.py --data cifar10 --data-path DATA --seeds 0 1 2 \\
        --pairs moco moco+mixco simclr simclr+mixco
    python experiments/equal_time.py --data cifar10 --data-path DATA [--bases simclr moco]

    python experiments/from_weights.py --data cifar10 --data-path DATA
    python experiments/equal_time.py --data from_weights --data-path DATA [--bases simclr moco]

The base alone gets the passes that MixCo has. With a pass of the encoder and its gradient counted as
three, SimCLR + MixCo has 1.5 times those of SimCLR, and MoCo + MixCo 1.375 times those of MoCo. So for
the 24 epochs of the demo SimCLR gets 36; for the 9 of family.py on CIFAR-10 SimCLR 14, and MoCo 13; for
the 10 of from_weights.py on CIFAR-10 SimCLR 15, and MoCo 14. All else is as there. Figures are added to
experiments/logs/equal_time_DATA.json, and what is there is not done again. docs/does-mixing-pay.md has
the differences.
"""

import argparse
from pathlib import Path

import cifar10_10k
import family
import from_weights

EPOCHS = {
    "sample": {"simclr": 36},
    "cifar10": {"simclr": 14, "moco": 13},
    "from_weights": {"simclr": 15, "moco": 14},
}


def settings_of(data: str, data_path: Path, out: Path) -> tuple[tuple[object, ...], str]:
    """The settings of the runs with MixCo but for the epochs, and their precision."""
    if data == "sample":
        return ("--recipe", "demo"), "bfloat16"
    if data == "cifar10":
        images = cifar10_10k.lay_out(data_path, out / "images", cifar10_10k.PARTS)
        return (*cifar10_10k.SETTINGS, "--data", images), "bfloat16"
    images = cifar10_10k.lay_out(data_path, out / "images", from_weights.parts(per_class=200))
    return (*from_weights.BEGINNING, "--data", images), "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, choices=list(EPOCHS))
    parser.add_argument("--data-path", type=Path, help="where cifar10 lies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bases", nargs="+", choices=["simclr", "moco"], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/equal-time"))
    arguments = parser.parse_args()
    out = arguments.out / arguments.data
    log = family.LOGS / f"equal_time_{arguments.data}.json"
    settings, precision = settings_of(arguments.data, arguments.data_path, out)
    for seed in arguments.seeds:
        for base, epochs in EPOCHS[arguments.data].items():
            wanted = arguments.bases is None or base in arguments.bases
            if wanted and str(seed) not in family.logged(log).get(base, {}):
                longer = (*settings, "--epochs", epochs)
                figures = family.run(base, seed, longer, out, precision)
                family.log(log, base, seed, {**figures, "epochs": epochs}, out / ".log.lock")
    print(f"| base | epochs | kNN top-1, % | linear probe top-1, % | seeds |\n|{' --- |' * 5}")
    for base, runs in family.logged(log).items():
        cells = [family.spread([run[kind] for run in runs.values()]) for kind in ("knn", "linear")]
        epochs = EPOCHS[arguments.data][base]
        print(f"| {base} | {epochs} | {' | '.join(cells)} | {len(runs)} |")


if __name__ == "__main__":
    main()
