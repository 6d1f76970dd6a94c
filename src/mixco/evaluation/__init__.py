"""The evaluations by name. Nothing heavy is imported here: the command line reads this table."""

from typing import NamedTuple


class Evaluation(NamedTuple):
    title: str
    about: str = ""
    """What its number means, in a sentence or two for the page of a run."""


EVALUATIONS: dict[str, Evaluation] = {
    "knn": Evaluation(
        "kNN",
        "Each test image takes the class of the training images whose features are nearest to its own.",
    ),
    "linear": Evaluation(
        "linear probe",
        "A linear classifier on the frozen encoder's features; its settings were chosen on held-out "
        "training images.",
    ),
    "linear_paper": Evaluation(
        "linear as published",
        "A linear classifier on the frozen encoder, trained on augmented images as in the published "
        "protocol.",
    ),
    "supervised": Evaluation(
        "supervised",
        "The same network, trained from scratch with all labels. It is not this encoder, but what "
        "pretraining competes with.",
    ),
    "finetune": Evaluation(
        "fine-tuned",
        "The whole network, trained further with labels. It tells how good a start the encoder is, not "
        "how good its features are.",
    ),
}
"""By the kind that begins a key of results.json, in the order in which tables show them."""
