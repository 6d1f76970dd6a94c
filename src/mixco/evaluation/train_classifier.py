"""The loop that trains a classifier on augmented images, with the encoder frozen or not.

Frozen, it is linear evaluation as published (He et al. 2020, section 4.1; Kim et al. 2020): the
encoder and its running statistics stay as they are, and a linear layer learns on top. Otherwise it
is fine-tuning or, from random weights, the supervised baseline.
"""

import math
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.data.images import Plan, view_batches
from mixco.data.loading import epoch_batches
from mixco.encoders.checkpoint import fingerprint
from mixco.evaluation.classifier import Classifier
from mixco.evaluation.task import Labelled, rounded, warn_unreadable
from mixco.models.encoder import drops_at_random
from mixco.runtime.device import Compute, send
from mixco.runtime.errors import UserError
from mixco.runtime.progress import Stopwatch, say, training, waited
from mixco.runtime.seeding import generator_for, global_draws
from mixco.training.schedules import learning_rate
from mixco.training.step import update
from mixco.views.augmentation import Augmentation


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: mean training loss; top1 and top5 in percent of the test split.

    top5 is None where there are five classes or fewer.
    """

    epoch: int
    loss: float
    top1: float
    top5: float | None


def train_classifier(
    model: Classifier,
    train: Labelled,
    test: Callable[[], tuple[float, float | None]],
    *,
    frozen: bool,
    augmentation: Augmentation,
    optimizer: str,
    lr: float,
    head_lr: float,
    weight_decay: float,
    schedule: str,
    milestones: tuple[float, ...],
    batch_size: int,
    epochs: int,
    seed: int,
    compute: Compute,
    name: str,
) -> list[Epoch]:
    """Train the classifier in place. Returns a record an epoch; the last one is the result.

    test: returns top-1 and top-5; called after each epoch, and nothing is chosen by it.
    frozen: the backbone stays in evaluation mode and gets no gradient. Else all of it learns.
    optimizer: "sgd" (momentum 0.9) or "adam". lr: peak rate of the backbone; head_lr: of the layer.
    schedule, milestones: see training/schedules.py. batch_size: cut down to the number of images;
        images that fill no batch are left out of an epoch, others in each.
    name: for the progress bar.

    Raises UserError when the loss is not finite, RuntimeError when a frozen backbone has changed.
    """
    device = compute.device
    model.to(device, memory_format=compute.memory_format)  # type: ignore[call-overload]
    model.train(not frozen)
    model.backbone.requires_grad_(not frozen)
    before = fingerprint(model.backbone) if frozen else ""
    drops = not frozen and drops_at_random(model)
    peaks = [head_lr] if frozen else [head_lr, lr]
    stepper = _optimizer(model, optimizer, weight_decay, frozen)
    members = torch.arange(len(train.labels))
    batch_size = min(batch_size, len(members))
    steps_per_epoch = len(members) // batch_size
    steps = epochs * steps_per_epoch
    views = view_batches(
        train.images,
        plan(members, batch_size, epochs, seed),
        augmentation,
        members=members,
        batch_size=batch_size,
        compute=compute,
        on_unreadable=warn_unreadable,
        count=1,
    )

    records: list[Epoch] = []
    watch, total, step = Stopwatch(), torch.zeros((), device=device), 0
    with training(name, steps) as on_step, closing(views):
        for index, (view,) in waited(views, watch):
            rates = [
                learning_rate(
                    step, steps=steps, peak=peak, schedule=schedule, milestones=milestones
                )
                for peak in peaks
            ]
            dropout = generator_for(seed, "classifier dropout", step=step) if drops else None
            loss = forward(model, view, send(train.labels[index], device), dropout, compute)
            loss.backward()  # type: ignore[no-untyped-call]
            update(stepper, rates)
            total += loss.detach()
            watch.images += len(index)
            on_step(f"epoch {step // steps_per_epoch + 1}/{epochs}", {}, watch)
            step += 1
            if step % steps_per_epoch == 0:
                # Read once an epoch: each reading waits for the device, and nothing is saved yet.
                mean_loss = total.item() / steps_per_epoch
                if not math.isfinite(mean_loss):
                    raise _not_finite(name, len(records) + 1, head_lr)
                found = rounded(*test())
                top1, top5 = found["top1"], found.get("top5")
                records.append(Epoch(len(records) + 1, mean_loss, top1, top5))
                _say_epoch(records[-1], epochs, watch)
                total.zero_()
                watch.reset()
    if frozen and fingerprint(model.backbone) != before:
        raise RuntimeError(
            "the frozen encoder has changed while the classifier was trained: a weight or a running "
            "statistic moved, so this is no linear evaluation; nothing was saved"
        )
    return records


def forward(
    model: Classifier,
    view: Tensor,
    labels: Tensor,
    dropout: torch.Generator | None,
    compute: Compute,
) -> Tensor:
    """The mean loss of a batch [B, C, S, S] with labels int64 [B], both on the device.

    dropout: draws for dropout and stochastic depth; None where the model has neither.
    """
    random = nullcontext() if dropout is None else global_draws(dropout, compute.device)
    with compute.autocast(), random:
        return F.cross_entropy(model(view), labels)


def _optimizer(
    model: Classifier, name: str, weight_decay: float, frozen: bool
) -> torch.optim.Optimizer:
    """Two parameter groups, the head's and the backbone's; of a frozen backbone none."""
    parts = [model.head] if frozen else [model.head, model.backbone]
    groups = [{"params": list(part.parameters())} for part in parts]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=weight_decay)
    return torch.optim.Adam(groups, lr=0.0, weight_decay=weight_decay)


def _not_finite(name: str, epoch: int, head_lr: float) -> UserError:
    return UserError(
        f"{name}: the loss is not finite in epoch {epoch}; nothing was saved. Lower --lr (the peak "
        f"rate of the layer was {head_lr:g}), or give --precision float32"
    )


def _say_epoch(record: Epoch, epochs: int, watch: Stopwatch) -> None:
    """A line for the first epoch, the last, and about ten between."""
    epoch = record.epoch
    if epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
        say(
            f"epoch {epoch:>4}/{epochs}  loss {record.loss:.3f}  "
            f"top-1 {record.top1:.1f} %  {watch.rate:,.0f} images/s"
        )


def plan(members: Tensor, batch_size: int, epochs: int, seed: int) -> Plan:
    """For each step: the images, int64 [B], and the generator that draws their views."""
    step = 0
    for epoch in range(1, epochs + 1):
        shuffle = generator_for(seed, "classifier epoch", step=epoch)
        for index in epoch_batches(members, batch_size, shuffle):
            yield index, generator_for(seed, "classifier views", step=step)
            step += 1


def last_and_best(records: list[Epoch]) -> dict[str, Any]:
    """The result: top-1 and top-5 of the last epoch. The best epoch has entries of its own.

    The 2020 code reported the best top-1 of all epochs on the test split, with the last top-5.
    """
    last, best = records[-1], max(records, key=lambda record: record.top1)
    return {
        **rounded(last.top1, last.top5),
        "reported": "last epoch",
        "best_top1": best.top1,
        "best_epoch": best.epoch,
        "best_is": "the highest of all epochs on the test split: a choice on it, not a result",
        "loss": round(last.loss, 4),
    }
