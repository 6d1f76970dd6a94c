"""Fill in unset options from the images and the device, by the rules in settings/defaults.py."""

import dataclasses
from statistics import median
from typing import NamedTuple

import torch
from torch import nn

from mixco.data.datasets.sources import NAMED
from mixco.data.image_list import ImageList, picture_size
from mixco.data.images import Images
from mixco.data.normalisation import measure
from mixco.data.pixel_format import LOOKED_AT, spread
from mixco.models.encoder import build_backbone, choose_stem, output_elements, takes_stems
from mixco.runtime.device import device_memory
from mixco.settings import defaults
from mixco.settings import warnings as cautions
from mixco.settings.config import PretrainConfig
from mixco.settings.resolve import from_dict, resolve, run_folder_of, to_dict
from mixco.settings.warnings import Caution
from mixco.training.checkpoints import as_begun
from mixco.views.augment import Channels


class Choice(NamedTuple):
    option: str
    value: str
    why: str


def as_it_began(config: PretrainConfig) -> PretrainConfig:
    """With what is not given as a run in the same folder began, if there is one."""
    begun = as_begun(run_folder_of(config), to_dict(config))
    return from_dict(PretrainConfig, begun, "config.json")


def choose_size(
    config: PretrainConfig, source: ImageList, device: torch.device
) -> tuple[PretrainConfig, list[Choice]]:
    """The config with a size, by the headers of some files spread over the list."""
    if config.data.size is not None:
        return config, []
    some = spread(len(source.files), LOOKED_AT)
    sides = [side for i in some if min(side := picture_size(source, i)) > 0]
    height, width = (int(median(values)) for values in zip(*sides or [(64, 64)], strict=True))
    size, why = defaults.size(height, width, device.type)
    chosen = dataclasses.replace(config, data=dataclasses.replace(config.data, size=size))
    return chosen, [Choice("size", str(size), why)]


def choose_rest(
    config: PretrainConfig,
    images: Images,
    members: int,
    device: torch.device,
    dtype: torch.dtype,
    processes: int = 1,
) -> tuple[PretrainConfig, list[Choice]]:
    """The resolved config of one with a size.

    members: how many images are trained on; processes: that the run is to have, one a device.

    Raises UserError for what cannot be, as `resolve` does.
    """
    data, choices = config.data, list[Choice]()
    size = data.size
    assert size is not None
    own = images.source
    if data.mean is None or data.std is None:
        folder = data.data not in NAMED
        mean, std = measure(images) if folder else (own.mean, own.std)
        if folder:
            shown = f"{_numbers(mean)} ± {_numbers(std)}"
            choices.append(Choice("mean and --std", shown, "measured on these images"))
        data = dataclasses.replace(data, mean=data.mean or mean, std=data.std or std)
        config = dataclasses.replace(config, data=data)
    model, needs = config.model, None
    if model.stem == "auto" or config.optimisation.batch_size is None:
        backbone = build_backbone(model.arch, size, model.stem, channels=own.pixel.channels)
        needs = step_bytes(backbone, config, dtype.itemsize)
        if model.stem == "auto" and takes_stems(backbone):
            stem = choose_stem(size)
            why = "its own" if stem == "standard" else "its own would leave too little of them"
            choices.append(Choice("stem", stem, f"for a ResNet and {size} px; {why}"))

    def tell(option: str, value: object, why: str) -> None:
        if why != defaults.UNUSED:
            choices.append(Choice(option.replace("_", "-"), str(value), why))

    resolved = resolve(
        config,
        members,
        processes,
        device=device.type,
        memory=device_memory(device) * (processes if device.type == "cuda" else 1),
        image_bytes=needs,
        tell=tell,
    )
    return resolved, choices


def step_bytes(backbone: nn.Module, config: PretrainConfig, itemsize: int) -> float:
    """What a training step holds at its peak for each image of its batch, about."""
    assert config.data.size is not None
    passes = defaults.PASSES[config.method.method, config.method.mix]
    outputs = output_elements(backbone, config.data.size) * itemsize
    return defaults.HELD * passes * outputs / config.optimisation.micro_batches


def cautions_of(config: PretrainConfig, members: int, dtype: torch.dtype) -> list[Caution]:
    """What may spoil a run of a resolved config, as far as the settings tell."""
    method, optimisation = config.method, config.optimisation
    assert optimisation.batch_size and optimisation.epochs
    assert method.temperature and method.mix_temperature
    return list(
        cautions.of_settings(
            images=members,
            method=method.method,
            mix=method.mix,
            batch=optimisation.batch_size,
            epochs=optimisation.epochs,
            queue=method.queue,
            bn_splits=method.bn_splits,
            temperature=method.temperature,
            mix_temperature=method.mix_temperature,
            bfloat16=dtype == torch.bfloat16,
        )
    )


def _numbers(values: Channels) -> str:
    return " ".join(f"{value:.3f}" for value in values)
