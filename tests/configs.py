"""One factory of settings for all tests: by the command line's names, as Python's keywords have them."""

from pathlib import Path
from typing import Any, TypeVar

from mixco.methods import METHODS
from mixco.settings.commands import EvaluationConfig
from mixco.settings.config import PretrainConfig, Settings
from mixco.settings.parse import with_settings
from mixco.settings.resolve import Facts, resolve, to_values

T = TypeVar("T")

SEEN: dict[str, Any] = {
    "arch": "resnet18",
    "size": 64,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "channels": 3,
    "bits": 8,
    "loading": "packed",
    "precision": "float32",
    "memory_format": "channels_last",
}
"""What a run finds out from its images and its machine, before the rest is chosen."""


def config_of(kind: type[T], **settings: Any) -> T:
    """A config of any kind, such as KNNConfig; unknown names are an error. On the CPU unless given."""
    return with_settings(kind(), {"device": "cpu", **settings}, kind.__name__)


def pretrain_config(**settings: Any) -> PretrainConfig:
    """The settings of a run on the CPU, on the sample. Give `cache`, and `out` where it is begun.

    In float32, unless it says otherwise: which format is fastest is found by timing, and may change.
    """
    return config_of(PretrainConfig, **{"data": "sample", "precision": "float32", **settings})


def small_head(method: str) -> dict[str, int]:
    """Settings of a small head and predictor for bases whose usual ones are wide; where time counts."""
    base = METHODS[method]
    if base.head == "mlp":
        return {}
    predicts = hasattr(base.options, "predictor_hidden")
    return {"head_hidden": 64, "dim": 32, **({"predictor_hidden": 16} if predicts else {})}


def evaluation_config(run: Path | None = None, **settings: Any) -> EvaluationConfig:
    """Which encoder is evaluated on which images, on the CPU, in float32."""
    return config_of(EvaluationConfig, **{"run": run, "precision": "float32", **settings})


def with_images(config: PretrainConfig) -> PretrainConfig:
    """The config as if its images had been looked at: RGB of 64 px, unless it says otherwise."""
    values = to_values(config)
    unset = {k: v for k, v in SEEN.items() if values[k] in (None, "auto")}
    return with_settings(config, unset, "the images")


def resolved(images: int = 1600, **settings: Any) -> Settings:
    """The settings of a run on so many images, with everything chosen."""
    return resolve(with_images(pretrain_config(**settings)), Facts(images))
