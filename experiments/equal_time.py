"""Is MixCo better than its base trained longer? On 10,000 images of CIFAR-10, three seeds.

    mixco download cifar10 --data-path DATA
    python experiments/family.py --data cifar10 --data-path DATA --seeds 0 1 2 \\
        --pairs moco moco+mixco simclr simclr+mixco
    python experiments/equal_time.py --data-path DATA [--seeds 0 1 2] [--bases simclr moco]

The first script has both for 9 epochs. Here the base alone gets the time that MixCo takes for these: in
passes of the encoder, a pass with its gradient counted as three, SimCLR + MixCo has 1.5 times those of
SimCLR, and MoCo + MixCo 1.375 times those of MoCo. So SimCLR gets 14 epochs, and MoCo 13. All else is as
there. Figures are added to experiments/logs/equal_time.json, and what is there is not done again.
"""

import argparse
from pathlib import Path

import cifar10_10k
import family

EPOCHS = {"moco": 13, "simclr": 14}
LOG = family.LOGS / "equal_time.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bases", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--out", type=Path, default=Path("runs/equal-time"))
    arguments = parser.parse_args()
    images = cifar10_10k.lay_out(arguments.data_path, arguments.out / "images", cifar10_10k.PARTS)
    for seed in arguments.seeds:
        for base in arguments.bases:
            epochs = EPOCHS[base]
            if str(seed) not in family.logged(LOG).get(base, {}):
                settings = (*cifar10_10k.SETTINGS, "--data", images, "--epochs", epochs)
                figures = family.run(base, seed, settings, arguments.out)
                family.log(LOG, base, seed, {**figures, "epochs": epochs}, arguments.out / ".lock")
    print("| base | epochs | kNN top-1, % | linear probe top-1, % | seeds |\n|" + " --- |" * 5)
    for base, runs in family.logged(LOG).items():
        cells = [family.spread([run[kind] for run in runs.values()]) for kind in ("knn", "linear")]
        print(f"| {base} | {EPOCHS[base]} | {' | '.join(cells)} | {len(runs)} |")


if __name__ == "__main__":
    main()
