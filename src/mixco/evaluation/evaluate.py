"""The evaluations of an encoder, as commands: load, find the labelled images, score, write."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixco.checkpoint import LoadedEncoder, load_encoder
from mixco.config import (
    EvaluationConfig,
    FinetuneConfig,
    KNNConfig,
    LinearConfig,
    check_classifier,
)
from mixco.data.packing import PackedImages, pack
from mixco.data.sources import list_images
from mixco.data.subsets import subset_name, with_labels
from mixco.data.views import crop_and_flip, evaluation_view
from mixco.errors import UserError
from mixco.evaluation.classifier import (
    Classifier,
    load_classifier,
    save_classifier,
    train_classifier,
)
from mixco.evaluation.features import extract_features
from mixco.evaluation.knn import knn_scores, neighbours, topk_accuracy
from mixco.evaluation.linear import fit_linear_probe
from mixco.hardware import describe, pick_device, pick_dtype
from mixco.models.encoder import build_backbone, feature_dim
from mixco.pictures import draw_neighbours
from mixco.progress import counting, say
from mixco.results import add_result, read_json


@dataclass(frozen=True)
class Task:
    """An encoder, the labelled images that it is asked about, and where the answers go."""

    encoder: LoadedEncoder
    train: PackedImages
    test: PackedImages
    labels: str | None
    """Which subset of the train split this is; None for all of it."""
    size: int
    device: torch.device
    dtype: torch.dtype
    folder: Path | None
    """Of results.json; None when nothing is kept."""
    suffix: str
    """Of the keys in results.json: "" for the run's own data and all labels, else for example
    "-10percent", "@photos", "-10percent@photos"."""

    def describe(self) -> dict[str, Any]:
        """What every result says of itself."""
        return {
            "checkpoint": self.encoder.path.name,
            "training": self.encoder.description.training,
            "weights_matched": self.encoder.matched,
            "data": self.test.source.name,
            "labels": self.labels or "all",
            "size": self.size,
            "train_images": len(self.train.images),
            "test_images": len(self.test.images),
        }

    def outputs(
        self,
        network: nn.Module,
        packed: PackedImages,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """What a network gives for the test views of all images: float32 [N, D] on the CPU."""
        description = self.encoder.description

        def view(images: Tensor, extents: Tensor) -> Tensor:
            return evaluation_view(
                images, extents, self.size, description.mean, description.std, self.dtype
            )

        return extract_features(
            network,
            packed.images,
            view,
            packed.extents,
            device=self.device,
            dtype=self.dtype,
            on_progress=on_progress,
        )

    def features(self, packed: PackedImages) -> Tensor:
        """Of the encoder: float32 [N, D]."""
        with counting(f"features of {packed.source.name}") as on_progress:
            return self.outputs(self.encoder.backbone, packed, on_progress)

    def write(self, kind: str, result: dict[str, Any]) -> None:
        """Into results.json, where there is a folder."""
        if self.folder is not None:
            add_result(self.folder, kind + self.suffix, result)


@dataclass(frozen=True)
class Features:
    """Features of the labelled train and test split, and where they came from."""

    task: Task
    train_features: Tensor
    """float32 [N, D]"""
    test_features: Tensor
    """float32 [M, D]"""


def load_task(config: EvaluationConfig) -> Task:
    """Load the encoder, find and pack the labelled images.

    Raises UserError for a missing or mismatching checkpoint: random features are never evaluated.
    """
    if (config.run is None) == (config.checkpoint is None):
        raise UserError("give either --run RUN_DIR or --checkpoint FILE")
    data, data_path = config.data, config.data_path
    own = False
    if config.run is not None:
        encoder = load_encoder(config.run)
        trained_on = read_json(config.run / "config.json")["data"]
        data_path = data_path or (Path(p) if (p := trained_on["data_path"]) and not data else None)
        data = data or trained_on["data"]
        own = _same_data(data, trained_on["data"])
    else:
        assert config.checkpoint is not None
        encoder = load_encoder(config.checkpoint)
    if data is None:
        raise UserError("--checkpoint needs --data, the labelled images to evaluate on")
    size = config.size or encoder.description.size
    device = pick_device(config.device)
    say(
        f"{encoder.path}: {encoder.description.training}; all {encoder.matched} weights matched "
        f"{encoder.description.arch}"
    )

    def of_split(split: str) -> PackedImages:
        source = list_images(data, data_path, split)
        if split == "train":
            source = with_labels(source, config.labels)
        with counting(f"packing {source.name}") as on_progress:
            return pack(source, size=size, cache=config.cache.expanduser(), on_progress=on_progress)

    train, test = of_split("train"), of_split("test")
    folder = config.out or config.run
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if config.labels is None else f"-{subset_name(config.labels)}"
    if not own:
        suffix += f"@{test.source.name.split('/')[0]}"
    return Task(
        encoder=encoder,
        train=train,
        test=test,
        labels=config.labels,
        size=size,
        device=device,
        dtype=pick_dtype(device, config.precision),
        folder=folder,
        suffix=suffix,
    )


def compute_features(config: EvaluationConfig) -> Features:
    """The task's features, computed once for all evaluations that need them."""
    task = load_task(config)
    return Features(task, task.features(task.train), task.features(task.test))


def evaluate_knn(config: KNNConfig, features: Features | None = None) -> dict[str, Any]:
    """Weighted kNN of the test split among the train split; top-1 in percent.

    Written into the run's results.json and neighbours.png, when there is a run.
    features: those of an evaluation before, so that they are not computed twice.
    """
    f = features or compute_features(config.evaluation)
    train_labels, test_labels = _labels(f.task.train), _labels(f.task.test)
    scores = knn_scores(
        f.train_features,
        train_labels,
        f.test_features,
        classes=len(f.task.train.classes),
        k=config.k,
        temperature=config.temperature,
    )
    top1, top5 = _accuracies(scores, test_labels)
    result = {
        "top1": round(top1, 2),
        "top5": round(top5, 2),
        "k": min(config.k, len(train_labels)),
        "temperature": config.temperature,
        **f.task.describe(),
    }
    f.task.write("knn", result)
    if f.task.folder is not None:
        show_neighbours(f.task.folder / f"neighbours{f.task.suffix}.png", f)
    return result


def evaluate_linear(config: LinearConfig, features: Features | None = None) -> dict[str, Any]:
    """A linear classifier on the frozen encoder by either protocol; or the supervised baseline.

    Written into the run's results.json, when there is a run. top1 and top5 in percent.
    features: for the fast protocol, those of an evaluation before.
    """
    check_classifier(config)
    if config.protocol == "paper":
        return _evaluate_as_published(config)
    f = features or compute_features(config.evaluation)
    probe = fit_linear_probe(
        f.train_features,
        _labels(f.task.train),
        classes=len(f.task.train.classes),
        seed=config.evaluation.seed,
        epochs=config.epochs,
    )
    top1, top5 = _accuracies(probe.scores(f.test_features), _labels(f.task.test))
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
    return result


def _evaluate_as_published(config: LinearConfig) -> dict[str, Any]:
    """Linear evaluation by SGD on augmented images, or the same network from scratch."""
    sgd, training = config.classifier.optimizer == "sgd", config.classifier
    if config.supervised:
        lr = training.lr or (0.1 * training.batch_size / 256 if sgd else 1e-3)
        decay = 5e-4 if training.weight_decay is None else training.weight_decay
    else:
        lr, decay = training.lr or (3.0 if sgd else 1e-2), training.weight_decay or 0.0
    return _train_and_test(
        config,
        "supervised" if config.supervised else "linear_paper",
        lr=lr,
        head_lr=lr,
        weight_decay=decay,
        schedule="steps",
        milestones=config.milestones,
    )


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
        head_lr=config.head_lr or 10 * lr,
        weight_decay=training.weight_decay or 0.0,
        schedule="cosine",
        milestones=(),
    )


def _train_and_test(
    config: LinearConfig | FinetuneConfig,
    kind: str,
    *,
    lr: float,
    head_lr: float,
    weight_decay: float,
    schedule: str,
    milestones: tuple[float, ...],
) -> dict[str, Any]:
    """Train a classifier, save it, test it after each epoch; or test the one that was saved.

    kind: "linear_paper" (the encoder is frozen), "supervised" (from random weights), "finetune".
    """
    evaluation, training = config.evaluation, config.classifier
    if evaluation.run is None and evaluation.out is None:
        raise UserError("give --out, the folder that results.json and the classifier go to")
    task = load_task(evaluation)
    assert task.folder is not None
    encoder, frozen = task.encoder.description, kind == "linear_paper"
    backbone = task.encoder.backbone
    if kind == "supervised":
        backbone = build_backbone(encoder.arch, task.size, encoder.stem, evaluation.seed)  # type: ignore[arg-type]
    model = Classifier(
        backbone, feature_dim(backbone, task.size), len(task.train.classes), evaluation.seed
    )
    stem = "classifier" if frozen else kind
    path = task.folder / f"{stem}{task.suffix}.safetensors"
    test_labels = _labels(task.test)
    # Of a frozen encoder the test features stay the same: they are computed once.
    frozen_features = task.features(task.test) if frozen else None

    @torch.no_grad()
    def test() -> tuple[float, float]:
        if frozen_features is None:
            return _accuracies(task.outputs(model, task.test), test_labels)
        return _accuracies(model.classify(frozen_features.to(task.device)).cpu(), test_labels)

    if config.evaluate:
        load_classifier(path, model, task.test.classes)
        model.to(task.device)
        top1, top5 = test()
        return {"top1": round(top1, 2), "top5": round(top5, 2), **task.describe()}

    say(
        f"{kind}: {encoder.arch} at {task.size} px, {len(task.train.images):,} labelled images, "
        f"{config.epochs} epochs, {describe(task.device)}"
    )
    started = time.perf_counter()
    records = train_classifier(
        model,
        task.train,
        test,
        frozen=frozen,
        augmentation=crop_and_flip(task.size, mean=encoder.mean, std=encoder.std),
        optimizer=training.optimizer,
        lr=lr,
        head_lr=head_lr,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=milestones,
        batch_size=training.batch_size,
        epochs=config.epochs,
        seed=evaluation.seed,
        device=task.device,
        dtype=task.dtype,
        name=kind,
    )
    save_classifier(path, model, task.train.classes, whole=not frozen)
    last, best = records[-1], max(records, key=lambda record: record.top1)
    result = {
        "top1": last.top1,
        "top5": last.top5,
        "reported": "last epoch",
        "best_top1": best.top1,
        "best_epoch": best.epoch,
        "best_is": "the highest of all epochs on the test split: a choice on it, not a result",
        "loss": round(last.loss, 4),
        "optimizer": training.optimizer,
        **({"learning_rate": lr} if head_lr == lr else {"learning_rate": lr, "head_lr": head_lr}),
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": list(milestones),
        "batch_size": min(training.batch_size, len(task.train.images)),
        "epochs": config.epochs,
        "seed": evaluation.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "classifier": path.name,
        **task.describe(),
    }
    if kind == "supervised":
        result |= {"checkpoint": None, "training": f"random weights, seed {evaluation.seed}"}
    task.write(kind, result)
    return result


def show_neighbours(path: Path, f: Features, count: int = 8, k: int = 8) -> None:
    """The picture of the nearest train images of some test images, one a class first."""
    test_labels, train_labels = _labels(f.task.test), _labels(f.task.train)
    first = [
        int((test_labels == c).nonzero()[0]) for c in range(min(count, len(f.task.test.classes)))
    ]
    chosen = torch.tensor(first)
    similarities, index = neighbours(f.train_features, f.test_features[chosen], k)
    draw_neighbours(
        path,
        f.task.test.images[chosen],
        f.task.train.images[index],
        similarities,
        train_labels[index] == test_labels[chosen][:, None],
        [f.task.test.classes[int(c)] for c in test_labels[chosen]],
        f"{f.task.encoder.description.training}: the nearest training images of {len(chosen)} "
        "test images",
    )


def both(config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """kNN and linear probe on the same features."""
    features = compute_features(config)
    return (
        evaluate_knn(KNNConfig(config), features),
        evaluate_linear(dataclasses.replace(LinearConfig(), evaluation=config), features),
    )


def _labels(packed: PackedImages) -> Tensor:
    assert packed.labels is not None  # train and test splits are labelled
    return packed.labels


def _accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    return topk_accuracy(scores, labels, 1), topk_accuracy(scores, labels, 5)


def _same_data(first: str, second: str) -> bool:
    """Is it one data set, by its name or by whatever path of its folder?"""
    return first == second or Path(first).expanduser().resolve() == Path(second).resolve()
