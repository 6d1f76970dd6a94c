"""The evaluations that train a classifier on images: linear as published, supervised, fine-tuned."""

import math
import time
from typing import Any

import torch

from mixco.evaluation.task import accuracies, labels_of, load_task
from mixco.evaluation.train_classifier import (
    Classifier,
    Epoch,
    load_classifier,
    save_classifier,
    train_classifier,
)
from mixco.models.encoder import build_backbone, feature_dim
from mixco.runtime.device import describe
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError, explain_machine_failures
from mixco.runtime.progress import say
from mixco.settings.config import FinetuneConfig, LinearConfig
from mixco.settings.resolve import check_classifier
from mixco.views.augment import crop_and_flip


def evaluate_as_published(config: LinearConfig) -> dict[str, Any]:
    """Linear evaluation by SGD on augmented images, or the same network from scratch."""
    training = config.classifier
    if not config.supervised:
        return _train_and_test(
            config,
            "linear_paper",
            lr=None,
            head_lr=training.lr,
            weight_decay=training.weight_decay or 0.0,
            schedule="steps",
            milestones=config.milestones,
        )
    usual = 0.1 * training.batch_size / 256 if training.optimizer == "sgd" else 1e-3
    return _train_and_test(
        config,
        "supervised",
        lr=training.lr or usual,
        head_lr=training.lr or usual,
        weight_decay=5e-4 if training.weight_decay is None else training.weight_decay,
        schedule="steps",
        milestones=config.milestones,
    )


@explain_machine_failures("lower --batch-size or --size, or give --device cpu")
def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Train the whole network from the encoder's weights: one rate for it, one for the classifier.

    Written into results.json and finetune.safetensors. top1 and top5 in percent, of the last epoch.
    """
    check_classifier(config)
    training = config.classifier
    lr = training.lr or (0.02 if training.optimizer == "sgd" else 1e-4)
    return _train_and_test(
        config,
        "finetune",
        lr=lr,
        head_lr=config.head_lr,
        weight_decay=training.weight_decay or 0.0,
        schedule="cosine",
        milestones=(),
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
    """Train a classifier, save it, test it after each epoch; or test the one that was saved.

    kind: "linear_paper" (the encoder is frozen), "supervised" (from random weights), "finetune".
    lr: of the backbone, None where it is frozen. head_lr: of the layer on top, None for that of
        `Task.head_rate`, or a tenth of it where the backbone learns too.
    """
    if launch_env().processes > 1:
        raise UserError(
            "a classifier is trained by one process; start it without torchrun (linear --protocol fast "
            "and knn know several)"
        )
    evaluation, training = config.evaluation, config.classifier
    if evaluation.run is None and evaluation.out is None:
        raise UserError("give --out, the folder that results.json and the classifier go to")
    task = load_task(evaluation)
    assert task.folder is not None
    encoder, frozen = task.encoder.description, kind == "linear_paper"
    backbone = task.encoder.backbone
    if kind == "supervised":
        backbone = build_backbone(
            encoder.arch,
            encoder.size,
            encoder.stem,  # type: ignore[arg-type]
            evaluation.seed,
            encoder.channels,
        )
    model = Classifier(
        backbone, feature_dim(backbone, task.input.size), len(task.train.classes), evaluation.seed
    )
    stem = "classifier" if frozen else kind
    path = task.folder / f"{stem}{task.suffix}.safetensors"
    # Of a frozen encoder the test features stay the same: they are computed once.
    frozen_features = task.outputs(backbone, task.test) if frozen else None

    @torch.no_grad()
    def test() -> tuple[float, float]:
        outputs, index = frozen_features or task.outputs(model, task.test)
        if frozen:
            outputs = model.classify(outputs.to(task.compute.device)).cpu()
        return accuracies(outputs, labels_of(task.test)[index])

    if config.evaluate:
        load_classifier(path, model, task.test.classes)
        model.to(task.compute.device)
        top1, top5 = test()
        return {"top1": round(top1, 2), "top5": round(top5, 2), **task.describe()}

    rate, rate_from = head_lr, "settings"
    if rate is None and frozen and training.optimizer == "sgd":
        rate, rate_from = task.recipe_lr, "the run's recipe"
    if rate is None:
        # Where the backbone learns too, a layer that is thrown about would shake it.
        rate = task.head_rate(training.optimizer) * (1.0 if frozen else 0.1)
        rate_from = "the features' mean squared length"
    say(
        f"{kind}: {encoder.arch} at {task.input.size} px, {len(task.train):,} labelled images, "
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
        seed=evaluation.seed,
        compute=task.compute,
        name=kind,
    )
    save_classifier(path, model, task.train.classes, whole=not frozen)
    chance = math.log(len(task.train.classes))
    if records[-1].loss > 1.1 * chance:
        say(
            f"warning: the loss ends at {records[-1].loss:.3g}, above that of guessing, {chance:.3g}; "
            "the rate is too high for these features or this network: lower --lr"
        )
    result = {
        **last_and_best(records),
        "optimizer": training.optimizer,
        "lr": lr,
        "head_lr": rate,
        "head_lr_from": rate_from,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": list(milestones),
        "batch_size": min(training.batch_size, len(task.train)),
        "epochs": config.epochs,
        "seed": evaluation.seed,
        "seconds": round(time.perf_counter() - began, 1),
        "classifier": path.name,
        **task.describe(),
    }
    if kind == "supervised":
        result |= {"checkpoint": None, "training": f"random weights, seed {evaluation.seed}"}
    task.write(kind, result)
    return result


def last_and_best(records: list[Epoch]) -> dict[str, Any]:
    """The result is the last epoch's, both numbers of it; the best epoch stands under its own name.

    The 2020 code reported the best top-1 of all epochs on the test split with the last top-5.
    """
    last, best = records[-1], max(records, key=lambda record: record.top1)
    return {
        "top1": last.top1,
        "top5": last.top5,
        "reported": "last epoch",
        "best_top1": best.top1,
        "best_epoch": best.epoch,
        "best_is": "the highest of all epochs on the test split: a choice on it, not a result",
        "loss": round(last.loss, 4),
    }
