"""The evaluations, each from its config to its result: load, measure, write.

kNN, the linear probe and the `scores` of other evaluations need only features, which are computed
once. Linear as published, supervised and fine-tuned train a classifier on images.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor

from mixco.data.images import Images
from mixco.embeddings.knn import knn_scores, neighbours
from mixco.evaluation import EVALUATIONS, measured
from mixco.evaluation.classifier import Classifier, load_classifier, save_classifier
from mixco.evaluation.features import REMEDY, Features, compute_features
from mixco.evaluation.linear_probe import fit_linear_probe
from mixco.evaluation.task import Task, accuracies, load_task, rounded
from mixco.evaluation.train_classifier import last_and_best, train_classifier
from mixco.models.encoder import build_backbone, feature_dim
from mixco.plots.images import draw_neighbours
from mixco.runtime.device import describe
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError, explain_machine_failures
from mixco.runtime.progress import say
from mixco.settings.commands import EvaluationConfig, FinetuneConfig, KNNConfig, LinearConfig
from mixco.settings.parse import check_ranges
from mixco.settings.resolve import check_protocol
from mixco.views.augmentation import crop_and_flip
from mixco.views.preview import brightened

REMEDY_OF_TRAINING = "lower --batch-size or --size, or give --device cpu"


@explain_machine_failures(REMEDY)
def evaluate_scores(
    kind: str, config: EvaluationConfig, features: Features | None = None
) -> dict[str, Any]:
    """Run an evaluation of EVALUATIONS that has `scores`; top1 and top5 in percent.

    Written into the run's results.json, where there is a run. features: of an earlier evaluation, so
    that they are not computed twice.
    """
    f = features or compute_features(config)
    return _result(kind, f, resolve_name(EVALUATIONS[kind].scores)(f))


def _result(kind: str, f: Features, scores: Tensor, **settings: Any) -> dict[str, Any]:
    """Measure scores [M, classes] of the test images; write the result and the confusions.

    Raises ValueError for scores of another shape, and for NaN, which no comparison can rank.
    """
    if scores.shape != (len(f.test_labels), f.classes):
        raise ValueError(
            f"{kind}: expected scores [test images, classes], {[len(f.test_labels), f.classes]}, "
            f"got {list(scores.shape)}"
        )
    if scores.isnan().any():
        raise ValueError(f"{kind}: scores must be numbers, got NaN; -inf is the least likely")
    found = rounded(*accuracies(scores, f.test_labels))
    result = {**found, **settings, **f.task.describe()}
    f.task.write(kind, result)
    f.task.write_confusions(kind, scores, f.test_labels)
    return result


@explain_machine_failures(REMEDY)
def evaluate_knn(config: KNNConfig, features: Features | None = None) -> dict[str, Any]:
    """kNN of the test split among the train split; top1 and top5 in percent.

    As `evaluate_scores`; also draws neighbours.png.
    """
    check_ranges(config)
    f = features or compute_features(config.evaluation)
    weighted = config.votes == "weighted"
    scores = knn_scores(
        f.train_features,
        f.train_labels,
        f.test_features,
        classes=f.classes,
        k=config.k,
        temperature=config.temperature if weighted else None,
    )
    k = min(config.k, len(f.train_labels))
    voting = {"temperature": config.temperature} if weighted else {"votes": config.votes}
    result = _result("knn", f, scores, k=k, **voting)
    if f.task.folder is not None and launch_env().rank == 0:
        show_neighbours(f.task.folder / f"neighbours{f.task.suffix}.png", f)
    return result


@explain_machine_failures(REMEDY_OF_TRAINING)
def evaluate_linear(config: LinearConfig, features: Features | None = None) -> dict[str, Any]:
    """A linear classifier on the frozen encoder by either protocol; or the supervised baseline.

    Written into the run's results.json, where there is a run. top1 and top5 in percent.
    features: of an earlier evaluation, for the fast protocol.
    """
    check_ranges(config)
    check_protocol(config)
    kind, training = measured("linear", config), config.classifier
    if kind == "linear":
        return _probe(config, features or compute_features(config.evaluation))
    if kind == "linear_paper":
        lr, head_lr, decay = None, training.lr, training.weight_decay or 0.0
    else:
        usual = 0.1 * training.batch_size / 256 if training.optimizer == "sgd" else 1e-3
        lr = head_lr = training.lr or usual
        decay = 5e-4 if training.weight_decay is None else training.weight_decay
    return _train_and_test(
        config,
        kind,
        lr=lr,
        head_lr=head_lr,
        weight_decay=decay,
        schedule="steps",
        milestones=config.milestones,
    )


def _probe(config: LinearConfig, f: Features) -> dict[str, Any]:
    seed = config.evaluation.seed
    probe = fit_linear_probe(
        f.train_features,
        f.train_labels,
        classes=f.classes,
        names=f.task.classes,
        seed=seed,
        epochs=config.epochs,
    )
    return _result(
        "linear",
        f,
        probe.scores(f.test_features),
        learning_rate=probe.learning_rate,
        weight_decay=probe.weight_decay,
        selection="held-out part of the train split",
        epochs=config.epochs,
        seed=seed,
    )


@explain_machine_failures(REMEDY_OF_TRAINING)
def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train the whole network from the encoder's weights: one rate for it, one for the classifier.

    Written into results.json and finetune.safetensors. top1 and top5 in percent, of the last epoch.
    """
    check_ranges(config)
    training = config.classifier
    if config.init is not None:
        if config.evaluation.checkpoint is not None:
            raise UserError("--init and --checkpoint are the same in finetune; give one of them")
        evaluation = replace(config.evaluation, checkpoint=config.init)
        config = replace(config, evaluation=evaluation, init=None)
    return _train_and_test(
        config,
        "finetune",
        lr=training.lr or (0.02 if training.optimizer == "sgd" else 1e-4),
        head_lr=config.head_lr,
        weight_decay=training.weight_decay or 0.0,
        schedule="cosine",
        milestones=(),
    )


def both(config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """kNN and linear probe on the same features."""
    features = compute_features(config)
    return (
        evaluate_knn(KNNConfig(config), features),
        evaluate_linear(LinearConfig(config), features),
    )


def _train_and_test(
    config: LinearConfig | FinetuneConfig,
    kind: str,
    *,
    lr: float | None,
    head_lr: float | None,
    weight_decay: float,
    schedule: str,
    milestones: tuple[float, ...],
) -> dict[str, Any]:
    """Train a classifier, test it after each epoch, save it; with --evaluate test the saved one.

    kind: "linear_paper" (the encoder is frozen), "supervised" (from random weights), "finetune".
    lr: of the backbone, None where it is frozen. head_lr: of the layer on top, None for the rule of
        `_head_rate`.
    """
    evaluation, training = config.evaluation, config.classifier
    folder = evaluation.out or evaluation.run
    if launch_env().processes > 1:
        raise UserError(
            "one process trains a classifier; start it without torchrun (only knn and linear "
            "--protocol fast run in several)"
        )
    if training.batch_size < 2 and kind != "linear_paper":
        raise UserError("--batch-size 1: batch norms need two images or more; give --batch-size 2")
    if folder is None:
        raise UserError("give --out, the folder for results.json and the classifier")
    frozen, seed = kind == "linear_paper", evaluation.seed
    task = load_task(evaluation, training=not (frozen or config.evaluate))
    encoder = task.encoder.description
    backbone = task.encoder.backbone
    if kind == "supervised":
        arch, stem = encoder.arch, encoder.stem
        backbone = build_backbone(arch, encoder.size, stem, seed, encoder.channels)  # type: ignore[arg-type]
    model = Classifier(backbone, feature_dim(backbone, task.input.size), len(task.classes), seed)
    path = folder / f"{'classifier' if frozen else kind}{task.suffix}.safetensors"
    test = _tester(task, model, frozen)
    if config.evaluate:
        load_classifier(path, model, task.test.images.classes)
        model.to(task.compute.device)
        return {**rounded(*test()), **task.describe()}

    rate, rate_from = _head_rate(task, training.optimizer, head_lr, frozen)
    say(
        f"{kind}: {encoder.arch} at {task.input.size} px, {len(task.train.labels):,} labelled images, "
        f"{config.epochs} epochs, rate {rate:g}, {describe(task.compute.device)}"
    )
    began = time.perf_counter()
    records = train_classifier(
        model,
        task.train,
        test,
        frozen=frozen,
        augmentation=crop_and_flip(task.input),
        optimizer=training.optimizer,
        lr=lr or 0.0,
        head_lr=rate,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=milestones,
        batch_size=training.batch_size,
        epochs=config.epochs,
        seed=seed,
        compute=task.compute,
        name=kind,
    )
    save_classifier(path, model, task.classes, whole=not frozen)
    _warn_of_guessing(records[-1].loss, len(task.classes))
    result = {
        **last_and_best(records),
        "optimizer": training.optimizer,
        "lr": lr,
        "head_lr": rate,
        "head_lr_from": rate_from,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": list(milestones),
        "batch_size": min(training.batch_size, len(task.train.labels)),
        "epochs": config.epochs,
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "classifier": path.name,
        **task.describe(),
    }
    if kind == "supervised":
        result |= {"checkpoint": None, "training": f"random weights, seed {seed}"}
    task.write(kind, result)
    return result


def _tester(
    task: Task, model: Classifier, frozen: bool
) -> Callable[[], tuple[float, float | None]]:
    """A function that returns top-1 and top-5 of the model in percent.

    The test features of a frozen encoder stay the same, so they are computed once, here.
    """
    features = task.outputs(model.backbone, task.test) if frozen else None

    @torch.no_grad()
    def test() -> tuple[float, float | None]:
        if features is None:
            outputs, index = task.outputs(model, task.test)
        else:
            outputs, index = model.classify(features[0].to(task.compute.device)), features[1]
        return accuracies(outputs, task.test.labels[index])

    return test


def _head_rate(task: Task, optimizer: str, given: float | None, frozen: bool) -> tuple[float, str]:
    """The peak rate of the linear layer, and where it is from.

    Given by the settings; else, on a frozen encoder by SGD, by the run's recipe; else from the
    features (`Task.head_rate`). Where the backbone learns too, a tenth of that: large steps of the new
    layer would disturb the pretrained weights.
    """
    if given is not None:
        return given, "settings"
    if frozen and optimizer == "sgd" and task.recipe_lr is not None:
        return task.recipe_lr, "the run's recipe"
    return task.head_rate(optimizer) * (1.0 if frozen else 0.1), "the features' mean squared length"


def _warn_of_guessing(loss: float, classes: int) -> None:
    """Warn when the classifier has ended worse than one that gives each class the same score."""
    chance = math.log(classes)
    if loss > 1.1 * chance:
        say(
            f"warning: the loss ends at {loss:.3g}, above the {chance:.3g} of guessing; the rate is too "
            "high for these features or this network: lower --lr"
        )


def show_neighbours(path: Path, f: Features, count: int = 8, k: int = 8) -> None:
    """Draw the k nearest train images of one test image of each of the first `count` classes."""
    test_labels, train_labels = f.test_labels.cpu(), f.train_labels.cpu()
    test, training = f.task.test.images, f.task.encoder.description.training

    def pictures(images: Images, index: Tensor) -> Tensor:
        found, _ = images.canvases(index, 2 * f.task.input.size)
        return brightened(found, f.task.input)

    first = [int((test_labels == c).nonzero()[0]) for c in range(min(count, len(test.classes)))]
    chosen = torch.tensor(first)
    found = neighbours(f.train_features, f.test_features[chosen], k)
    similarities, index = (tensor.cpu() for tensor in found)
    draw_neighbours(
        path,
        pictures(test, f.test_index[chosen]),
        torch.stack([pictures(f.task.train.images, f.train_index[row]) for row in index]),
        similarities,
        train_labels[index] == test_labels[chosen][:, None],
        [test.classes[int(c)] for c in test_labels[chosen]],
        f"{training}: the nearest training images of {len(chosen)} test images",
    )
