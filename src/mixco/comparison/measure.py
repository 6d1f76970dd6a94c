"""Encoders measured with labels: which test images each gets right, with all and with few labels."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mixco.data.datasets.subsets import with_labels
from mixco.data.image_list import ImageList
from mixco.embeddings.features import on_one_device
from mixco.embeddings.knn import knn_scores
from mixco.encoders.loading import LoadedEncoder
from mixco.evaluation.classifier import Classifier, load_classifier
from mixco.evaluation.linear_probe import fit_linear_probe
from mixco.evaluation.protocols import evaluate_linear
from mixco.evaluation.task import Task
from mixco.models.encoder import build_backbone, feature_dim
from mixco.runtime.device import send
from mixco.runtime.files import shown
from mixco.settings.commands import EvaluationConfig, LinearConfig

ALL = "100%"
SHARES = (ALL, "10%", "1%")
FEWEST = 2  # images of each class that a linear probe needs: one to fit, one to choose by
MEASURES = ("knn", "linear")

Answers = dict[str, dict[str, Tensor]]
"""By the measure and the share of the labels: which test images are right, bool [M]."""


@dataclass(frozen=True)
class Measured:
    """What one encoder answers, and how long it took."""

    answers: Answers
    seconds: float

    @property
    def images(self) -> int:
        """M, of the test images."""
        return len(next(iter(next(iter(self.answers.values())).values())))


@dataclass(frozen=True)
class Labels:
    """The labels that may be used, at each share."""

    kept: Mapping[str, ImageList]
    """By the share: the train images that keep their labels."""
    left_out: tuple[str, ...]
    """Sentences: the shares that have too few images, and why."""


def labels_of(train: ImageList) -> Labels:
    """The shares of the train split at which each class keeps enough images.

    Raises UserError as `with_labels` does.
    """
    kept, left_out = {}, []
    for share in SHARES:
        part = with_labels(train, None if share == ALL else share)
        assert part.labels is not None
        counts = torch.tensor(part.labels).bincount(minlength=len(part.classes))
        if counts.min() >= FEWEST:
            kept[share] = part
            continue
        few = shown(part.classes[int(counts.argmin())])
        left_out.append(
            f"{share} of the labels: left out, since class {few} keeps {int(counts.min())} labelled "
            f"image; a linear probe needs {FEWEST} of each class."
        )
    return Labels(kept, tuple(left_out))


def measure(
    task: Task,
    encoder: LoadedEncoder,
    labels: Labels,
    *,
    k: int,
    temperature: float,
    seed: int,
) -> Measured:
    """kNN and linear probe of an encoder at each share of the labels; its features are computed once.

    task: images for the encoder's size and channels. k, temperature: of kNN; seed: of the probe.
    """
    began, task = time.perf_counter(), replace(task, encoder=encoder)
    train, rows = task.outputs(encoder.backbone, task.train)
    test, asked = task.outputs(encoder.backbone, task.test)
    train, test = on_one_device(train, test)
    encoder.backbone.cpu()
    bank_labels, truth = task.train.labels[rows], task.test.labels[asked]
    files, classes = task.train.images.files, len(task.classes)
    answers: Answers = {kind: {} for kind in MEASURES}
    for share, part in labels.kept.items():
        names = set(part.files)
        mask = torch.tensor([files[row] in names for row in rows.tolist()])
        bank, own = train[mask], bank_labels[mask]
        votes = knn_scores(bank, own, test, classes=classes, k=k, temperature=temperature)
        probe = fit_linear_probe(bank, own, classes=classes, names=task.classes, seed=seed)
        for kind, scores in (("knn", votes), ("linear", probe.scores(test))):
            answers[kind][share] = right(scores, truth)
    return Measured(answers, time.perf_counter() - began)


def right(scores: Tensor, labels: Tensor) -> Tensor:
    """bool [M] on the CPU: is the label the highest of scores [M, C]? As in `topk_accuracy`, a tie is
    wrong, and the labels may be on any device."""
    own = scores.gather(1, send(labels, scores.device)[:, None])
    return ((scores >= own).sum(1) == 1).cpu()


def epochs_for(seen: float, labelled: int, tested: int) -> int:
    """Epochs of training with labels that cost about as much as seeing so many images.

    After each epoch `tested` images are tested, and a forward pass takes a third of a training step.
    """
    return max(1, round(seen / (labelled + tested / 3)))


def from_scratch(
    task: Task, evaluation: EvaluationConfig, folder: Path, *, share: str, epochs: int
) -> Measured:
    """Train the task's network from random weights with the labels, as `mixco linear --supervised`.

    evaluation: its encoder gives architecture and size. folder: for files, which are removed at the
    end. share: of the labels.

    Returns the answers after the last epoch, as of the measure "supervised".
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as place:
        config = replace(evaluation, out=Path(place), labels=None if share == ALL else share)
        result = evaluate_linear(
            LinearConfig(config, protocol="paper", supervised=True, epochs=epochs)
        )
        about = task.encoder.description
        backbone = build_backbone(
            about.arch,
            about.size,
            about.stem,  # type: ignore[arg-type]
            channels=about.channels,
        )
        model = Classifier(backbone, feature_dim(backbone, about.size), len(task.classes), 0)
        load_classifier(Path(place) / result["classifier"], model, task.classes)
    scores, asked = task.outputs(model, task.test)
    answers = {"supervised": {share: right(scores, task.test.labels[asked])}}
    return Measured(answers, time.perf_counter() - began)
