"""One factory of settings for all tests: by the command line's names, as Python's keywords have them."""

from pathlib import Path
from typing import Any, TypeVar

from mixco.settings.config import EvaluationConfig, PretrainConfig
from mixco.settings.resolve import with_settings

T = TypeVar("T")


def config_of(kind: type[T], **settings: Any) -> T:
    """A config of any kind, such as KNNConfig; unknown names are an error. On the CPU unless given."""
    return with_settings(kind(), {"device": "cpu", **settings}, kind.__name__)


def pretrain_config(**settings: Any) -> PretrainConfig:
    """The settings of a run on the CPU. Give `cache`, and `out` where the run is begun."""
    return config_of(PretrainConfig, **settings)


def evaluation_config(run: Path | None = None, **settings: Any) -> EvaluationConfig:
    """Which encoder is evaluated on which images, on the CPU."""
    return config_of(EvaluationConfig, run=run, **settings)
