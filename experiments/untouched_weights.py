"""kNN of weights as they are, at several sizes, on held-out training images.

    python experiments/untouched_weights.py efficientnet-lite0 --data sample [--sizes 32 64 96 128]

As experiments/choose_demo.py measures runs: a quarter of the training images asks, the rest answers, and
the test split is not touched. So these numbers are what a run there begins with.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from mixco.models.encoder import Encoder
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import with_settings
from mixco.training.build import build
from mixco.training.monitor import monitor, watched_views
from mixco.training.setup import prepare


def held_out_knn(weights: str, data: str, size: int) -> float:
    """Percent of the held-out images whose nearest neighbours have their class."""
    settings = {
        "data": data,
        "init": weights,
        "size": size,
        "precision": "float32",
        "epochs": 1,
        "exclude_holdout": True,
        "holdout": 0.25,
        "knn_every": 1,
        "out": Path("never-made"),
    }
    with ExitStack() as stack:
        setup = prepare(with_settings(PretrainConfig(), settings, "untouched"), stack)
        encoder = cast(Encoder, build(setup).encoder)
        found = monitor(setup, encoder, watched_views(setup), 1, lambda *_: None)
    return found["knn"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96, 128])
    arguments = parser.parse_args()
    for size in arguments.sizes:
        knn = held_out_knn(arguments.weights, arguments.data, size)
        print(json.dumps({"data": arguments.data, "size": size, "knn": knn}), flush=True)


if __name__ == "__main__":
    main()
