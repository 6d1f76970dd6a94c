"""Weights for images of one size and number of channels, adapted to others by timm's own functions."""

import copy
from typing import Any, cast

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mixco.encoders.checkpoint import LoadedEncoder
from mixco.models.encoder import input_channels
from mixco.models.families import first_line
from mixco.runtime.errors import UserError


def adapted(initial: LoadedEncoder, backbone: nn.Module) -> dict[str, Tensor]:
    """The weights of an encoder, with the keys and shapes of a backbone of the same architecture.

    backbone: built for another size of images, another number of channels, or both. Position embeddings
    are interpolated, and the first convolution takes sums or repetitions of its weights for colours.

    Raises UserError where they do not fit even then, with the size that they are for.
    """
    there = initial.description
    config = cast(dict[str, Any], backbone.pretrained_cfg)
    channels, size = input_channels(backbone), int(config["input_size"][-1])
    source = initial.backbone
    if size != there.size and hasattr(source, "set_input_size"):
        source = copy.deepcopy(source)
        with torch.no_grad():
            cast(Any, source).set_input_size(img_size=(size, size))
    weights, expected = source.state_dict(), backbone.state_dict()
    if channels != there.channels:
        named = config.get("first_conv") or ()
        for name in (named,) if isinstance(named, str) else named:
            key = f"{name}.weight"
            try:
                weights[key] = adapt_input_conv(channels, weights[key], base_chans=there.channels)
            except (NotImplementedError, KeyError) as error:
                raise UserError(
                    f"--init: the first convolution of {there.arch} has {there.channels} channels and "
                    f"cannot be adapted to {channels} ({first_line(error)}); give weights for "
                    f"{channels} channels"
                ) from None
    wrong = sorted(weights.keys() ^ expected.keys()) + [
        key for key in weights.keys() & expected.keys() if weights[key].shape != expected[key].shape
    ]
    if wrong:
        raise UserError(
            f"--size {size}: the weights of {there.arch} are for {there.size} pixels, and timm cannot "
            f"adapt them ({wrong[0]}); give --size {there.size}"
        )
    return weights
