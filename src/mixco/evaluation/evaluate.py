"""The two evaluations of a frozen encoder, as commands: load, compute features, score, write."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixco.checkpoint import LoadedEncoder, load_encoder
from mixco.config import EvaluationConfig, KNNConfig, LinearConfig
from mixco.data.loading import Images, canvases, open_images
from mixco.data.sources import list_images
from mixco.data.streaming import StreamedImages
from mixco.errors import UserError
from mixco.evaluation.features import features_of
from mixco.evaluation.knn import knn_scores, neighbours, topk_accuracy
from mixco.evaluation.linear import fit_linear_probe
from mixco.hardware import memory_bytes, pick_device, pick_dtype, processors
from mixco.pictures import draw_neighbours
from mixco.progress import counting, say
from mixco.results import add_result, read_json


@dataclass(frozen=True)
class Features:
    """Features of the labelled train and test split, and where they came from."""

    encoder: LoadedEncoder
    train: Images
    test: Images
    train_features: Tensor
    """float32 [N, D]"""
    test_features: Tensor
    """float32 [M, D]"""

    def describe(self) -> dict[str, Any]:
        """What every result says of itself."""
        return {
            "checkpoint": self.encoder.path.name,
            "training": self.encoder.description.training,
            "weights_matched": self.encoder.matched,
            "data": self.test.source.name,
            "train_images": len(self.train),
            "test_images": len(self.test),
        }


def compute_features(config: EvaluationConfig) -> Features:
    """Load the encoder, find the labelled images, compute their features once.

    Raises UserError for a missing or mismatching checkpoint: random features are never evaluated.
    """
    if (config.run is None) == (config.checkpoint is None):
        raise UserError("give either --run RUN_DIR or --checkpoint FILE")
    data, data_path = config.data, config.data_path
    if config.run is not None:
        encoder = load_encoder(config.run)
        trained_on = read_json(config.run / "config.json")["data"]
        data_path = data_path or (Path(p) if (p := trained_on["data_path"]) and not data else None)
        data = data or trained_on["data"]
    else:
        assert config.checkpoint is not None
        encoder = load_encoder(config.checkpoint)
    if data is None:
        raise UserError("--checkpoint needs --data, the labelled images to evaluate on")
    description = encoder.description
    size = config.size or description.size
    device = pick_device(config.device)
    dtype = pick_dtype(device, config.precision)
    say(
        f"{encoder.path}: {description.training}; all {encoder.matched} weights matched "
        f"{description.arch}"
    )

    def of_split(split: str) -> tuple[Images, Tensor]:
        cache = config.cache.expanduser()
        source = list_images(data, data_path, split, cache)
        with counting(f"packing {source.name}") as on_progress:
            images = open_images(
                source,
                size=size,
                cache=cache,
                loading=config.loading,
                workers=processors() if config.workers is None else config.workers,
                memory=memory_bytes(),
                on_progress=on_progress,
            )
        with counting(f"features of {source.name}") as on_progress:
            features, _ = features_of(
                encoder.backbone,
                images,
                torch.arange(len(images)),
                size=size,
                mean=description.mean,
                std=description.std,
                device=device,
                dtype=dtype,
                on_unreadable=lambda file, reason: say(f"left out: {source.root / file}: {reason}"),
                on_progress=on_progress,
            )
        if isinstance(images, StreamedImages) and images.unreadable:
            images = images.without_unreadable()
        return images, features

    train, train_features = of_split("train")
    test, test_features = of_split("test")
    return Features(encoder, train, test, train_features, test_features)


def evaluate_knn(config: KNNConfig, features: Features | None = None) -> dict[str, Any]:
    """Weighted kNN of the test split among the train split; top-1 in percent.

    Written into the run's results.json and neighbours.png, when there is a run.
    features: those of an evaluation before, so that they are not computed twice.
    """
    f = features or compute_features(config.evaluation)
    train_labels, test_labels = _labels(f.train), _labels(f.test)
    scores = knn_scores(
        f.train_features,
        train_labels,
        f.test_features,
        classes=len(f.train.classes),
        k=config.k,
        temperature=config.temperature,
    )
    result = {
        "top1": round(topk_accuracy(scores, test_labels, 1), 2),
        "top5": round(topk_accuracy(scores, test_labels, 5), 2),
        "k": min(config.k, len(train_labels)),
        "temperature": config.temperature,
        **f.describe(),
    }
    if config.evaluation.run is not None:
        add_result(config.evaluation.run, "knn", result)
        show_neighbours(config.evaluation.run / "neighbours.png", f)
    return result


def evaluate_linear(config: LinearConfig, features: Features | None = None) -> dict[str, Any]:
    """A linear probe on the train split, its settings chosen on a held-out part of it; tested once.

    Written into the run's results.json, when there is a run. top1 and top5 in percent.
    """
    f = features or compute_features(config.evaluation)
    probe = fit_linear_probe(
        f.train_features,
        _labels(f.train),
        classes=len(f.train.classes),
        seed=config.evaluation.seed,
        epochs=config.epochs,
    )
    scores = probe.scores(f.test_features)
    result = {
        "top1": round(topk_accuracy(scores, _labels(f.test), 1), 2),
        "top5": round(topk_accuracy(scores, _labels(f.test), 5), 2),
        "learning_rate": probe.learning_rate,
        "weight_decay": probe.weight_decay,
        "selection": "held-out part of the train split",
        "epochs": config.epochs,
        **f.describe(),
    }
    if config.evaluation.run is not None:
        add_result(config.evaluation.run, "linear", result)
    return result


def show_neighbours(path: Path, f: Features, count: int = 8, k: int = 8) -> None:
    """The picture of the nearest train images of some test images, one a class first."""
    test_labels, train_labels = _labels(f.test), _labels(f.train)
    first = [int((test_labels == c).nonzero()[0]) for c in range(min(count, len(f.test.classes)))]
    chosen = torch.tensor(first)
    similarities, index = neighbours(f.train_features, f.test_features[chosen], k)
    side = 2 * f.encoder.description.size
    draw_neighbours(
        path,
        canvases(f.test, chosen, side)[0],
        torch.stack([canvases(f.train, row, side)[0] for row in index]),
        similarities,
        train_labels[index] == test_labels[chosen][:, None],
        [f.test.classes[int(c)] for c in test_labels[chosen]],
        f"{f.encoder.description.training}: the nearest training images of {len(chosen)} test images",
    )


def both(config: EvaluationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """kNN and linear probe on the same features."""
    features = compute_features(config)
    return (
        evaluate_knn(KNNConfig(config), features),
        evaluate_linear(dataclasses.replace(LinearConfig(), evaluation=config), features),
    )


def _labels(images: Images) -> Tensor:
    assert images.labels is not None  # train and test splits are labelled
    return images.labels
