"""Checkpoints of other projects: find the project by the keys, and the backbone in timm's keys.

The layouts are those of facebookresearch/moco, of the MixCo code of 2020, and of lightly 1.6,
lightly-train 0.18 and solo-learn 1.0.6, taken from their code and from files that they wrote. timm's
ResNets have torchvision's keys.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mixco.models.encoder import Stem
from mixco.runtime.errors import UserError

# Project, prefix of the backbone's keys, and a pattern that some key of the file must begin with. The
# first row that fits counts.
LAYOUTS = (
    ("MoCo (facebookresearch's, or MixCo's of 2020)", "encoder_q.", ""),
    ("SimCLR of MixCo's code of 2020", "features.", r"l1\.|features\.\d+\.0\.conv1\."),
    *(
        ("lightly-train", f"{role}wrapped_model.{part}.", "")
        # lightly-train exports the teacher, if there is one; its distillation has a student alone.
        for role in ("embedding_model.", "teacher_embedding_model.", "student_embedding_model.", "")
        for part in ("_features", "_model")
    ),
    ("lightly", "backbone.vit.", ""),
    ("lightly", "backbone.", r"(projection|prediction)_(head|mlp)|(key|student)_backbone\."),
    ("solo-learn", "backbone.", r"projector\.|classifier\.|head\.|queue"),
    ("a model with a backbone", "backbone.", ""),
    ("lightly", "teacher_backbone.", ""),
    ("a model with an encoder", "encoder.", ""),
    ("torchvision or timm", "", ""),
)

# Names that data parallelism and the compiler put before a model's keys.
WRAPPERS = ("module", "_orig_mod")

# The entry of a file that holds the weights, when they are not all of it.
ENTRIES = ("state_dict", "model", "model_state_dict")

# nn.Sequential(*resnet.children()) numbers its parts. Those with weights have this order, with or
# without activations and pooling between them.
PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")

# (blocks of the stages, inner channels of the first block's 3x3 convolution, bottleneck)
RESNETS = {
    ((2, 2, 2, 2), (64, 64), False): "resnet18",
    ((3, 4, 6, 3), (64, 64), False): "resnet34",
    ((3, 4, 6, 3), (64, 64), True): "resnet50",
    ((3, 4, 23, 3), (64, 64), True): "resnet101",
    ((3, 8, 36, 3), (64, 64), True): "resnet152",
    ((3, 4, 6, 3), (128, 128), True): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128), True): "wide_resnet101_2",
    ((3, 4, 6, 3), (128, 4), True): "resnext50_32x4d",
}

# A key that only one family has, and the names of its models in timm.
FAMILIES = (
    ("blocks.0.attn.qkv.weight", "vit_*"),
    ("layers.0.blocks.0.attn.qkv.weight", "swin_*"),
    ("stages.0.blocks.0.conv_dw.weight", "convnext_*"),
    ("conv_stem.weight", "mobilenetv3_* or efficientnet_*"),
    ("conv1.0.weight", "resnet*d"),
)

GROUPS = (
    ("a second encoder", r"encoder_k|momentum|teacher|student|(^|_)key_|anchor|target_"),
    ("the queue", r"queue|memory_bank"),
    ("heads", r"head|proj|predict|classifier|prototypes|\b(fc|linear|l1|l2)\b"),
    ("other parts", ""),
)


@dataclass(frozen=True)
class OtherCheckpoint:
    """A checkpoint of another project, taken apart. Keys are without wrappers."""

    project: str
    """The first column of LAYOUTS."""
    prefix: str
    """What the backbone's keys begin with in the file."""
    backbone: dict[str, Tensor]
    """The backbone's weights, by timm's keys."""
    left_out: dict[str, list[str]]
    """The other weights: group -> their keys in the file."""
    before_layer1: int | None
    """How many parts lie before layer1, for a ResNet with numbered parts; else None."""


def find_weights(content: Any, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The dict of tensors in a file's content, and the names of what else the file holds.

    Raises UserError, which begins with `where`, when there are no tensors.
    """
    entries: list[str] = []
    if isinstance(content, dict) and not any(isinstance(v, Tensor) for v in content.values()):
        name = next((n for n in ENTRIES if isinstance(content.get(n), dict)), None)
        entries = sorted(str(key) for key in content if key != name)
        content = content[name] if name else None
    weights = content if isinstance(content, dict) else {}
    tensors = {str(key): value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        inside = f"found {', '.join(entries)}" if entries else "found none"
        raise UserError(
            f"{where}: no weights in it; expected a state dict, alone or as {', '.join(ENTRIES)}, "
            f"{inside}; save model.state_dict() to get one"
        )
    return tensors, entries + sorted(str(key) for key in weights if str(key) not in tensors)


def recognise(weights: Mapping[str, Tensor], where: str) -> OtherCheckpoint:
    """Find out which project the weights are from, and which of them are the backbone.

    Every key ends up in `backbone` or in `left_out`. Whether the backbone is complete is not checked
    here. Raises UserError, which begins with `where`, for two keys with one meaning.
    """
    bare: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in bare:
            raise UserError(f"{where}: {name} is in it twice, as {key} and without its wrapper")
        bare[name] = value
    while all(key.startswith("model.") for key in bare):
        bare = {key.removeprefix("model."): value for key, value in bare.items()}

    project, prefix = next(
        (project, prefix)
        for project, prefix, mark in LAYOUTS
        if any(key.startswith(prefix) for key in bare) and any(re.match(mark, key) for key in bare)
    )
    backbone, before_layer1 = _name_parts(
        {key.removeprefix(prefix): v for key, v in bare.items() if key.startswith(prefix)}
    )
    outside = [key for key in bare if not key.startswith(prefix)]
    # A ResNet's classifier, or the projection head that MoCo has in its place.
    heads = [k for k in backbone if k.startswith(("fc.", "linear."))] if is_resnet(backbone) else []
    left_out: dict[str, list[str]] = {}
    for key in [*(prefix + k for k in heads), *outside]:
        own = key.removeprefix(prefix)
        if prefix.startswith("teacher_"):  # otherwise its head would count as a second encoder's
            own = own.removeprefix("teacher_")
        group = next(name for name, pattern in GROUPS if re.search(pattern, own))
        left_out.setdefault(group, []).append(key)
    inside = {key: value for key, value in backbone.items() if key not in heads}
    return OtherCheckpoint(project, prefix, inside, left_out, before_layer1)


def _name_parts(backbone: dict[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
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


def unknown_arch(other: OtherCheckpoint) -> str:
    """Why the weights do not tell the architecture, and where to look for its name."""
    keys = other.backbone.keys()
    if is_resnet(other.backbone):
        return f"a ResNet of a shape not known here ({len(keys)} weights)"
    names = next((names for key, names in FAMILIES if key in keys), None)
    if names:
        return f"the keys look like those of timm's {names}"
    return f"the keys ({', '.join(sorted(keys)[:3])}, ...) are of no layout known here"


def without_classifier(
    other: OtherCheckpoint, layers: tuple[str, ...], expected: Collection[str]
) -> OtherCheckpoint:
    """Leave out the weights of the classifier's layers, except those that the backbone expects."""
    begins = tuple(f"{name}." for name in layers)
    dropped = [k for k in other.backbone if k.startswith(begins) and k not in expected]
    if not dropped:
        return other
    heads = other.left_out.get("heads", []) + [other.prefix + key for key in dropped]
    return replace(
        other,
        backbone={k: v for k, v in other.backbone.items() if k not in dropped},
        left_out={**other.left_out, "heads": heads},
    )


def report(other: OtherCheckpoint, beside: list[str]) -> list[str]:
    """Lines of text that say which weights were taken and which left out; every key is counted.

    beside: the names of what else the file holds.
    """
    of_prefix = f" ({other.prefix}*)" if other.prefix else ""
    lines = [f"taken: {len(other.backbone)} weights of the backbone{of_prefix}"]
    for group, keys in other.left_out.items():
        names = dict.fromkeys(
            (other.prefix if key.startswith(other.prefix) else "")
            + key.removeprefix(other.prefix).partition(".")[0]
            for key in keys
        )
        lines.append(f"left out: {len(keys)} of {group} ({', '.join(names)})")
    if beside:
        lines.append(f"left out beside the weights: {', '.join(beside)}")
    return lines


def resnet_stem(other: OtherCheckpoint, where: str) -> tuple[Stem, str]:
    """The stem of a ResNet, and what was assumed, since weights do not tell stride and padding.

    Raises UserError, which begins with `where`, for a stem that cannot be built.
    """
    kernel = other.backbone["conv1.weight"].shape[-1]
    if kernel != 3:
        if other.before_layer1 not in (None, 4):
            raise UserError(
                f"{where}: {other.before_layer1} parts before layer1, where a ResNet has four "
                "(convolution, norm, activation, max-pool); only 3x3 stems may have fewer"
            )
        return "standard", ""
    assumed = "3x3 stem with stride 1, no max-pool"
    if other.before_layer1 == 2:
        # lightly's small ResNets call their first activation as a function, so it gets lost in an
        # nn.Sequential of their parts, as in lightly's examples; the weights were trained without it.
        return "conv3s1linear", f"{assumed}, and no activation, since none is among the parts"
    if other.project == "solo-learn":
        return "conv3s1p2", f"{assumed}, padding 2, as solo-learn has it for CIFAR"
    return "conv3s1", f"{assumed}, padding 1, as is usual for CIFAR (--stem gives another)"
