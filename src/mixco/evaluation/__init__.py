"""The evaluations by name. Nothing heavy is imported here: the command line reads this table.

An evaluation of frozen features is one function, from `features.Features` to scores, and one line:

    EVALUATIONS["centroid"] = Evaluation(
        "nearest centroid", summary="classify by the nearest class mean", scores="my_module:centroids"
    )
"""

from typing import Any, NamedTuple

from mixco.runtime.imports import load


class Evaluation(NamedTuple):
    """What the command line and the tables know of an evaluation."""

    title: str
    """As tables, the report and the model card show it."""
    summary: str = ""
    """Its line in `mixco --help`; "" where it has no command of its own."""
    config: str = "mixco.settings.config:EvaluationConfig"
    """Import string of the settings class."""
    run: str = ""
    """Import string of a function, config -> result; it writes results.json. Else give `scores`."""
    scores: str = ""
    """Import string of a function, `features.Features` -> float [M, classes], higher is likelier."""
    numbers: tuple[str, ...] = ("top1",)
    """The entries of the result that a table shows."""


_PROTOCOLS, _CONFIG = "mixco.evaluation.protocols", "mixco.settings.config"
_BOTH = ("top1", "top5")

# By their keys in results.json, in the order of tables. `mixco linear` measures three of them.
EVALUATIONS = {
    "knn": Evaluation(
        "kNN",
        "nearest-neighbour classification with a run's frozen encoder",
        f"{_CONFIG}:KNNConfig",
        f"{_PROTOCOLS}:evaluate_knn",
    ),
    "linear": Evaluation(
        "linear probe",
        "a linear classifier on a run's frozen encoder, fast or as published",
        f"{_CONFIG}:LinearConfig",
        f"{_PROTOCOLS}:evaluate_linear",
        numbers=_BOTH,
    ),
    "linear_paper": Evaluation(
        "linear, as published",
        config=f"{_CONFIG}:LinearConfig",
        run=f"{_PROTOCOLS}:evaluate_linear",
        numbers=_BOTH,
    ),
    "supervised": Evaluation(
        "supervised",
        config=f"{_CONFIG}:LinearConfig",
        run=f"{_PROTOCOLS}:evaluate_linear",
    ),
    "finetune": Evaluation(
        "fine-tuned",
        "train the whole network with labels, starting from a run's encoder",
        f"{_CONFIG}:FinetuneConfig",
        f"{_PROTOCOLS}:finetune",
    ),
}


def evaluate(kind: str, config: Any) -> dict[str, Any]:
    """Run an evaluation of the table, and return its result: top1 and top5 in percent, and more."""
    if run := EVALUATIONS[kind].run:
        result: dict[str, Any] = load(run)(config)
    else:
        result = load(f"{_PROTOCOLS}:evaluate_scores")(kind, config)
    return result


def measured(kind: str, config: Any) -> str:
    """The kind that a command measures: `linear` may be linear, linear_paper or supervised."""
    if kind != "linear" or config.protocol == "fast":
        return kind
    return "supervised" if config.supervised else "linear_paper"
