"""The evaluations of a frozen encoder, as commands: load, compute features, score, write."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixco.data.images import Images
from mixco.embeddings.knn import knn_scores, neighbours
from mixco.evaluation.linear_probe import fit_linear_probe
from mixco.evaluation.task import Task, accuracies, labels_of, load_task
from mixco.evaluation.trained import evaluate_as_published
from mixco.plots import draw_neighbours
from mixco.runtime.distributed import launch_env, process_group
from mixco.runtime.errors import explain_machine_failures
from mixco.settings.config import EvaluationConfig, KNNConfig, LinearConfig
from mixco.settings.resolve import check_classifier, check_knn
from mixco.views.preview import brightened

REMEDY = "lower --size, or give --device cpu"
MINUTES = 30.0  # that one of several processes waits for the shares of the others


@dataclass(frozen=True)
class Features:
    """Features of the labelled train and test split, and where they came from."""

    task: Task
    train_features: Tensor
    """float32 [N, D]"""
    train_index: Tensor
    """int64 [N]: which images of task.train."""
    test_features: Tensor
    """float32 [M, D]"""
    test_index: Tensor
    """int64 [M]"""

    @property
    def train_labels(self) -> Tensor:
        return labels_of(self.task.train)[self.train_index]

    @property
    def test_labels(self) -> Tensor:
        return labels_of(self.task.test)[self.test_index]


@explain_machine_failures(REMEDY)
def compute_features(config: EvaluationConfig) -> Features:
    """The task's features, computed once for all evaluations that need them.

    Where torchrun started several processes, each computes its share and all have all of them.
    """
    task = load_task(config)
    backbone = task.encoder.backbone
    with process_group(task.compute.device, MINUTES):
        train, test = task.outputs(backbone, task.train), task.outputs(backbone, task.test)
    return Features(task, *train, *test)


@explain_machine_failures(REMEDY)
def evaluate_knn(config: KNNConfig, features: Features | None = None) -> dict[str, Any]:
    """Weighted kNN of the test split among the train split; top-1 in percent.

    Written into the run's results.json and neighbours.png, when there is a run.
    features: those of an evaluation before, so that they are not computed twice.
    """
    check_knn(config)
    f = features or compute_features(config.evaluation)
    scores = knn_scores(
        f.train_features,
        f.train_labels,
        f.test_features,
        classes=len(f.task.train.classes),
        k=config.k,
        temperature=config.temperature,
    )
    top1, top5 = accuracies(scores, f.test_labels)
    result = {
        "top1": round(top1, 2),
        "top5": round(top5, 2),
        "k": min(config.k, len(f.train_labels)),
        "temperature": config.temperature,
        **f.task.describe(),
    }
    f.task.write("knn", result)
    f.task.write_confusions("knn", scores, f.test_labels)
    if f.task.folder is not None and launch_env().rank == 0:
        show_neighbours(f.task.folder / f"neighbours{f.task.suffix}.png", f)
    return result


@explain_machine_failures("lower --batch-size or --size, or give --device cpu")
def evaluate_linear(config: LinearConfig, features: Features | None = None) -> dict[str, Any]:
    """A linear classifier on the frozen encoder by either protocol; or the supervised baseline.

    Written into the run's results.json, when there is a run. top1 and top5 in percent.
    features: for the fast protocol, those of an evaluation before.
    """
    check_classifier(config)
    if config.protocol == "paper":
        return evaluate_as_published(config)
    f = features or compute_features(config.evaluation)
    probe = fit_linear_probe(
        f.train_features,
        f.train_labels,
        classes=len(f.task.train.classes),
        seed=config.evaluation.seed,
        epochs=config.epochs,
    )
    scores = probe.scores(f.test_features)
    top1, top5 = accuracies(scores, f.test_labels)
    result = {
        "top1": round(top1, 2),
        "top5": round(top5, 2),
        "learning_rate": probe.learning_rate,
        "weight_decay": probe.weight_decay,
        "selection": "held-out part of the train split",
        "epochs": config.epochs,
        "seed": config.evaluation.seed,
        **f.task.describe(),
    }
    f.task.write("linear", result)
    f.task.write_confusions("linear", scores, f.test_labels)
    return result


def show_neighbours(path: Path, f: Features, count: int = 8, k: int = 8) -> None:
    """The picture of the nearest train images of some test images, one a class first."""
    test_labels, train_labels = f.test_labels, f.train_labels
    encoder = f.task.encoder.description

    def pictures(images: Images, index: Tensor) -> Tensor:
        found, _ = images.canvases(index, 2 * f.task.input.size)
        return brightened(found, f.task.input)

    first = [
        int((test_labels == c).nonzero()[0]) for c in range(min(count, len(f.task.test.classes)))
    ]
    chosen = torch.tensor(first)
    similarities, index = neighbours(f.train_features, f.test_features[chosen], k)
    draw_neighbours(
        path,
        pictures(f.task.test, f.test_index[chosen]),
        torch.stack([pictures(f.task.train, f.train_index[row]) for row in index]),
        similarities,
        train_labels[index] == test_labels[chosen][:, None],
        [f.task.test.classes[int(c)] for c in test_labels[chosen]],
        f"{encoder.training}: the nearest training images of {len(chosen)} test images",
    )


def both(config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """kNN and linear probe on the same features."""
    features = compute_features(config)
    return (
        evaluate_knn(KNNConfig(config), features),
        evaluate_linear(dataclasses.replace(LinearConfig(), evaluation=config), features),
    )
