"""The task of an evaluation: an encoder, and the labelled images that it is measured on."""

import dataclasses
import math
import os
import shlex
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixco.data.datasets import Where, places_in
from mixco.data.datasets.download import download
from mixco.data.datasets.subsets import subset_name, with_labels
from mixco.data.image_list import ImageList
from mixco.data.images import Images, refuse_lost_classes
from mixco.data.loading import open_images
from mixco.data.run_images import are_own, find_images, where_in
from mixco.embeddings.features import fastest_compute, features_of
from mixco.embeddings.knn import topk_accuracy
from mixco.encoders.checkpoint import EncoderDescription
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.encoders.published import is_published
from mixco.evaluation.doubts import doubts, refuse_one_class
from mixco.runtime.device import (
    Compute,
    keep_freed_memory,
    memory_bytes,
    pick_device,
    processors,
)
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.runtime.locks import one_at_a_time
from mixco.runtime.progress import counting, downloading, say
from mixco.runtime.run_folder import add_result, read_config, write_confusions
from mixco.settings.commands import EvaluationConfig
from mixco.settings.config import label_source
from mixco.views.augmentation import Input


@dataclass(frozen=True)
class Labelled:
    """Images, each with a label."""

    images: Images
    labels: Tensor
    """int64 [N] in [0, classes)"""


@dataclass(frozen=True)
class Task:
    """An encoder, the labelled images that it is measured on, and where the results go."""

    encoder: LoadedEncoder
    train: Labelled
    test: Labelled
    labels: str | None
    """The subset of the train split, as --labels names it; None for all of it."""
    compute: Compute
    folder: Path | None
    """Where results.json is written; None to write nothing."""
    recipe_lr: float | None
    """The rate in the run's recipe for linear evaluation as published; None where it has none."""
    suffix: str
    """Ends the keys in results.json: "" for the run's own data and all labels, else for example
    "-10percent", "@photos", "-10percent@photos"."""

    @property
    def input(self) -> Input:
        return self.encoder.description.input

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.images.classes

    def describe(self) -> dict[str, Any]:
        """The entries that every result has: the encoder and the images."""
        return {
            "checkpoint": self.encoder.path.name,
            "training": self.encoder.description.training,
            "weights_matched": self.encoder.matched,
            "data": self.test.images.source.name,
            "labels": self.labels or "all",
            "classes": len(self.classes),
            "size": self.input.size,
            "train_images": self.train.images.readable,
            "test_images": self.test.images.readable,
        }

    def outputs(
        self, network: nn.Module, split: Labelled, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A network's outputs for the test views of a split: float32 [n, D], on the device if they fit.

        index: int64, a part of the images; None for all.

        Returns also the indices [n] of the images that could be read, on the CPU. Only streamed ones may
        fail.
        """
        images = split.images
        with counting(f"features of {images.source.name}") as on_progress:
            outputs, seen = features_of(
                network,
                images,
                torch.arange(len(images)) if index is None else index,
                self.input,
                compute=self.compute,
                on_unreadable=warn_unreadable,
                on_progress=on_progress,
            )
        if index is None:
            refuse_lost_classes(images.source, split.labels[seen])
        return outputs, seen

    def head_rate(self, optimizer: str, count: int = 1024) -> float:
        """A learning rate for a linear layer on the encoder's features, from their scale alone.

        The effect of a rate depends on the features' mean squared length, which is 1000 for one
        encoder and 1 for another; the published rates of 30 and 3 fit their own encoders. SGD: 30
        over the mean squared length. Adam, whose steps do not grow with the gradient: 1 over its
        root. Both were the best of a range on held-out images of the sample.
        """
        count = min(count, len(self.train.labels))
        index = torch.linspace(0, len(self.train.labels) - 1, count).long()
        features, _ = self.outputs(self.encoder.backbone, self.train, index)
        length = max(features.square().sum(1).mean().item(), 1e-12)
        return float(f"{30 / length if optimizer == 'sgd' else length**-0.5:.3g}")

    def write(self, kind: str, result: dict[str, Any]) -> None:
        """Write into results.json, where there is a folder; only the first process writes."""
        if self.folder is not None and launch_env().rank == 0:
            add_result(self.folder, kind + self.suffix, result)

    def write_confusions(self, kind: str, scores: Tensor, labels: Tensor) -> None:
        """Count predicted classes, beside results.json. scores: [M, C], labels: int64 [M]."""
        if self.folder is not None and launch_env().rank == 0:
            guesses = scores.argmax(1).tolist()
            counts = Counter(
                (self.test.images.classes[truth], self.classes[guess])
                for truth, guess in zip(labels.tolist(), guesses, strict=True)
            )
            write_confusions(self.folder, kind + self.suffix, dict(sorted(counts.items())))


def load_task(config: EvaluationConfig, *, training: bool = False) -> Task:
    """Load the encoder; find the labelled images and pack them; choose number format and memory format.

    training: is the whole network to be trained?

    Raises UserError for a missing or mismatching checkpoint: random features are never evaluated.
    """
    given = [path for path in (config.run, config.checkpoint) if path is not None]
    if len(given) != 1:
        raise UserError("give either --run RUN_DIR or --checkpoint WEIGHTS")
    run = None if config.run is None or is_published(str(config.run)) else config.run
    where = None
    if config.data is not None:
        where = Where(config.data, config.data_path, label_source(config))
    encoder = load_encoder(given[0], **vars(config.encoder))
    cache = config.cache
    own, recipe_lr = False, None
    if run is not None:
        trained_on, recipe_lr = _of_run(run)
        if where is not None:
            own = are_own(run, trained_on, where, cache)
        else:
            own, where = True, trained_on._replace(data_path=config.data_path)
            if config.data_path is None:
                where = find_images(run, trained_on, cache, "--data")
            where = where._replace(labels=label_source(config).over(where.labels))
    if where is None:
        raise UserError("--checkpoint needs --data, the labelled images to evaluate on")
    here = launch_env()
    device = pick_device(config.device, here.local_rank)
    keep_freed_memory(device)
    say(
        f"{encoder.path}: {encoder.description.training}; all {encoder.matched} weights matched "
        f"{encoder.description.arch}"
    )
    for line in encoder.report:
        say(line)

    workers = processors() if config.workers is None else config.workers

    def listed(split: str) -> ImageList:
        source = where.images(
            split,
            cache,
            train_folder=config.train_folder,
            test_folder=config.test_folder,
        )
        for note in source.notes:
            say(note)
        return dataclasses.replace(source, max_unreadable=config.max_unreadable)

    def opened(source: ImageList) -> Labelled:
        return _labelled(
            source, encoder.description, cache=cache, loading=config.loading, workers=workers
        )

    several = one_at_a_time(cache / ".several.lock")
    with several if here.processes > 1 else nullcontext():
        if config.download:
            name = " ".join(places_in(where.data))
            with downloading(name) as on_progress:
                download(name, where.data_path, tell=say, on_progress=on_progress)
        in_train, in_test = listed("train"), listed("test")
        refuse_one_class(in_train)
        in_train = with_labels(in_train, config.labels)
        train, test = opened(in_train), opened(in_test)
    if here.rank == 0:
        for warning in doubts(train.images, test.images, _that_shows_copies(config, where)):
            say(f"warning: {warning}")
    folder = config.out or run
    if folder is not None:
        _check_writable(folder)
    suffix = "" if config.labels is None else f"-{subset_name(config.labels)}"
    if not own:
        suffix += f"@{test.images.source.name.split('/')[0]}"
    return Task(
        encoder=encoder,
        train=train,
        test=test,
        labels=config.labels,
        compute=fastest_compute(encoder, device, config.precision, cache, training=training),
        folder=folder,
        recipe_lr=recipe_lr,
        suffix=suffix,
    )


def _labelled(
    source: ImageList,
    encoder: EncoderDescription,
    *,
    cache: Path,
    loading: Literal["auto", "packed", "streamed"],
    workers: int,
) -> Labelled:
    """Pack or stream a list of labelled images, for this encoder's input."""
    with counting(f"packing {source.name}") as on_progress:
        images = open_images(
            source,
            size=encoder.size,
            cache=cache,
            loading=loading,
            workers=workers,
            memory=memory_bytes(),
            channels=encoder.channels,
            on_progress=on_progress,
        )
    for file, reason in images.unreadable_files:
        warn_unreadable(file, reason)
    if images.labels is None:
        raise UserError(f"{source.name} has no labels; give --data with images in class folders")
    refuse_lost_classes(source, images.labels)
    return Labelled(images, images.labels)


def _that_shows_copies(config: EvaluationConfig, where: Where) -> str | None:
    """The command that shows which test images are in train; None where it finds no such splits."""
    if config.train_folder or config.test_folder or where.labels.table:
        return None
    words = ["mixco", "duplicates", str(config.run or config.checkpoint)]
    if config.data is not None:
        words += ["--among", *places_in(config.data)]
    if config.data_path is not None:
        words += ["--data-path", str(config.data_path)]
    return shlex.join([*words, "--between", "train", "test"])


def _check_writable(folder: Path) -> None:
    """Make the folder; raises UserError now, not after the work, where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written; make it writable, or give another --out")


def _of_run(run: Path) -> tuple[Where, float | None]:
    """The images and the --linear-lr of a run. Raises UserError for a damaged config.json."""
    config = read_config(run)
    rate = config["run"].get("linear_lr")
    if not (rate is None or (type(rate) in (int, float) and 0 < rate < math.inf)):
        raise UserError(
            f"{run / 'config.json'} is damaged: linear_lr has no valid value; restore it, or give the "
            "encoder as --checkpoint"
        )
    return where_in(config["data"]), rate


def warn_unreadable(file: str, reason: str) -> None:
    say(f"warning: {shown(file)} cannot be read ({reason}); left out")


def accuracies(scores: Tensor, labels: Tensor) -> tuple[float, float | None]:
    """Top-1 and top-5 in percent; no top-5 of five classes or fewer, where it would always be 100."""
    top5 = topk_accuracy(scores, labels, 5) if scores.shape[1] > 5 else None
    return topk_accuracy(scores, labels, 1), top5


def rounded(top1: float, top5: float | None) -> dict[str, float]:
    """The entries of a result; without top-5 where there is none."""
    return {"top1": round(top1, 2)} | ({} if top5 is None else {"top5": round(top5, 2)})
