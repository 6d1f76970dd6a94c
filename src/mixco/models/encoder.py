"""The encoder: a timm backbone, with a stem that fits the size of the images, and a projection head."""

from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn

from mixco.models.families import (
    blank_features,
    create,
    first_line,
    patch_side,
    refuse_unknown,
    size_error,
)
from mixco.runtime.errors import UserError, out_of_memory

Stem = Literal[
    "auto", "standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s1pool", "conv3s2"
]

# Stride and padding of the 3x3 convolution, whether an activation follows, and whether a max-pool. The
# last three are stems of other projects: solo-learn's for CIFAR, lightly's small ResNets in
# an nn.Sequential, and that of Mix-BT and MYOL for images of 64 pixels.
SMALL_STEMS = {
    "conv3s1": (1, 1, True, False),
    "conv3s2": (2, 1, True, False),
    "conv3s1p2": (1, 2, True, False),
    "conv3s1linear": (1, 1, False, False),
    "conv3s1pool": (1, 1, True, True),
}


def choose_stem(size: int) -> Stem:
    """The stem for images with a side of `size` pixels.

    A ResNet's own stem (7x7, stride 2, max-pool) divides the side by 4 before the first block: the last
    stage would see a single pixel of an image of 32. Up to 48 pixels: 3x3 with stride 1, no max-pool
    (as in He et al. 2016 for CIFAR). Up to 112: 3x3 with stride 2, no max-pool. Beyond: its own.
    """
    return "conv3s1" if size <= 48 else "conv3s2" if size <= 112 else "standard"


def takes_stems(backbone: nn.Module) -> bool:
    """Is it a ResNet whose stem can be replaced?"""
    return isinstance(backbone, timm.models.ResNet) and isinstance(backbone.conv1, nn.Conv2d)


def resolve_stem(stem: Stem, size: int, backbone: nn.Module) -> Stem:
    """What "auto" means for a backbone that is built for images of `size` pixels."""
    if stem != "auto":
        return stem
    return choose_stem(size) if takes_stems(backbone) else "standard"


def _replace_stem(backbone: nn.Module, stem: Stem) -> None:
    first = cast(nn.Conv2d, backbone.conv1)
    stride, padding, activation, pool = SMALL_STEMS[stem]
    conv = nn.Conv2d(first.in_channels, first.out_channels, 3, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1 = conv
    if not pool:
        backbone.maxpool = nn.Identity()
    if not activation:
        backbone.act1 = nn.Identity()


def build_backbone(
    arch: str, size: int, stem: Stem = "auto", seed: int = 0, channels: int = 3
) -> nn.Module:
    """A timm model without its classifier: float [B, channels, size, size] -> features [B, D].

    arch: a name of timm.list_models(). stem: see `choose_stem`; models other than ResNets have only
    "standard", and "auto" leaves them unchanged. seed: of the initial weights; the global generator does
    not move.

    Raises UserError for an unknown arch, or a size or stem that the arch cannot have.
    """
    refuse_unknown(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = create(arch, size, channels)
        except UserError:
            raise
        except Exception as error:  # of many kinds, depending on the architecture
            if out_of_memory(error):
                raise
            raise size_error(arch, size, channels, first_line(error)) from None
        patch = patch_side(backbone)
        if size % patch:
            unseen = f"not a multiple of the {patch} pixels of a patch: it would not see the rest"
            raise size_error(arch, size, channels, unseen, step=patch)
        stem = resolve_stem(stem, size, backbone)
        if stem != "standard":
            if not takes_stems(backbone):
                raise UserError(
                    f"--stem {stem}: only ResNets have it; give --stem standard for {arch}"
                )
            _replace_stem(backbone, stem)
    return backbone


def classifier_layers(backbone: nn.Module) -> tuple[str, ...]:
    """Names of the classifier's layers in timm's model, which this backbone lacks or has refilled."""
    named = cast(dict[str, Any], backbone.pretrained_cfg).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def first_convolution(backbone: nn.Module) -> str:
    """The name of the first convolution, whose weight tells the channels of the images; "" for none."""
    modules = backbone.named_modules()
    return next((name for name, module in modules if isinstance(module, nn.Conv2d)), "")


def input_channels(backbone: nn.Module) -> int:
    """The channels of the images that the backbone takes."""
    return int(cast(dict[str, Any], backbone.pretrained_cfg)["input_size"][0])


@torch.no_grad()
def feature_dim(backbone: nn.Module, size: int) -> int:
    """The number of features that the backbone computes from an image of `size` pixels.

    Found by a forward pass: in some families (MobileNetV3) timm's num_features differs from it.
    Raises UserError when the backbone cannot take images of this size, with the sizes that it could be
    built for.
    """
    training = backbone.training
    try:
        return blank_features(backbone.eval(), size).shape[1]
    except Exception as error:  # of many kinds, depending on the architecture
        if out_of_memory(error):
            raise
        arch = cast(dict[str, Any], backbone.pretrained_cfg)["architecture"]
        reason = first_line(error)
    finally:
        backbone.train(training)
    raise size_error(arch, size, input_channels(backbone), reason)


def output_elements(backbone: nn.Module, size: int) -> int:
    """Elements in the outputs of all layers for one image of `size` pixels, which training must keep.

    Raises UserError when the backbone cannot take images of this size.
    """
    count = 0

    def add(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, Tensor) else 0

    layers = [module for module in backbone.modules() if not any(module.children())]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        feature_dim(backbone, size)
    finally:
        for hook in hooks:
            hook.remove()
    return count


def drops_at_random(model: nn.Module) -> bool:
    """Does the model hold dropout or stochastic depth with a rate above zero?

    Recognised by timm's names of the rate. A wrong yes (the power of a pooling is also called p) does no
    harm.
    """
    rates = (
        getattr(m, n, 0) for m in model.modules() for n in ("p", "prob", "drop_prob", "drop_rate")
    )
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


class Encoder(nn.Module):
    """Backbone, then head: images [B, C, S, S] -> projections [B, dim], not normalised."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.backbone(images)))
