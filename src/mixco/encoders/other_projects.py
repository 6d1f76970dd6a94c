"""Checkpoints of other projects: whose they are, by their keys, and the backbone in timm's keys.

The layouts are those of facebookresearch/moco and of the MixCo code of 2020, of lightly 1.6,
lightly-train 0.18 and solo-learn 1.0.6, read from their code and from files that they wrote.
timm's ResNets share torchvision's keys.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mixco.models.encoder import Stem
from mixco.runtime.errors import UserError

# Whose, the prefix of the backbone's keys, and what must begin some key of the file besides; the
# first row that fits is taken.
LAYOUTS = (
    ("MoCo (facebookresearch's, or MixCo's of 2020)", "encoder_q.", ""),
    ("SimCLR of MixCo's code of 2020", "features.", r"l1\.|features\.\d+\.0\.conv1\."),
    *(
        ("lightly-train", f"{who}wrapped_model.{part}.", "")
        # Where there is a teacher and a student, the teacher is what lightly-train exports; without
        # a teacher (its distillation leaves it out) it is the student.
        for who in ("embedding_model.", "teacher_embedding_model.", "student_embedding_model.", "")
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

# Put around a model by data parallelism and by the compiler; no part of it.
WRAPPERS = ("module", "_orig_mod")

# Where a file keeps the weights, when they are not all it holds.
ENTRIES = ("state_dict", "model", "model_state_dict")

# nn.Sequential(*resnet.children()) numbers its parts. Those with weights come in one order, whether
# or not activations and pooling lie between them.
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

# A key that gives the family away, and the timm models to look among.
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
class Foreign:
    """A checkpoint of another project, taken apart."""

    kind: str
    """Whose it is: the first column of LAYOUTS."""
    prefix: str
    """What the backbone's keys begin with in the file, wrappers left aside."""
    backbone: dict[str, Tensor]
    """In timm's keys."""
    left_out: dict[str, list[str]]
    """Weights that are not of the backbone: group -> their keys in the file, wrappers left aside."""
    before_layer1: int | None
    """Of a ResNet with numbered parts: how many lie before layer1. Else None."""


def find_weights(content: Any, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The dict of tensors in a file's content, and the names of what lies beside it.

    Raises UserError, which begins with `where`, when there is none.
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


def recognise(weights: Mapping[str, Tensor], where: str) -> Foreign:
    """Whose weights these are, and the backbone among them.

    Every key ends up in `backbone` or in `left_out`. Whether the backbone is whole is for the caller
    to see, who builds one. Raises UserError, which begins with `where`, for two keys of one meaning.
    """
    bare: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in bare:
            raise UserError(f"{where}: {name} is in it twice, as {key} and without its wrapper")
        bare[name] = value
    while all(key.startswith("model.") for key in bare):
        bare = {key.removeprefix("model."): value for key, value in bare.items()}

    kind, prefix, _ = next(
        (kind, prefix, mark)
        for kind, prefix, mark in LAYOUTS
        if any(key.startswith(prefix) for key in bare) and any(re.match(mark, key) for key in bare)
    )
    backbone, before_layer1 = _name_parts(
        {key.removeprefix(prefix): v for key, v in bare.items() if key.startswith(prefix)}
    )
    outside = [key for key in bare if not key.startswith(prefix)]
    # A ResNet's classifier, or the projection head that MoCo puts in its place.
    heads = [k for k in backbone if k.startswith(("fc.", "linear."))] if is_resnet(backbone) else []
    left_out: dict[str, list[str]] = {}
    for key in [*(prefix + k for k in heads), *outside]:
        own = key.removeprefix(prefix)
        if prefix.startswith("teacher_"):  # its head is no second encoder's
            own = own.removeprefix("teacher_")
        group = next(name for name, pattern in GROUPS if re.search(pattern, own))
        left_out.setdefault(group, []).append(key)
    inside = {key: value for key, value in backbone.items() if key not in heads}
    return Foreign(kind, prefix, inside, left_out, before_layer1)


def _name_parts(backbone: dict[str, Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """Names for the numbered parts of a ResNet, and how many lie before layer1 (None: not numbered).

    lightly's small ResNets say shortcut where torchvision says downsample.
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
    """timm's (and torchvision's) name of a ResNet, from the shapes of its weights; None if unknown."""
    if not is_resnet(backbone):
        return None
    blocks = tuple(
        sum(re.fullmatch(rf"layer{stage}\.\d+\.conv1\.weight", key) is not None for key in backbone)
        for stage in (1, 2, 3, 4)
    )
    bottleneck = "layer1.0.conv3.weight" in backbone
    inner = backbone.get("layer1.0.conv2.weight", backbone["layer1.0.conv1.weight"]).shape[:2]
    return RESNETS.get((blocks, tuple(inner), bottleneck))  # type: ignore[arg-type]


def unknown_arch(foreign: Foreign) -> str:
    """Why the architecture cannot be told from the weights, and where to look for its name."""
    keys = foreign.backbone.keys()
    if is_resnet(foreign.backbone):
        return f"a ResNet of a shape not known here ({len(keys)} weights)"
    names = next((names for key, names in FAMILIES if key in keys), None)
    if names:
        return f"the keys look like those of timm's {names}"
    return f"the keys ({', '.join(sorted(keys)[:3])}, ...) are of no layout known here"


def without_classifier(
    foreign: Foreign, layers: tuple[str, ...], expected: Collection[str]
) -> Foreign:
    """Leave out the weights of the classifier's layers, unless the backbone has (`expected`) them."""
    begins = tuple(f"{name}." for name in layers)
    dropped = [k for k in foreign.backbone if k.startswith(begins) and k not in expected]
    if not dropped:
        return foreign
    heads = foreign.left_out.get("heads", []) + [foreign.prefix + key for key in dropped]
    return replace(
        foreign,
        backbone={k: v for k, v in foreign.backbone.items() if k not in dropped},
        left_out={**foreign.left_out, "heads": heads},
    )


def report(foreign: Foreign, beside: list[str]) -> list[str]:
    """What of the file was taken and what was left out, every key counted; lines of text.

    beside: names of what the file holds beside its weights.
    """
    of_prefix = f" ({foreign.prefix}*)" if foreign.prefix else ""
    lines = [f"taken: {len(foreign.backbone)} weights of the backbone{of_prefix}"]
    for group, keys in foreign.left_out.items():
        names = dict.fromkeys(
            (foreign.prefix if key.startswith(foreign.prefix) else "")
            + key.removeprefix(foreign.prefix).partition(".")[0]
            for key in keys
        )
        lines.append(f"left out: {len(keys)} of {group} ({', '.join(names)})")
    if beside:
        lines.append(f"left out beside the weights: {', '.join(beside)}")
    return lines


def resnet_stem(foreign: Foreign, where: str) -> tuple[Stem, str]:
    """The stem of a ResNet, and what had to be assumed: weights do not tell stride and padding.

    Raises UserError, which begins with `where`, for a stem that cannot be built.
    """
    kernel = foreign.backbone["conv1.weight"].shape[-1]
    if kernel != 3:
        if foreign.before_layer1 not in (None, 4):
            raise UserError(
                f"{where}: {foreign.before_layer1} parts before layer1, where a ResNet has four "
                "(convolution, norm, activation, max-pool); only 3x3 stems may have fewer"
            )
        return "standard", ""
    said = "3x3 stem with stride 1, no max-pool"
    if foreign.before_layer1 == 2:
        # lightly's small ResNets call their first activation as a function: it gets lost when their
        # parts are put into an nn.Sequential, as lightly's examples do. The weights know no other.
        return "conv3s1linear", f"{said}, and no activation, since none is among the parts"
    if foreign.kind == "solo-learn":
        return "conv3s1p2", f"{said}, padding 2, as solo-learn has it for CIFAR"
    return "conv3s1", f"{said}, padding 1, as is usual for CIFAR (--stem gives another)"
