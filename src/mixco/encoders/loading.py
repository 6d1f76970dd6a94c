"""Loads encoders from anywhere: files of ours, other projects' checkpoints, published weights.

Every weight of the network comes from the file, or there is an error.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixco.encoders import other_projects
from mixco.encoders.checkpoint import LARGEST, EncoderDescription, read_encoder
from mixco.encoders.other_stems import resnet_stem
from mixco.encoders.published import is_published, is_repository, of_repository, published
from mixco.encoders.resnets import is_resnet, resnet_name
from mixco.encoders.timm_config import timm_config
from mixco.models.adapt import adapt
from mixco.models.encoder import (
    Stem,
    build_backbone,
    classifier_layers,
    feature_dim,
    first_convolution,
    resolve_stem,
)
from mixco.models.families import (
    blank_features,
    create,
    first_line,
    refuse_unknown,
    usual_size,
)
from mixco.runtime.errors import UserError, out_of_memory
from mixco.runtime.setting import option
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD

IN_FOLDERS = ("encoder.safetensors", "model.safetensors")  # of runs, and of exports


class UnknownArchitecture(UserError):
    """A file that does not tell its architecture."""

    def __init__(self, why: str, remedy: str = "give --arch, timm's name of it") -> None:
        super().__init__(f"{why}; {remedy}")
        self.why = why


@dataclass(frozen=True)
class LoadedEncoder:
    """A backbone whose every weight came from the file."""

    backbone: nn.Module = field(repr=False)
    description: EncoderDescription
    path: Path
    """Of the file; for published weights, their name."""
    matched: int
    """How many tensors the backbone has, all of them from the file."""
    report: tuple[str, ...] = ()
    """Lines of text: what was left out of another project's file, what was assumed, where published
    weights are from."""


def load_encoder(
    what: Path | str,
    *,
    arch: str | None = None,
    stem: Stem | None = None,
    size: int | None = None,
    prefix: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> LoadedEncoder:
    """Build the backbone that a file describes, and load all of its weights.

    what: an encoder.safetensors, a checkpoint of a run (checkpoints/*.pt), a run folder, another
        project's checkpoint (see encoders/other_projects.py), the folder of an export, or the name of
        published weights (see encoders/published.py): "timm:NAME", "hf:OWNER/NAME". No code in it is
        run.
    size: the side of the images in pixels, if not the one in the file.

    The others are for another project's encoder, where its file does not tell:
    arch, stem: of the backbone. prefix: what its keys begin with. mean, std: of its images' channels, in
        [0, 1]; ImageNet's by default.

    Raises UserError when the file is missing, damaged or of an unknown layout, and when any weight of
    the backbone is missing, left over or of another shape. So it never returns random weights.
    """
    if size is not None and not 1 <= size <= LARGEST:
        raise UserError(f"--size must be between 1 and {LARGEST} pixels, got {size}")
    if arch is not None:
        refuse_unknown(arch)
    others: dict[str, Any] = {"stem": stem, "prefix": prefix, "mean": mean, "std": std}
    if is_repository(str(what)):
        return _load_from_hub(str(what), arch, size, others)
    if is_published(str(what)):
        return _load_published(str(what), arch, size, others)
    path = Path(what)
    if path.is_dir():
        path = next(
            (path / name for name in IN_FOLDERS if (path / name).exists()), path / IN_FOLDERS[0]
        )
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; give a run, a file of weights, or published weights "
            "(timm:NAME, hf:OWNER/NAME)"
        )
    return _load_file(path, arch, size, others)


def _load_file(
    path: Path, arch: str | None, size: int | None, others: Mapping[str, Any]
) -> LoadedEncoder:
    """others: stem, prefix, mean and std, as `load_encoder` has them."""
    content, description = read_encoder(path)
    if description is None:
        return _load_other_project(path, content, arch, size, **others)
    own = {"arch": description.arch, "stem": description.stem}
    given = {"arch": arch, **others}
    other = {name: value for name, value in given.items() if value not in (None, own.get(name))}
    if needless := [option(name) for name in other]:
        raise UserError(
            f"{path}: the file itself names {description.arch} with stem {description.stem}; leave out "
            f"{' and '.join(needless)}"
        )
    backbone = build_backbone(
        description.arch,
        description.size,
        description.stem,  # type: ignore[arg-type]
        channels=description.channels,
    )
    _fill(backbone, content, description, path)
    if size is not None and size != description.size:
        _refuse_other_size(backbone, size, description)
        built = resolve_stem(description.stem, description.size, backbone)  # type: ignore[arg-type]
        description = dataclasses.replace(description, size=size, stem=built)
    return LoadedEncoder(backbone.eval(), description, path, len(content))


def _load_from_hub(
    what: str, arch: str | None, size: int | None, others: Mapping[str, Any]
) -> LoadedEncoder:
    """An encoder in a repository of the hub; others: as `_load_file` has them."""
    path, origin = of_repository(what)
    loaded = _load_file(path, arch, size, others)
    about = loaded.description
    origin = dataclasses.replace(origin, trained=about.training)
    report = [f"{origin.name} ({origin.trained}): {origin.details}"]
    if about.origin:
        report.append(f"it began with {about.origin.name}: {about.origin.details}")
    return dataclasses.replace(
        loaded,
        description=dataclasses.replace(about, training=origin.training, origin=origin),
        path=Path(what),
        report=(*report, *loaded.report),
    )


def _load_published(
    what: str, arch: str | None, size: int | None, others: Mapping[str, Any]
) -> LoadedEncoder:
    """others: options of files, by their names, which must not be given here, with their values."""
    given = {name: value for name, value in others.items() if value not in (None, "standard")}
    if given:
        needless = " and ".join(map(option, given))
        raise UserError(f"{what}: leave out {needless}: it is known of published weights")
    found = published(what, arch)
    about = EncoderDescription(
        arch=found.arch,
        stem="standard",
        size=size or found.size,
        mean=found.mean,
        std=found.std,
        training=found.origin.training,
        origin=found.origin,
    )
    channels = len(found.mean)
    backbone = build_backbone(found.arch, about.size, "standard", channels=channels)
    weights = adapt(found.weights, found.arch, about.size, channels)
    _fill(backbone, weights, about, Path(what))
    feature_dim(backbone, about.size)  # refuses a size that the backbone cannot take
    return LoadedEncoder(
        backbone.eval(),
        about,
        Path(what),
        len(weights),
        (f"{found.origin.name}: {found.origin.details}",),
    )


def _refuse_other_size(backbone: nn.Module, size: int, description: EncoderDescription) -> None:
    """Raises UserError when the backbone, built for its own size, cannot take the other."""
    try:
        with torch.no_grad():
            blank_features(backbone.eval(), size)
    except Exception as error:  # of many kinds, depending on the architecture
        if out_of_memory(error):
            raise
        reason = first_line(error)
        raise UserError(
            f"--size {size}: {description.arch} with weights for {description.size} pixels cannot take "
            f"such images{f' ({reason})' if reason else ''}; leave out --size, or give another size"
        ) from None


def _normalisation(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What was given; None for nothing. Raises UserError where the two do not fit."""
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std) or not mean:
        raise UserError("--mean and --std go together, with one number each for every channel")
    if min(std) <= 0 or not all(math.isfinite(value) for value in (*mean, *std)):
        raise UserError("--std must be above 0, and --mean finite")
    return mean, std


def _load_other_project(
    path: Path,
    content: Any,
    arch: str | None,
    size: int | None,
    *,
    stem: Stem | None,
    prefix: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> LoadedEncoder:
    where, prefix = str(path), prefix or ""
    normalisation = _normalisation(mean, std)
    beside_it = timm_config(path, arch)
    if beside_it:
        arch, size = beside_it.arch, size or beside_it.size
        normalisation = normalisation or (beside_it.mean, beside_it.std)
    weights, beside = other_projects.find_weights(content, where, prefix)
    expected = _keys_of(arch) if arch else ()
    groups = other_projects.optimiser_groups(content)
    found = other_projects.recognise(weights, where, expected, prefix, groups)
    name = arch or resnet_name(found.backbone)
    if name is None:
        raise UnknownArchitecture(f"{path}: {other_projects.unknown_arch(found)}")
    assumed = ""
    if stem is None:
        stem = "standard"
        if is_resnet(found.backbone):
            stem, assumed = resnet_stem(found, where)
    if size is None:
        size = usual_size(name) if stem == "standard" else 64 if stem == "conv3s1pool" else 32
    mean, std = normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    backbone = build_backbone(name, size, stem, channels=len(mean))
    _refuse_other_channels(backbone, found.backbone, where)
    found = other_projects.without_classifier(
        found, classifier_layers(backbone), backbone.state_dict()
    )
    description = EncoderDescription(
        arch=name,
        stem=stem,
        size=size,
        mean=tuple(mean),
        std=tuple(std),
        training=f"trained elsewhere, keys of {found.project}",
    )
    _fill(backbone, found.backbone, description, path)
    feature_dim(backbone, size)  # refuses a size that the backbone cannot take
    norm = "" if normalisation else ", normalised with ImageNet's mean and standard deviation"
    report = (
        *other_projects.report(found, beside),
        f"{'by config.json' if beside_it else 'assumed'}: "
        + "; ".join(filter(None, (f"images of {size} px{norm}", assumed))),
    )
    return LoadedEncoder(backbone.eval(), description, path, len(found.backbone), report)


def _keys_of(arch: str) -> list[str]:
    """The keys of timm's model without its classifier."""
    with torch.device("meta"):
        return list(create(arch, usual_size(arch), 3).state_dict())


def _refuse_other_channels(backbone: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError when the weights' first convolution is of images of other channels."""
    key = f"{first_convolution(backbone)}.weight"
    if key not in weights or key not in backbone.state_dict():
        return
    theirs, ours = weights[key], backbone.state_dict()[key]
    if theirs.ndim == 4 and theirs.shape[0] == ours.shape[0] and theirs.shape[1] != ours.shape[1]:
        raise UserError(
            f"{where}: its first convolution has {theirs.shape[1]} channels, here are {ours.shape[1]}; "
            "give --mean and --std with a number for each of its channels: the files of other projects "
            "do not say how images other than RGB are normalised"
        )


def _fill(
    backbone: nn.Module,
    weights: Mapping[str, Tensor],
    description: EncoderDescription,
    path: Path,
) -> None:
    """Load the weights. Raises UserError unless names and shapes are exactly the backbone's."""
    expected = backbone.state_dict()
    wrong = [
        *(f"{key} is missing" for key in expected.keys() - weights.keys()),
        *(f"{key} is left over" for key in weights.keys() - expected.keys()),
        *(
            f"{key} is {list(weights[key].shape)} instead of {list(expected[key].shape)}"
            for key in expected.keys() & weights.keys()
            if expected[key].shape != weights[key].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        position = any(text.startswith("pos_embed is [") for text in wrong)
        raise UserError(
            f"{path}: the weights do not fit {description.arch} with stem {description.stem}: "
            f"{'; '.join(sorted(wrong)[:3])}{more}"
            + (f"; another --size than {description.size}?" if position else "")
        )
    try:
        backbone.load_state_dict(dict(weights))
    except Exception as error:  # for instance for quantised weights
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{path}: the weights cannot be loaded into {description.arch} ({reason}); save them as "
            "plain float32"
        ) from None
