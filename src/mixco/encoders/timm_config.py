"""config.json beside a file of weights, as timm writes it for the Hugging Face hub."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from timm import is_model


class TimmConfig(NamedTuple):
    """What weights are of, and the images that they were trained for."""

    arch: str
    """timm's name of the architecture, without a tag."""
    size: int
    """The side of the images in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """mean and std have one number for each channel, of pixels in [0, 1]."""


def timm_config(weights: Path, arch: str | None) -> TimmConfig | None:
    """What config.json says of the weights in its folder.

    arch: of the weights, where it is known. None where there is no such file, where another program
    wrote it, or where it is of another architecture.
    """
    try:
        values = json.loads((weights.parent / "config.json").read_text("utf-8"))
        found = _read(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if found and arch in (None, found.arch) else None


def _read(values: Any) -> TimmConfig | None:
    about = values.get("pretrained_cfg", values)  # older files have all in one
    arch = values["architecture"].partition(".")[0]
    channels, size, width = about["input_size"]
    mean, std = tuple(map(float, about["mean"])), tuple(map(float, about["std"]))
    fits = len(mean) == len(std) == channels and size == width and type(size) is int and size > 0
    positive = all(map(math.isfinite, mean + std)) and min(std) > 0
    return TimmConfig(arch, size, mean, std) if is_model(arch) and fits and positive else None
