"""The encoder: a timm backbone, with a stem that fits the size of the images, and a projection head."""

import difflib
from typing import Any, Literal, cast

import timm
import torch
from torch import Tensor, nn

from mixco.runtime.errors import UserError

Stem = Literal["auto", "standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s2"]
Head = Literal["linear", "mlp"]

# Stride and padding of the 3x3 convolution, and whether an activation follows. The last two only load
# the weights of other projects: solo-learn's for CIFAR, and lightly's small ResNets in an nn.Sequential.
SMALL_STEMS = {
    "conv3s1": (1, 1, True),
    "conv3s2": (2, 1, True),
    "conv3s1p2": (1, 2, True),
    "conv3s1linear": (1, 1, False),
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


def _replace_stem(backbone: nn.Module, stem: Stem) -> None:
    first = cast(nn.Conv2d, backbone.conv1)
    stride, padding, activation = SMALL_STEMS[stem]
    conv = nn.Conv2d(first.in_channels, first.out_channels, 3, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1 = conv
    backbone.maxpool = nn.Identity()
    if not activation:
        backbone.act1 = nn.Identity()


def _refuse_unknown(arch: str) -> None:
    if arch not in timm.list_models():
        near = difflib.get_close_matches(arch, timm.list_models(), n=1)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() in Python lists all"
        raise UserError(f"--arch {arch}: timm has no model of this name; {hint}")


def usual_size(arch: str) -> int:
    """The side in pixels of the images that the model was made for; 224 where timm does not say.

    Raises UserError for an unknown arch.
    """
    _refuse_unknown(arch)
    config = timm.models.get_pretrained_cfg(arch, allow_unregistered=True)
    return int(config.input_size[-1]) if config else 224


def build_backbone(
    arch: str, size: int, stem: Stem = "auto", seed: int = 0, channels: int = 3
) -> nn.Module:
    """A timm model without its classifier: float [B, channels, size, size] -> features [B, D].

    arch: a name of timm.list_models(). stem: see `choose_stem`; models other than ResNets have only
    "standard", and "auto" leaves them unchanged. seed: of the initial weights; the global generator does
    not move.

    Raises UserError for an unknown arch, or a size or stem that the arch cannot have.
    """
    _refuse_unknown(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Families take different arguments: transformers an image size; ResNets the initialisation that
        # the published MoCo and SimCLR recipes used.
        backbone = None
        seen: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
        for extra in ({"img_size": size}, {"zero_init_last": False}, {}):
            try:
                backbone = timm.create_model(arch, pretrained=False, num_classes=0, **seen, **extra)
                break
            except TypeError:
                continue
            except (AssertionError, ValueError, ZeroDivisionError) as error:
                raise UserError(
                    f"--arch {arch}: timm cannot build it for --size {size} ({error}); give another size"
                ) from None
        if backbone is None:
            raise UserError(
                f"--arch {arch}: timm cannot build it without a classifier and with {channels} input "
                "channels; give another --arch"
            )
        patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,))[0]
        if size % patch:
            fitting = [s for s in (size // patch * patch, (size // patch + 1) * patch) if s >= 32]
            raise UserError(
                f"--size {size}: not a multiple of the {patch} pixels of a patch of {arch}, which would "
                f"not see the rest; give --size {' or '.join(map(str, fitting))}"
            )
        replaceable = takes_stems(backbone)
        if stem == "auto":
            stem = choose_stem(size) if replaceable else "standard"
        if stem != "standard":
            if not replaceable:
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
    """The channels of the images that the backbone takes; 3 where no convolution tells."""
    name = first_convolution(backbone)
    return cast(nn.Conv2d, backbone.get_submodule(name)).in_channels if name else 3


@torch.no_grad()
def feature_dim(backbone: nn.Module, size: int) -> int:
    """The number of features that the backbone computes from an image of `size` pixels.

    Found by a forward pass: in some families (MobileNetV3) timm's num_features differs from it.
    Raises UserError when the backbone cannot take images of this size.
    """
    training = backbone.training
    try:
        features = cast(
            Tensor, backbone.eval()(torch.zeros(1, input_channels(backbone), size, size))
        )
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--size {size}: the model cannot take such images ({reason}); give another size"
        ) from None
    finally:
        backbone.train(training)
    return features.shape[1]


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


def build_head(features: int, dim: int, head: Head, seed: int = 0) -> nn.Module:
    """The projection head: [B, features] -> [B, dim].

    "linear" is MoCo v1's; "mlp", with one hidden layer as wide as the features, MoCo v2's and SimCLR's.
    seed: of the initial weights; the global generator does not move.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if head == "linear":
            return nn.Linear(features, dim)
        return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim))


class Encoder(nn.Module):
    """Backbone, then head: images [B, C, S, S] -> projections [B, dim], not normalised."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.backbone(images)))
