"""Checkpoints of other projects: find the project by the keys, and the backbone in timm's keys.

The layouts are those of facebookresearch/moco, of the MixCo code of 2020, and of lightly 1.6,
lightly-train 0.18 and solo-learn 1.0.6, taken from their code and from files that they wrote. The others
are taken from code alone: i-Mix, Un-Mix, Mix-BT, MYOL, SimSiam, Barlow Twins, W-MSE, SwAV, older
solo-learn, MoCo v3, DINO and byol-pytorch. timm's ResNets have torchvision's keys. A backbone below any
other prefix is found too, if it is the only one.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mixco.encoders.resnets import is_resnet, name_parts
from mixco.encoders.safe_load import Placeholder
from mixco.runtime.errors import UserError

# Projects that are asked for by name.
SOLO_LEARN, SOLO_LEARN_PREFIXES = "solo-learn", ("backbone.", "encoder.")  # since 1.0.3, and before
IMIX = "i-Mix"
MOCO_DEMO = "MoCo's demo or Un-Mix"
MIX_BT = "Mix-BT"
SWAV = "SwAV"
PATRICK_HUA = "SimSiam of PatrickHua"

# Project, prefix of the backbone's keys, and patterns, each of which some key of the file must begin
# with. They decide which of several encoders in a file is meant, by the first row that fits, and give it
# a name.
LAYOUTS: tuple[tuple[str, ...], ...] = (
    (IMIX, "encoder_q.", r"(encoder_q\.fc|pred)\.\d+\.bn\."),  # its heads wrap their norms
    (MOCO_DEMO, "encoder_q.net."),
    ("MoCo (facebookresearch's, or MixCo's of 2020)", "encoder_q."),
    ("MoCo v3", "base_encoder.", r"momentum_encoder\."),
    *(
        (SOLO_LEARN, own, rf"momentum_{own}", r"classifier\.", r"momentum_(projector|head)\.")
        for own in SOLO_LEARN_PREFIXES
    ),
    ("SimSiam", "encoder.", r"encoder\.fc\.6\.", r"predictor\."),
    (MIX_BT, "f.", r"f\.0\.weight", r"g\."),
    ("MYOL", "f.", r"f\.conv1\.weight", r"g\."),
    ("BYOL of W-MSE's code", "model.", r"model_t\.", r"head_t\."),
    ("DINO", "teacher.backbone.", r"student\."),  # its own evaluation takes the teacher
    ("BYOL", "online_encoder.net.", r"target_encoder\."),
    ("SimCLR of MixCo's code of 2020", "features.", r"l1\.|features\.\d+\.0\.conv1\."),
    *(
        ("lightly-train", f"{role}wrapped_model.{part}.")
        # lightly-train exports the teacher, if there is one; its distillation has a student alone.
        for role in ("embedding_model.", "teacher_embedding_model.", "student_embedding_model.", "")
        for part in ("_features", "_model")
    ),
    ("lightly", "backbone.vit."),
    ("lightly", "backbone.", r"(projection|prediction)_(head|mlp)|(key|student)_backbone\."),
    ("a model with backbone", "backbone.", r"momentum_backbone\."),
    (PATRICK_HUA, "backbone.", r"encoder\.0\.", r"projector\."),  # both are the same weights
    ("Barlow Twins", "backbone.", r"projector\.", r"bn\.running_mean"),
    ("lightly", "teacher_backbone.", r"student_"),
    (SWAV, "", r"projection_head\.", r"prototypes\."),
)

# A ResNet's classifier, or the projection head that MoCo has in its place; and what SwAV's holds.
RESNET_HEADS = ("fc.", "linear.", "projection_head.", "prototypes.")

# Numbers that thop puts beside a network's weights when it counts operations; Mix-BT saves them too.
COUNTERS = ("total_ops", "total_params")

# Names that data parallelism and the compiler put before a model's keys.
WRAPPERS = ("module", "_orig_mod")

# The entry of a file that holds the weights, when they are not all of it; others are looked into too.
ENTRIES = ("state_dict", "model", "model_state_dict")
DEEPEST = 3  # dicts in dicts
NETWORKS = ("torch.nn.", "torchvision.models.", "timm.", "lightly.", "lightly_train.")

# A key that only one family has, and the names of its models in timm.
FAMILIES = (
    ("blocks.0.attn.qkv.weight", "vit_*"),
    ("layers.0.blocks.0.attn.qkv.weight", "swin_*"),
    ("stages.0.blocks.0.conv_dw.weight", "convnext_*"),
    ("conv_stem.weight", "mobilenetv3_* or efficientnet_*"),
    ("conv1.0.weight", "resnet*d"),
)

SECOND = "a second encoder"
GROUPS = (
    (SECOND, r"encoder_k|momentum|teacher|student|(^|_)key_|anchor|target_"),
    ("the queue", r"queue|memory_bank"),
    ("thop's counters", r"(.*\.)?total_(ops|params)$"),
    ("heads", r"head|proj|predict|classifier|prototypes|\b(fc|linear|l1|l2|g|pred)\b"),
    ("other parts", ""),
)


@dataclass(frozen=True)
class OtherCheckpoint:
    """A checkpoint of another project, taken apart. Keys are without wrappers."""

    project: str
    """The first column of LAYOUTS, or what else the keys tell."""
    prefix: str
    """What the backbone's keys begin with in the file."""
    backbone: dict[str, Tensor]
    """The backbone's weights, by timm's keys."""
    left_out: dict[str, list[str]]
    """The other weights: group -> their keys in the file."""
    before_layer1: int | None
    """How many parts lie before layer1, for a ResNet with numbered parts; else None."""
    shortcuts: bool
    """Are its downsampling layers called so, as by lightly's small ResNets?"""

    @property
    def of_lightly_small(self) -> bool:
        return self.project == "lightly" and self.shortcuts and self.before_layer1 == 2


def find_weights(content: Any, where: str, prefix: str = "") -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in a file's content, and the names of what else the file holds.

    They are those of the entry that usually holds the weights, by their keys in it; or else those of all
    entries, with the entry's name before their keys: "student.conv1.weight". prefix: may name an entry.

    Raises UserError, which begins with `where`, when there are no tensors.
    """
    entries = content if isinstance(content, dict) else {}
    known = next((name for name in ENTRIES if _is_state_dict(entries.get(name))), None)
    asked = prefix.partition(".")[0]
    if known and (asked in (known, "") or not _is_state_dict(entries.get(asked))):
        beside = [str(key) for key in entries if key != known]
        inside = entries[known]
    else:
        beside, inside = [], entries
    weights = _tensors(inside)
    if not any(isinstance(value, Tensor) for value in inside.values()):
        state_dicts = tuple(f"{key}." for key, value in inside.items() if _is_state_dict(value))
        weights = {key: value for key, value in weights.items() if key.startswith(state_dicts)}
    without = (str(key) for key in inside if not any(_below(key, name) for name in weights))
    beside = sorted([*beside, *without])
    if weights:
        return weights, beside
    whole = next((v for v in (content, *entries.values()) if isinstance(v, Placeholder)), None)
    if whole is not None and whole.stands_for.startswith(NETWORKS):
        entry = next((f"[{key!r}]" for key, value in entries.items() if value is whole), "")
        raise UserError(
            f"{where}: no weights in it, but a whole network ({whole.stands_for}), and loading that "
            "could run code of its author. Where it was made, save model.state_dict() alone, for "
            f"instance by torch.save(torch.load({Path(where).name!r}, weights_only=False){entry}"
            ".state_dict(), 'weights.pt')"
        )
    raise UserError(
        f"{where}: no weights in it; expected a state dict, alone or as {', '.join(ENTRIES)}, "
        f"found {', '.join(beside) or 'none'}; save model.state_dict() to get one"
    )


def _tensors(content: Mapping[Any, Any], depth: int = DEEPEST) -> dict[str, Tensor]:
    """All tensors in dicts and dicts in them, by their keys joined with dots.

    Dicts with numbers for keys, such as the state of an optimiser, are not looked into.
    """
    found = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[str(key)] = value
        elif depth and isinstance(value, dict) and all(isinstance(name, str) for name in value):
            found |= {f"{key}.{name}": each for name, each in _tensors(value, depth - 1).items()}
    return found


def _is_state_dict(value: Any) -> bool:
    """Does it hold the weights of more than a single layer without a bias?"""
    return isinstance(value, dict) and len(_tensors(value)) > 1


def _below(key: Any, name: str) -> bool:
    return name == str(key) or name.startswith(f"{key}.")


def optimiser_groups(content: Any) -> set[str]:
    """The names that a Lightning file gives the groups of its optimisers' parameters."""
    states = content.get("optimizer_states") if isinstance(content, dict) else None
    return {
        str(group["name"])
        for state in (states if isinstance(states, list) else ())
        for group in (state.get("param_groups") or () if isinstance(state, dict) else ())
        if isinstance(group, dict) and "name" in group
    }


def recognise(
    weights: Mapping[str, Tensor],
    where: str,
    expected: Collection[str] = (),
    prefix: str = "",
    groups: Collection[str] = (),
) -> OtherCheckpoint:
    """Find out which project the weights are from, and which of them are the backbone.

    expected: the backbone's keys, for another one than a ResNet. prefix: what its keys begin with in the
    file, or a part of that; needed where there are several. groups: see `optimiser_groups`.

    Every key ends up in `backbone` or in `left_out`. Whether the backbone is complete is not checked
    here. Raises UserError, which begins with `where`, for two keys with one meaning, for a prefix that
    is not there, and for several encoders of which none is known to be the one that is meant.
    """
    bare: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = _without_wrappers(key)
        if name in bare:
            raise UserError(f"{where}: {name} is in it twice, as {key} and without its wrapper")
        bare[name] = value
    while all(key.startswith("model.") for key in bare):
        bare = {key.removeprefix("model."): value for key, value in bare.items()}
    found = _encoders(bare, expected)
    project, prefix = _choose(bare, found, prefix, where)
    if prefix in SOLO_LEARN_PREFIXES and {prefix.removesuffix("."), "classifier"}.issubset(groups):
        project = SOLO_LEARN  # it alone gives its optimiser's groups these names

    backbone, before_layer1 = name_parts(_under(prefix, bare))
    heads = RESNET_HEADS if is_resnet(backbone) else ()
    aside = [k for k in backbone if k.startswith(heads) or k.rpartition(".")[2] in COUNTERS]
    left_out: dict[str, list[str]] = {}
    others = tuple(other for other in found if other and not prefix.startswith(other))
    outside = [key for key in bare if not key.startswith(prefix)]
    for key in [*(prefix + k for k in aside), *outside]:
        own = key.removeprefix(prefix)
        if prefix.startswith("teacher"):  # otherwise its head would count as a second encoder's
            own = re.sub(r"^teacher[._]", "", own)
        of_other = others and key.startswith(others) and not key.startswith(prefix)
        matching = (name for name, pattern in GROUPS if re.search(pattern, own))
        left_out.setdefault(SECOND if of_other else next(matching), []).append(key)
    inside = {key: value for key, value in backbone.items() if key not in aside}
    shortcuts = any(".shortcut." in key for key in bare if key.startswith(prefix))
    return OtherCheckpoint(project, prefix, inside, left_out, before_layer1, shortcuts)


def _without_wrappers(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)}


def _encoders(weights: Mapping[str, Tensor], expected: Collection[str]) -> list[str]:
    """The prefixes below which lies a ResNet, or most of the expected keys."""
    first = ("conv1.weight", "0.weight", *list(expected)[:1])
    ends = [(key, end) for key in weights for end in first if key.endswith(end)]
    prefixes = dict.fromkeys(key.removesuffix(end) for key, end in ends)
    found = []
    for prefix in (p for p in prefixes if p == "" or p.endswith(".")):
        named, _ = name_parts(_under(prefix, weights))
        known = 2 * len(named.keys() & set(expected)) > len(expected)
        if known if expected else is_resnet(named):
            found.append(prefix)
    return found


def _choose(
    weights: Mapping[str, Tensor], found: list[str], prefix: str, where: str
) -> tuple[str, str]:
    """The project, and the prefix of the encoder that is meant."""
    given = [part for part in prefix.split(".") if part and part not in WRAPPERS]
    while given and not any(key.startswith(f"{'.'.join(given)}.") for key in weights):
        if given[0] not in ENTRIES:
            offered = found or list(dict.fromkeys(key.partition(".")[0] for key in weights))
            raise UserError(
                f"{where}: no weight begins with --prefix {prefix}; give one of: {_listed(offered)}"
            )
        given = given[1:]  # the name of the entry that holds the weights
    wanted = "".join(f"{part}." for part in given)
    among = [wanted] if wanted in found else [p for p in found if p.startswith(wanted)]
    for project, known, *marks in LAYOUTS:
        # One that is damaged is chosen too, so that its other encoder is not taken for it.
        damaged = any(key.startswith(known) for key in weights) and not any(
            other.startswith(known) for other in among
        )
        here = known.startswith(wanted) and (known in among or damaged)
        if here and all(any(re.match(mark, key) for key in weights) for mark in marks):
            return project, known
    if len(among) > 1:
        raise UserError(
            f"{where}: it holds {len(among)} encoders; give --prefix, what the keys of the one begin "
            f"with: {_listed(among)}"
        )
    chosen = among[0] if among else wanted
    return (f"a model with {chosen[:-1]}" if chosen else "torchvision or timm"), chosen


def _listed(prefixes: list[str]) -> str:
    return ", ".join(prefix.rstrip(".") or '""' for prefix in prefixes)


def unknown_arch(other: OtherCheckpoint) -> str:
    """Why the weights do not tell the architecture, and where to look for its name."""
    keys = other.backbone.keys()
    if is_resnet(other.backbone):
        return f"a ResNet of a shape not known here ({len(keys)} weights)"
    names = next((n for end, n in FAMILIES if any(f".{k}".endswith(f".{end}") for k in keys)), None)
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
