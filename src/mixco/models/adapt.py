"""Weights of a timm model, adapted by timm's own functions to images of other sizes and channels."""

import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mixco.models.families import create, usual_size
from mixco.runtime.errors import UserError, out_of_memory
from mixco.runtime.streams import silent


def adapt(weights: Mapping[str, Tensor], arch: str, size: int, channels: int) -> dict[str, Tensor]:
    """The weights of a backbone for images of another size or number of channels.

    weights: all those of timm's model, by its keys, for RGB images of the size that it was made for;
        with or without the classifier. They stay as they are.
    size: in pixels. Position embeddings are interpolated, by the code with which timm loads weights.
    channels: of the images. timm.models.adapt_input_conv changes the first convolution: it sums it over
        the channels for one channel, and else repeats it over them and scales it.

    Returns tensors with the keys and shapes of families.create(arch, size, channels). Every one comes
    from `weights`. Raises UserError where one is missing or left over, or timm cannot adapt it, and
    timm's errors for a size that the model cannot have at all.
    """
    with torch.device("meta"):
        whole = timm.create_model(arch).state_dict()
        expected = create(arch, size, channels).state_dict()
    wrong = [f"{key} is left over" for key in weights.keys() - whole.keys() - expected.keys()]
    wrong += [f"{key} is missing" for key in (whole.keys() & expected.keys()) - weights.keys()]
    if wrong:
        raise UserError(f"the weights do not fit {arch}: {_some(wrong)}")
    if all(key in weights and weights[key].shape == expected[key].shape for key in expected):
        return {key: weights[key] for key in expected}
    try:
        adapted, missing = loaded_by_timm(weights, lambda **by: create(arch, size, channels, **by))
        wrong = [f"{key} is not in them" for key in missing]
        wrong += [
            f"{key} becomes {list(adapted[key].shape)} instead of {list(expected[key].shape)}"
            for key in adapted
            if adapted[key].shape != expected[key].shape
        ]
    except Exception as error:  # of many kinds, depending on the architecture
        if out_of_memory(error):
            raise
        wrong = [last_line(error)]
    if not wrong:
        return adapted
    if channels != 3 and (size == usual_size(arch) or _works(weights, arch, size)):
        for_what, remedy = f"{channels} channels", "give images of 3 channels"
    else:
        remedy = f"give --size {usual_size(arch)}, the size that they are for"
        for_what = f"{size} pixels"
    raise UserError(
        f"the weights of {arch} cannot be adapted to images of {for_what} ({_some(wrong)}); {remedy}"
    )


def adapt_first_convolution(
    weights: Mapping[str, Tensor], backbone: nn.Module, base_channels: int
) -> dict[str, Tensor]:
    """The weights with the first convolution for the channels of a backbone, by timm's own function.

    base_channels: of the images that the weights are for. Raises UserError where timm cannot adapt it.
    """
    config: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    channels, named = int(config["input_size"][0]), config.get("first_conv") or ()
    adapted = dict(weights)
    for name in (named,) if isinstance(named, str) else named:
        key = f"{name}.weight"
        try:
            adapted[key] = timm.models.adapt_input_conv(channels, weights[key], base_channels)
        except NotImplementedError:
            raise UserError(
                f"weights for {base_channels} channels cannot be adapted to images of {channels}; give "
                f"images of {base_channels} channels"
            ) from None
    return adapted


def _works(weights: Mapping[str, Tensor], arch: str, size: int) -> bool:
    try:
        adapt(weights, arch, size, 3)
    except UserError:
        return False
    return True


def loaded_by_timm(
    content: Mapping[str, Any], build: Callable[..., nn.Module]
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of the model into which timm loads the content of a file; the keys that it lacks.

    content: weights by timm's keys, or by those of their own project where timm converts them.
    build: makes the model; it hands its keywords on to timm.create_model.

    timm draws a tensor at random that the content lacks. So a second model is loaded with markers in
    place of the numbers: what does not consist of them did not come from the content. The batches that a
    normalisation has counted may be missing, as old files lack them.
    """

    def loaded(content: Mapping[str, Any]) -> dict[str, Tensor]:
        source = {"state_dict": content, "url": None, "hf_hub_id": None, "file": None}
        with torch.random.fork_rng(devices=[]), silent("timm"):
            return build(pretrained=True, pretrained_cfg_overlay=source).state_dict()

    marks = loaded(_marked(content))
    missing = [
        key
        for key, mark in marks.items()
        if not key.endswith("num_batches_tracked")
        and not (mark.isnan() if mark.is_floating_point() else mark == MARK).all()
    ]
    return loaded(content), missing


def last_line(error: Exception) -> str:
    """What torch and timm say of weights that do not fit; their first line is a title.

    At most 200 letters.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    shapes = r"size mismatch for (\S+): .*torch\.Size\((.*?)\).*torch\.Size\((.*?)\)\.?"
    return textwrap.shorten(
        re.sub(shapes, r"\1 is \2 instead of \3", line), 200, placeholder=" ..."
    )


MARK = -1


def _marked(content: Any) -> Any:
    if isinstance(content, Tensor):
        return torch.full_like(content, torch.nan if content.is_floating_point() else MARK)
    if isinstance(content, Mapping):
        return {key: _marked(value) for key, value in content.items()}
    return content


def _some(texts: Collection[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(sorted(texts)[:3]) + more
