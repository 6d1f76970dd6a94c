"""ResNets among the weights of a file: the names of their parts, and which ResNet it is."""

import re
from collections.abc import Mapping

from torch import Tensor

# nn.Sequential(*resnet.children()) numbers its parts. Those with weights have this order, with or
# without activations and pooling between them.
PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")

# (blocks of the stages, inner channels of the first block's 3x3 convolution, bottleneck)
RESNETS = {
    ((2, 2, 2, 2), (64, 64), False): "resnet18",
    ((2, 2, 2, 2), (64, 64), True): "resnet26",
    ((3, 4, 6, 3), (64, 64), False): "resnet34",
    ((3, 4, 6, 3), (64, 64), True): "resnet50",
    ((3, 4, 23, 3), (64, 64), True): "resnet101",
    ((3, 8, 36, 3), (64, 64), True): "resnet152",
    ((3, 4, 6, 3), (128, 128), True): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128), True): "wide_resnet101_2",
    ((3, 4, 6, 3), (128, 4), True): "resnext50_32x4d",
}


def name_parts(backbone: dict[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """Name the numbered parts of a ResNet; also, how many lie before layer1 (None: not numbered).

    lightly's small ResNets have "shortcut" where torchvision has "downsample".
    """
    numbers = sorted({int(first) for k in backbone if (first := k.partition(".")[0]).isdigit()})
    numbered = "0.weight" in backbone and len(numbers) in (6, 7)
    names = {str(n): part for n, part in zip(numbers, PARTS, strict=False)} if numbered else {}
    named = {}
    for key, value in backbone.items():
        first, dot, rest = key.partition(".")
        first = names.get(first, first)
        if first.startswith("layer"):
            rest = rest.replace("shortcut.", "downsample.")
        named[first + dot + rest] = value
    return named, numbers[2] if numbered else None


def is_resnet(backbone: Mapping[str, Tensor]) -> bool:
    return {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= backbone.keys()


def resnet_name(backbone: Mapping[str, Tensor]) -> str | None:
    """The name of a ResNet in timm and torchvision, by the shapes of its weights; None if unknown."""
    if not is_resnet(backbone):
        return None
    blocks = tuple(
        sum(re.fullmatch(rf"layer{stage}\.\d+\.conv1\.weight", key) is not None for key in backbone)
        for stage in (1, 2, 3, 4)
    )
    bottleneck = "layer1.0.conv3.weight" in backbone
    inner = backbone.get("layer1.0.conv2.weight", backbone["layer1.0.conv1.weight"]).shape[:2]
    return RESNETS.get((blocks, tuple(inner), bottleneck))  # type: ignore[arg-type]
