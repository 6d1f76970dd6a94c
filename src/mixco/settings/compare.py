"""The settings of `mixco compare`."""

import dataclasses
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from mixco.data.datasets import Data
from mixco.runtime.setting import declared, setting
from mixco.settings.commands import EvaluationConfig, KNNConfig
from mixco.settings.config import Device, Loading, Precision


def _as_in(config: type, name: str) -> Any:
    """A setting as another command declares it."""
    field = next(field for field in dataclasses.fields(config) if field.name == name)
    return dataclasses.field(default=field.default, metadata={"setting": declared(field)})


@dataclass(frozen=True)
class CompareConfig:
    """`mixco compare`: was the pretraining worth it? Runs beside what they began with."""

    runs: tuple[Path, ...] = setting(
        MISSING,
        "Run folders. Runs that differ only in their seed are one row.",
        metavar="RUN ...",
    )
    data: Data | None = _as_in(EvaluationConfig, "data")
    data_path: Path | None = _as_in(EvaluationConfig, "data_path")
    labels_from: Path | None = _as_in(EvaluationConfig, "labels_from")
    path_column: str | None = _as_in(EvaluationConfig, "path_column")
    label_column: str | None = _as_in(EvaluationConfig, "label_column")
    split_column: str | None = _as_in(EvaluationConfig, "split_column")
    train_folder: str | None = _as_in(EvaluationConfig, "train_folder")
    test_folder: str | None = _as_in(EvaluationConfig, "test_folder")
    max_unreadable: float = _as_in(EvaluationConfig, "max_unreadable")
    size: int | None = setting(
        None, "Side of the images for every row, in pixels.", chosen="each encoder"
    )
    supervised: bool = setting(
        True,
        "Also train the same network from scratch with the labels. It takes about half as long as the "
        "pretraining, for each share of the labels.",
    )
    supervised_epochs: int | None = setting(
        None,
        "Its epochs with all labels; with fewer labels more, so that it takes as long.",
        at_least=1,
        chosen="the pretraining: about as many images as it saw",
    )
    k: int = _as_in(KNNConfig, "k")
    temperature: float = _as_in(KNNConfig, "temperature")
    most_images: int = setting(
        2000, "Images that are looked at where there are no labels, all over the list.", at_least=10
    )
    markdown: bool = setting(False, "Print Markdown.", affects="nothing")
    out: Path | None = setting(
        None, "The folder for compare.json.", chosen="the first run", affects="nothing"
    )
    cache: Path = _as_in(EvaluationConfig, "cache")
    loading: Loading = _as_in(EvaluationConfig, "loading")
    workers: int | None = _as_in(EvaluationConfig, "workers")
    device: Device = _as_in(EvaluationConfig, "device")
    precision: Precision = _as_in(EvaluationConfig, "precision")
    seed: int = _as_in(EvaluationConfig, "seed")
