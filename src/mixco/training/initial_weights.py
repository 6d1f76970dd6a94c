"""The weights that a run begins with: existing ones, as --init names them, or random ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mixco.data.normalisation import shown
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.models.adapt import adapt, adapt_first_convolution
from mixco.models.encoder import Stem, input_channels, resolve_stem
from mixco.runtime.errors import UserError
from mixco.settings.config import PretrainConfig
from mixco.settings.resolve import Choice, arch_of, run_folder_of

KEPT = "init.safetensors"


def find_initial(config: PretrainConfig) -> LoadedEncoder | None:
    """The weights that the run starts from; None for random ones."""
    model = config.model
    if model.init is None:
        return None
    folder, arch = run_folder_of(config), model.arch
    if model.init == "timm":  # of the architecture that a run has anyway
        arch = arch_of(config)
    return initial_weights(model.init, folder, arch=arch, stem=model.stem, prefix=model.prefix)


def initial_weights(
    init: str, folder: Path, *, arch: str | None, stem: Stem, prefix: str | None
) -> LoadedEncoder:
    """The encoder that a run starts from, as it was made: see `load_encoder`.

    A run that has begun keeps its initial weights in its folder, and goes on with those, also when what
    --init names has changed or is gone. Raises UserError as `load_encoder` does.
    """
    if (folder / KEPT).is_file():
        return load_encoder(folder / KEPT)
    return load_encoder(init, arch=arch, stem=None if stem == "auto" else stem, prefix=prefix)


def choose_encoder(
    config: PretrainConfig, initial: LoadedEncoder | None
) -> tuple[PretrainConfig, list[Choice]]:
    """The config with an architecture, and with what the initial weights bring along."""
    if initial is None:
        model = dataclasses.replace(config.model, arch=arch_of(config))
        return dataclasses.replace(config, model=model), []
    weights, channels = initial.description, config.data.channels
    stem = resolve_stem(weights.stem, weights.size, initial.backbone)  # type: ignore[arg-type]
    choices = []
    if config.model.arch is None:
        choices.append(Choice("arch", weights.arch, "of the weights"))
    if config.data.mean is None and config.data.std is None and weights.channels == channels:
        numbers = shown(weights.mean, weights.std)
        why = "those that the weights were trained with"
        choices.append(Choice("mean and --std", numbers, why))
        data = dataclasses.replace(config.data, mean=weights.mean, std=weights.std)
        config = dataclasses.replace(config, data=data)
    model = dataclasses.replace(config.model, arch=weights.arch, stem=stem)
    return dataclasses.replace(config, model=model), choices


def start_from(backbone: nn.Module, initial: LoadedEncoder, size: int) -> None:
    """Copy the initial weights into the backbone of a run, adapted to its channels and its size.

    size: of the run's images, in pixels. Every weight of the backbone comes from them, or UserError is
    raised.
    """
    there, weights = initial.description, initial.backbone.state_dict()
    channels, fits = input_channels(backbone), _shapes(weights) == _shapes(backbone.state_dict())
    if not fits and there.channels == 3 and there.stem in ("standard", "auto"):
        weights = adapt(weights, there.arch, size, channels)
    elif not fits:
        weights = adapt_first_convolution(weights, backbone, there.channels)
    if _shapes(weights) != _shapes(backbone.state_dict()):
        raise UserError(
            f"--init: weights of {there.arch} for {there.channels} channels of {there.size} pixels "
            f"cannot be adapted to {channels} channels of {size} pixels; give --size {there.size}, or "
            "other weights"
        )
    backbone.load_state_dict(weights)


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items()}


def keep(
    folder: Path, initial: LoadedEncoder, run: EncoderDescription, backbone: nn.Module
) -> None:
    """Write the weights that a run begins with into its folder.

    run: describes the encoder that the run trains. backbone: before the first step.
    """
    training = initial.description.training
    save_encoder(folder / KEPT, backbone, dataclasses.replace(run, training=training))
