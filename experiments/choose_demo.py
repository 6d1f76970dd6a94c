"""How the demo's settings were chosen: on held-out training images, never on the test split.

    python experiments/choose_demo.py experiments/choose_demo.txt [--seeds 0 1] [--out FILE.jsonl]

Each line of the file holds options for `mixco pretrain`; "#" begins a comment. Pretraining leaves out a
quarter of the training images (--exclude-holdout), of the sample's 1,600 unless --data names others,
and kNN is measured on them at the end. Each line of the output is one run. Settings already in the
output are not run again.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def run(options: str, seed: int) -> dict[str, object]:
    """Pretrain in a separate process, as a user would. Return the held-out kNN and the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "mixco", "pretrain", "--out", str(out)),
            *(() if "--data " in options else ("--data", "sample")),
            *("--exclude-holdout", "--holdout", "0.25", "--knn-every", "1000"),
            *("--seed", str(seed), *shlex.split(options)),
            # The default at that time; runs from weights came later.
            *(() if "--lr " in options or "--init " in options else ("--lr", "1e-3")),
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        last = json.loads((out / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
        result = json.loads((out / "results.json").read_text("utf-8"))["pretrain"]
    return {"options": options, "seed": seed, "knn": last["knn"], "seconds": result["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("experiments/choose_demo.jsonl"))
    arguments = parser.parse_args()
    lines = [line.partition("#")[0].strip() for line in arguments.settings.read_text().splitlines()]
    settings = [line for line in lines if line]
    done = arguments.out.read_text("utf-8").splitlines() if arguments.out.exists() else []
    results = {(r["options"], r["seed"]): r for r in map(json.loads, done)}
    for options in settings:
        for seed in arguments.seeds:
            if (options, seed) not in results:
                results[options, seed] = run(options, seed)
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(results[options, seed]) + "\n")
        rows = [results[options, seed] for seed in arguments.seeds]
        knn, seconds = ([row[key] for row in rows] for key in ("knn", "seconds"))
        print(
            f"{statistics.mean(knn):5.1f} % ({min(knn):.1f} to {max(knn):.1f})"
            f" {statistics.mean(seconds):4.0f} s  {options}",
            flush=True,
        )


if __name__ == "__main__":
    main()
