"""MoCo and SimCLR, with and without MixCo, on 10,000 training images of CIFAR-10; three seeds.

    mixco download cifar10 --data-path DATA
    python experiments/cifar10_10k.py --data-path DATA [--epochs 10] [--seeds 0 1 2] [--out DIR]

Pretraining uses the first 1,000 training images of each class, without labels. kNN and the linear
probe then use the labels of the same 10,000, and are tested on the whole test split. Started again, the
script continues with the missing runs. It prints the table of experiments/RESULTS.md.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from PIL import Image

from mixco.data.datasets import list_images

# For each folder: its split, and which images of each class, in the order of the split.
Parts = dict[str, tuple[str, range]]
PARTS: Parts = {"train": ("train", range(1000)), "test": ("test", range(1000))}
SETTINGS = ("--size", 32, "--stem", "standard", "--batch-size", 128)
METHODS = [(method, mix) for method in ("moco", "simclr") for mix in ("none", "mixco")]


def lay_out(data_path: Path, folder: Path, parts: Parts) -> Path:
    """Write a folder for each part, with a folder of PNG files for each class."""
    if folder.exists():
        return folder
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part, (split, wanted) in parts.items():
        images = list_images("cifar10", data_path, split)
        assert images.labels is not None
        counts = [0] * len(images.classes)
        for index, label in enumerate(images.labels):
            counts[label] += 1
            if counts[label] - 1 in wanted:
                path = unfinished / part / images.classes[label] / f"{index:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if images.arrays is None:
                    path.write_bytes(images.read(index))
                else:
                    Image.fromarray(images.arrays[index]).save(path)
    unfinished.rename(folder)
    return folder


def mixco(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "mixco", *map(str, arguments)], check=True)


def run(photos: Path, out: Path, method: str, mix: str, seed: int, epochs: int) -> dict[str, dict]:
    """Pretrain and evaluate, unless it is done. Return the run's results.json."""
    results = out / "results.json"
    done = json.loads(results.read_text("utf-8")) if results.exists() else {}
    if not {"pretrain", "knn", "linear"} <= done.keys():
        shutil.rmtree(out, ignore_errors=True)
        mixco(
            *("pretrain", "--data", photos, "--out", out, "--seed", seed, "--method", method),
            *("--mix", mix, "--epochs", epochs, "--knn-every", 0),
            *SETTINGS,
        )
        mixco("knn", "--run", out)
        mixco("linear", "--run", out)
        done = json.loads(results.read_text("utf-8"))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10-10k"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    photos = lay_out(arguments.data_path, arguments.out / "cifar10-10k", PARTS)
    results = {
        (method, mix, seed): run(
            photos,
            arguments.out / f"{method}-{mix}-{arguments.epochs}-s{seed}",
            *(method, mix, seed, arguments.epochs),
        )
        for seed in arguments.seeds
        for method, mix in METHODS
    }
    print("| method | kNN top-1, % | linear probe top-1, % | top-5, % | pretraining, s |")
    print("| --- | --- | --- | --- | --- |")
    for method, mix in METHODS:
        of_seeds = [results[method, mix, seed] for seed in arguments.seeds]
        cells = [
            [r["knn"]["top1"] for r in of_seeds],
            [r["linear"]["top1"] for r in of_seeds],
            [r["linear"]["top5"] for r in of_seeds],
            [r["pretrain"]["seconds"] for r in of_seeds],
        ]
        texts = [
            f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
            for v in cells
        ]
        name = method if mix == "none" else f"{method} + {mix}"
        print(f"| {name} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
