"""What is evaluated: an encoder, and the labelled images that it is asked about."""

import math
import os
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixco.data.datasets import list_images
from mixco.data.datasets.download import download
from mixco.data.datasets.subsets import subset_name, with_labels
from mixco.data.images import Images, refuse_lost_classes
from mixco.data.loading import open_images
from mixco.embeddings.features import features_of
from mixco.embeddings.knn import topk_accuracy
from mixco.encoders.checkpoint import LoadedEncoder, load_encoder
from mixco.runtime.device import (
    Compute,
    keep_freed_memory,
    memory_bytes,
    pick_device,
    pick_dtype,
    processors,
)
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError
from mixco.runtime.files import one_at_a_time, shown
from mixco.runtime.progress import counting, downloading, say
from mixco.runtime.run_folder import add_result, read_config, write_confusions
from mixco.settings.config import EvaluationConfig
from mixco.views.augment import Input


@dataclass(frozen=True)
class Task:
    """An encoder, the labelled images that it is asked about, and where the answers go."""

    encoder: LoadedEncoder
    train: Images
    test: Images
    labels: str | None
    """Which subset of the train split this is; None for all of it."""
    compute: Compute
    folder: Path | None
    """Of results.json; None when nothing is kept."""
    recipe_lr: float | None
    """The rate that the run's recipe has for linear evaluation as published; None where it has none."""
    suffix: str
    """Of the keys in results.json: "" for the run's own data and all labels, else for example
    "-10percent", "@photos", "-10percent@photos"."""

    @property
    def input(self) -> Input:
        return self.encoder.description.input

    def describe(self) -> dict[str, Any]:
        """What every result says of itself."""
        return {
            "checkpoint": self.encoder.path.name,
            "training": self.encoder.description.training,
            "weights_matched": self.encoder.matched,
            "data": self.test.source.name,
            "labels": self.labels or "all",
            "size": self.input.size,
            "train_images": self.train.readable,
            "test_images": self.test.readable,
        }

    def outputs(
        self, network: nn.Module, images: Images, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What a network gives for the test views of images: float32 [n, D] on the CPU.

        index: int64, of some of them; None for all.

        Returns also the indices [n] of those that can be read, all but for some streamed ones.
        """
        with counting(f"features of {images.source.name}") as on_progress:
            outputs, seen = features_of(
                network,
                images,
                torch.arange(len(images)) if index is None else index,
                self.input,
                compute=self.compute,
                on_unreadable=tell_unreadable,
                on_progress=on_progress,
            )
        if index is None:
            refuse_lost_classes(images.source, labels_of(images)[seen])
        return outputs, seen

    def head_rate(self, optimizer: str, count: int = 1024) -> float:
        """A learning rate for a linear layer on the encoder's features, from their scale alone.

        What a rate does depends on the features' squared length, 1000 for one encoder and 1 for
        another; the 30 and 3 of the published recipes fit theirs. For SGD 30 over the mean squared
        length, for Adam, whose steps do not grow with the gradient, 1 over the root of it: the best
        of a range on held-out images of the sample.
        """
        count = min(count, len(self.train))
        index = torch.linspace(0, len(self.train) - 1, count).long()
        features, _ = self.outputs(self.encoder.backbone, self.train, index)
        length = max(features.square().sum(1).mean().item(), 1e-12)
        return float(f"{30 / length if optimizer == 'sgd' else length**-0.5:.3g}")

    def write(self, kind: str, result: dict[str, Any]) -> None:
        """Into results.json, where there is a folder. Of several processes the first one writes."""
        if self.folder is not None and launch_env().rank == 0:
            add_result(self.folder, kind + self.suffix, result)

    def write_confusions(self, kind: str, scores: Tensor, labels: Tensor) -> None:
        """What test images were taken for, beside results.json; scores [M, C], labels int64 [M]."""
        if self.folder is not None and launch_env().rank == 0:
            guesses = scores.argmax(1).tolist()
            counts = Counter(
                (self.test.classes[truth], self.train.classes[guess])
                for truth, guess in zip(labels.tolist(), guesses, strict=True)
            )
            write_confusions(self.folder, kind + self.suffix, dict(sorted(counts.items())))


def load_task(config: EvaluationConfig) -> Task:
    """Load the encoder, find and pack the labelled images.

    Raises UserError for a missing or mismatching checkpoint: random features are never evaluated.
    """
    if (config.run is None) == (config.checkpoint is None):
        raise UserError("give either --run RUN_DIR or --checkpoint FILE")
    data, data_path = config.data, config.data_path
    given = config.run or config.checkpoint
    assert given is not None
    encoder = load_encoder(given, arch=config.arch, stem=config.stem, size=config.size)
    own, recipe_lr = False, None
    if config.run is not None:
        trained_on, trained_at, recipe_lr = _of_run(config.run)
        data_path = data_path or (trained_at if not data else None)
        data = data or trained_on
        own = _same_data(data, trained_on)
    if data is None:
        raise UserError("--checkpoint needs --data, the labelled images to evaluate on")
    size = encoder.description.size
    here = launch_env()
    device = pick_device(config.device, here.local_rank)
    keep_freed_memory(device)
    say(
        f"{encoder.path}: {encoder.description.training}; all {encoder.matched} weights matched "
        f"{encoder.description.arch}"
    )

    for line in encoder.report:
        say(line)

    def of_split(split: str) -> Images:
        cache = config.cache.expanduser()
        source = list_images(data, data_path, split, cache)
        if split == "train":
            source = with_labels(source, config.labels)
        with counting(f"packing {source.name}") as on_progress:
            images = open_images(
                source,
                size=size,
                cache=cache,
                loading=config.loading,
                workers=processors() if config.workers is None else config.workers,
                memory=memory_bytes(),
                channels=encoder.description.channels,
                on_progress=on_progress,
            )
        for file, reason in images.unreadable_files:
            tell_unreadable(shown(file), reason)
        return images

    several = one_at_a_time(config.cache.expanduser() / ".several.lock")
    with several if here.processes > 1 else nullcontext():
        if config.download:
            with downloading(data) as on_progress:
                download(data, data_path, tell=say, on_progress=on_progress)
        train, test = of_split("train"), of_split("test")
    folder = config.out or config.run
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be made ({error.strerror})") from None
        if not os.access(folder, os.W_OK):  # told before the work, not after it
            raise UserError(f"{folder}: cannot be written; make it writable, or give another --out")
    suffix = "" if config.labels is None else f"-{subset_name(config.labels)}"
    if not own:
        suffix += f"@{test.source.name.split('/')[0]}"
    return Task(
        encoder=encoder,
        train=train,
        test=test,
        labels=config.labels,
        compute=Compute(device, pick_dtype(device, config.precision)),
        folder=folder,
        recipe_lr=recipe_lr,
        suffix=suffix,
    )


def _of_run(run: Path) -> tuple[str, Path | None, float | None]:
    """The --data, --data-path and --linear-lr of a run. Raises UserError for a damaged config.json."""
    config = read_config(run)
    data, path = (config["data"].get(key) for key in ("data", "data_path"))
    rate = config["run"].get("linear_lr")
    texts = isinstance(data, str) and isinstance(path, str | None)
    if not texts or not (rate is None or (type(rate) in (int, float) and 0 < rate < math.inf)):
        raise UserError(
            f"{run / 'config.json'}: damaged, its data, data_path or linear_lr cannot be; restore it, "
            "or give the encoder as --checkpoint"
        )
    return data, Path(path) if path else None, rate


def labels_of(images: Images) -> Tensor:
    assert images.labels is not None  # train and test splits are labelled
    return images.labels


def tell_unreadable(file: str, reason: str) -> None:
    say(f"warning: {file} cannot be read ({reason}); left out")


def accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    return topk_accuracy(scores, labels, 1), topk_accuracy(scores, labels, 5)


def _same_data(first: str, second: str) -> bool:
    """Is it one data set, by its name or by whatever path of its folder?"""
    return first == second or Path(first).expanduser().resolve() == Path(second).resolve()
