"""The evaluations by name. Nothing heavy is imported here: the command line reads this table.

An evaluation of frozen features is one function, from `features.Features` to scores, and one line:

    EVALUATIONS["centroid"] = Evaluation(
        "nearest centroid", summary="classify by the nearest class mean", scores="my_module:centroids"
    )
"""

from pkgutil import resolve_name
from typing import Any, NamedTuple


class Evaluation(NamedTuple):
    """How an evaluation is named, shown and run."""

    title: str
    """For tables, the report and the model card."""
    summary: str = ""
    """Its line in `mixco --help`; "" where it has no command of its own."""
    config: str = "mixco.settings.commands:EvaluationConfig"
    """Import string of the settings class."""
    run: str = ""
    """Import string of a function, config -> result, that writes results.json; "" to use `scores`."""
    scores: str = ""
    """Import string of a function, `features.Features` -> float [M, classes]: a score for each test
    image and class, higher is likelier."""
    about: str = ""
    """What its number means, in a sentence or two for the page of a run."""


_PROTOCOLS = "mixco.evaluation.protocols"

# By their keys in results.json, in the order of tables. `mixco linear` measures three of them.
EVALUATIONS: dict[str, Evaluation] = {
    "knn": Evaluation(
        "kNN",
        summary="nearest-neighbour classification with a run's frozen encoder",
        config="mixco.settings.commands:KNNConfig",
        run=f"{_PROTOCOLS}:evaluate_knn",
        about="Each test image takes the class of the training images whose features are nearest to "
        "its own.",
    ),
    "linear": Evaluation(
        "linear probe",
        summary="a linear classifier on a run's frozen encoder, fast or as published",
        config="mixco.settings.commands:LinearConfig",
        run=f"{_PROTOCOLS}:evaluate_linear",
        about="A linear classifier on the frozen encoder's features; its settings were chosen on "
        "held-out training images.",
    ),
    "linear_paper": Evaluation(
        "linear, as published",
        config="mixco.settings.commands:LinearConfig",
        run=f"{_PROTOCOLS}:evaluate_linear",
        about="A linear classifier on the frozen encoder, trained on augmented images as in the "
        "published protocol.",
    ),
    "supervised": Evaluation(
        "supervised",
        config="mixco.settings.commands:LinearConfig",
        run=f"{_PROTOCOLS}:evaluate_linear",
        about="The same network, trained from scratch with all labels. It is not this encoder, but "
        "what pretraining competes with.",
    ),
    "finetune": Evaluation(
        "fine-tuned",
        summary="train the whole network with labels, starting from a run's encoder",
        config="mixco.settings.commands:FinetuneConfig",
        run=f"{_PROTOCOLS}:finetune",
        about="The whole network, trained further with labels. It tells how good a start the encoder "
        "is, not how good its features are.",
    ),
}


def evaluate(kind: str, config: Any) -> dict[str, Any]:
    """Run an evaluation of the table. Returns its result: top1 in percent, and more.

    top5 is in it where there are more than five classes.
    """
    if run := EVALUATIONS[kind].run:
        result: dict[str, Any] = resolve_name(run)(config)
    else:
        result = resolve_name(f"{_PROTOCOLS}:evaluate_scores")(kind, config)
    return result


def measured(kind: str, config: Any) -> str:
    """The kind that a command measures: `linear` may be linear, linear_paper or supervised."""
    if kind != "linear" or config.protocol == "fast":
        return kind
    return "supervised" if config.supervised else "linear_paper"
