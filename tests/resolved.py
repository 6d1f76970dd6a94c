"""The resolved settings of a run, without its images."""

from typing import Any

from configs import pretrain_config

from mixco.settings.config import Settings
from mixco.settings.resolve import Facts, resolve
from mixco.views.augment import IMAGENET_MEAN, IMAGENET_STD

OF_IMAGES: dict[str, Any] = {
    "size": 32,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "channels": 3,
    "bits": 8,
    "loading": "packed",
}


def resolved(images: int = 1600, **flat: Any) -> Settings:
    """Everything that is not given is chosen, as for so many images of 32 px on one CPU."""
    return resolve(pretrain_config(**{**OF_IMAGES, **flat}), Facts(images))
