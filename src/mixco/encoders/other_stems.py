"""The stem of another project's ResNet. Its weights do not tell it, its project may."""

from mixco.encoders.other_projects import (
    IMIX,
    MIX_BT,
    MOCO_DEMO,
    PATRICK_HUA,
    SOLO_LEARN,
    SWAV,
    OtherCheckpoint,
)
from mixco.encoders.resnets import resnet_name
from mixco.models.encoder import Stem
from mixco.runtime.errors import UserError

# Project, and how many parts lie before layer1 (None: parts with names) -> its 3x3 stem.
SMALL: dict[tuple[str, int | None], Stem] = {
    (SOLO_LEARN, None): "conv3s1p2",
    (IMIX, None): "conv3s1",
    (PATRICK_HUA, None): "conv3s1",
    (MOCO_DEMO, 3): "conv3s1",
    (MIX_BT, 3): "conv3s1",
    (MIX_BT, 4): "conv3s1pool",
}
MEANING = {
    "conv3s1": "no max-pool, padding 1, as {} has it for CIFAR",
    "conv3s1p2": "no max-pool, padding 2, as {} has it for CIFAR",
    "conv3s1pool": "a max-pool, padding 1, as {} has it for STL-10 and Tiny ImageNet",
}


def resnet_stem(other: OtherCheckpoint, where: str) -> tuple[Stem, str]:
    """The stem of a ResNet, and how it is known.

    Raises UserError, which begins with `where`, for a stem that cannot be built, and for a 3x3
    convolution whose project is not certain: weights tell neither its stride nor its padding.
    """
    kernel = other.backbone["conv1.weight"].shape[-1]
    if kernel != 3:
        if other.before_layer1 not in (None, 4):
            raise UserError(
                f"{where}: {other.before_layer1} parts before layer1, where a ResNet has four "
                "(convolution, norm, activation, max-pool); only 3x3 stems may have fewer"
            )
        return "standard", ""
    if other.of_lightly_small:
        # lightly's small ResNets call their first activation as a function, so it gets lost in an
        # nn.Sequential of their parts, as in lightly's examples; the weights were trained without it.
        return "conv3s1linear", (
            "3x3 stem with stride 1, no max-pool, padding 1, as lightly's small ResNets have it, and no "
            "activation, since none is among the parts"
        )
    stem = SMALL.get((other.project, other.before_layer1))
    project = other.project
    if project == SWAV and resnet_name(other.backbone) == "resnet26":
        # Un-Mix's SwAV pads the image by 1 and the convolution by 1 more; its resnet18 has bottlenecks.
        stem, project = "conv3s1p2", "Un-Mix with SwAV"
    if stem:
        return stem, f"3x3 stem with stride 1, {MEANING[stem].format(project)}"
    raise UserError(
        f"{where}: its first convolution is of 3x3 pixels, and weights tell neither its stride nor its "
        "padding; give --stem conv3s1 (stride 1, padding 1, as is usual for CIFAR), conv3s1p2 (padding "
        "2: for CIFAR in solo-learn and in Un-Mix with SwAV), conv3s2 (stride 2), conv3s1pool (as "
        "conv3s1, with a max-pool: MYOL's for STL-10 and Tiny ImageNet), or conv3s1linear (as conv3s1, "
        "without an activation: lightly's small ResNets)"
    )
