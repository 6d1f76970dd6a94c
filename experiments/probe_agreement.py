"""Do the fast probe and the published protocol agree on an encoder?

    python experiments/probe_agreement.py [--run RUN] [--epochs 20] [--seeds 3] [--out runs/agreement]

Evaluates one encoder on the sample (1,600 training and 400 test images) by both protocols with
several seeds, prints both results with their difference, and writes them to OUT/agreement.json. Without
--run, it first pretrains an encoder by the demo's recipe. One of 400 test images is 0.25 points.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from mixco.evaluation.protocols import evaluate_linear
from mixco.runtime.run_folder import write_json
from mixco.settings.commands import EvaluationConfig, LinearConfig
from mixco.settings.parse import load_recipe, with_settings
from mixco.training.pretrain import pretrain


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run folder; default: pretrain one")
    parser.add_argument("--epochs", type=int, default=20, help="pretraining's")
    parser.add_argument("--linear-epochs", type=int, default=100, help="the published protocol's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/agreement"))
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/mixco"))
    options = parser.parse_args()

    run = options.run or pretrained(options)
    rows = []
    for seed in range(options.seeds):
        evaluation = EvaluationConfig(
            run=run, out=options.out / f"seed{seed}", cache=options.cache, seed=seed
        )
        fast = evaluate_linear(LinearConfig(evaluation))
        paper = evaluate_linear(
            LinearConfig(evaluation, protocol="paper", epochs=options.linear_epochs)
        )
        rows.append((fast["top1"], paper["top1"]))
        print(f"seed {seed}: fast {rows[-1][0]:.2f} %, paper {rows[-1][1]:.2f} %", flush=True)
    fast_mean, paper_mean = (mean(column) for column in zip(*rows, strict=True))
    if len(rows) > 1:
        spread = [stdev(column) for column in zip(*rows, strict=True)]
        print(f"standard deviations: fast {spread[0]:.2f}, paper {spread[1]:.2f}")
    print(
        f"means of {len(rows)} seeds: fast {fast_mean:.2f} %, paper {paper_mean:.2f} %, "
        f"difference {paper_mean - fast_mean:+.2f} points"
    )
    write_json(
        options.out / "agreement.json",
        {
            "run": str(run),
            "fast": [fast for fast, _ in rows],
            "paper": [paper for _, paper in rows],
            "difference": round(paper_mean - fast_mean, 3),
        },
    )


def pretrained(options: argparse.Namespace) -> Path:
    """Pretrain by the demo's recipe, below --out."""
    changes = {"cache": options.cache, "epochs": options.epochs, "out": options.out / "run"}
    return pretrain(with_settings(load_recipe("demo"), changes, "demo"))


if __name__ == "__main__":
    main()
