"""`mixco` with one more of everything: a line for each part of extension_parts.py.

Reads commands, a JSON list of arguments a line, and says "done" after each. Ends with one that fails.
"""

import json
import sys

from extension_parts import PullConfig, advise

from mixco.data.datasets import DATASETS, Dataset
from mixco.evaluation import EVALUATIONS, Evaluation
from mixco.methods import METHODS, MIXERS, Base, MixerEntry
from mixco.runtime.loggers import LOGGERS, Logger

MIXERS["patches"] = MixerEntry("Patches", "1905.04899", "extension_parts:patches")
METHODS["pull"] = Base(
    "Pull",
    "2006.07733",
    "extension_parts:build_pull",
    augmentation="simclr",
    bn_over="process",
    passes=1.0,
    mixed_views=1,
    sgd_lr=0.1,
    options=PullConfig,
    advise=advise,
)
DATASETS["squares"] = Dataset("extension_parts:list_squares", "made by a test")
LOGGERS["lines"] = Logger("extension_parts:lines")
EVALUATIONS["centroid"] = Evaluation(
    "nearest centroid", "classify by the nearest class mean", scores="extension_parts:centroids"
)

if __name__ == "__main__":
    from mixco.cli import main

    for line in sys.stdin:
        try:
            main(json.loads(line))
        except SystemExit as left:
            if left.code:
                raise
        print("\ndone", flush=True)
