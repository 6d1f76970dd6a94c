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
from mixco.models.encoder import Stem

KEPT = "init.safetensors"


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
