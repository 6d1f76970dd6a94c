"""The weights that a run begins with: existing ones, as --init names them, or random ones."""

import dataclasses
from pathlib import Path

from torch import nn

from mixco.encoders.adapting import adapted
from mixco.encoders.checkpoint import (
    EncoderDescription,
    LoadedEncoder,
    load_encoder,
    save_encoder,
)
from mixco.settings.config import ModelConfig

KEPT = "init.safetensors"


def initial_weights(model: ModelConfig, folder: Path) -> LoadedEncoder | None:
    """The encoder that --init names; None for random weights.

    A run that has begun keeps its initial weights in its folder, and goes on with those, also when what
    --init names has changed or is gone. Raises UserError as `load_encoder` does.
    """
    if model.init is None:
        return None
    if (folder / KEPT).is_file():
        return load_encoder(folder / KEPT)
    stem = None if model.stem == "auto" else model.stem
    return load_encoder(model.init, arch=model.arch, stem=stem, prefix=model.prefix)


def start_from(backbone: nn.Module, initial: LoadedEncoder) -> None:
    """Copy the initial weights into the backbone of a run, adapted to its size and channels.

    Every weight of the backbone comes from them, or UserError is raised.
    """
    backbone.load_state_dict(adapted(initial, backbone))


def keep(
    folder: Path, initial: LoadedEncoder, run: EncoderDescription, backbone: nn.Module
) -> None:
    """Write the weights that a run begins with into its folder.

    run: describes the encoder that the run trains. backbone: before the first step.
    """
    training = initial.description.training
    save_encoder(folder / KEPT, backbone, dataclasses.replace(run, training=training))
