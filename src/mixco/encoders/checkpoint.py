"""The one format of saved encoders: pretraining writes it, every evaluation reads it.

An encoder is its weights and a description with all that it takes to build and feed it. It is saved
alone as encoder.safetensors, with the description in the file's metadata, and inside checkpoints.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.encoders import other_projects
from mixco.encoders.download import Origin
from mixco.encoders.file_kinds import DOWNLOAD, is_safetensors, why_unreadable
from mixco.encoders.other_stems import resnet_stem
from mixco.encoders.published import is_published, is_repository, of_repository, published
from mixco.encoders.resnets import is_resnet, resnet_name
from mixco.encoders.safe_load import safe_load
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
from mixco.runtime.errors import UserError, of_the_machine, out_of_memory
from mixco.runtime.files import refuse_other_than_utf8, replacing
from mixco.runtime.setting import option
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, Input

IN_FOLDERS = ("encoder.safetensors", "model.safetensors")  # of runs, and of exports
LARGEST = 4096  # pixels of an encoder's input; a file with a larger side is damaged


class UnknownArchitecture(UserError):
    """A file that does not tell its architecture."""

    def __init__(self, why: str, remedy: str = "give --arch, timm's name of it") -> None:
        super().__init__(f"{why}; {remedy}")
        self.why = why


@dataclass(frozen=True)
class EncoderDescription:
    """How to build the backbone, and what images it expects."""

    arch: str
    stem: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """mean and std have one number for each channel, of pixels in [0, 1]."""
    training: str
    """How it was trained: "simclr+mixco, 40 epochs, seed 0" or "random weights, seed 0"."""
    origin: Origin | None = None
    """The published weights that it began with, or is; None for none."""

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def provenance(self) -> dict[str, str]:
        """What results.json says of the weights that a run began with."""
        published = {"init_published": self.origin.details} if self.origin else {}
        return {"init": self.training, **published}

    @property
    def input(self) -> Input:
        return Input(self.size, self.mean, self.std)


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


def as_dict(description: EncoderDescription) -> dict[str, Any]:
    """Plain values, as files hold them. An origin is left out where there is none."""
    values = dataclasses.asdict(description)
    return {key: value for key, value in values.items() if key != "origin" or value is not None}


def weights_of(backbone: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and buffers on the CPU; one for each key, also where layers share them."""
    return {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in backbone.state_dict().items()
    }


def save_encoder(path: Path, backbone: nn.Module, description: EncoderDescription) -> None:
    """Write encoder.safetensors atomically, with timm's keys."""
    about = {"mixco": json.dumps(as_dict(description))}
    with replacing(path) as temporary:
        save_file(weights_of(backbone), temporary, about)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: under a temporary name, synced to the disk, then renamed."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


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
    content, description = _read(path)
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


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights and buffers, running statistics among them."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}/{value.dtype}/{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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


def _read(path: Path) -> tuple[Any, EncoderDescription | None]:
    """The weights and description of a backbone of mixco's; of other files, the content and None."""
    refuse_other_than_utf8(path, "the encoder")
    try:
        content: Any
        about: Any
        content, about = (
            _read_safetensors(path) if is_safetensors(path) else (safe_load(path), None)
        )
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(
            f"{path}: damaged or not a safetensors file ({error}); {DOWNLOAD}"
        ) from None
    except Exception as error:  # torch.load raises many kinds on damaged files
        if of_the_machine(error):
            raise
        reason = why_unreadable(path, error)
        raise UserError(f"{path}: cannot be read as a checkpoint; {reason}") from None
    if about is None and isinstance(content, dict) and {"method", "encoder"} <= content.keys():
        content, about = _backbone_of(content["method"]), content["encoder"]
    try:
        return content, None if about is None else _describe(about)
    except Exception as error:
        reason = first_line(error) or type(error).__name__
        raise UserError(
            f"{path}: cannot be read as a checkpoint, its description is damaged ({reason})"
        ) from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The weights, and mixco's description of them; None for none."""
    with safe_open(path, "pt") as file:
        about = (file.metadata() or {}).get("mixco")
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return weights, None if about is None else json.loads(about)


def _backbone_of(method: Mapping[str, Any]) -> dict[str, Tensor]:
    prefix = "encoder.backbone."
    return {
        key.removeprefix(prefix): value
        for key, value in method.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }


def _describe(values: dict[str, Any]) -> EncoderDescription:
    """Raises ValueError, TypeError or KeyError for a damaged description."""
    origin = values.get("origin")
    about = EncoderDescription(
        **{
            **values,
            "mean": tuple(values["mean"]),
            "std": tuple(values["std"]),
            "origin": None if origin is None else Origin(**origin),
        }
    )
    named = vars(about.origin).values() if about.origin else ()
    texts = all(isinstance(text, str) for text in (about.arch, about.stem, about.training, *named))
    if not (
        texts
        and about.stem in get_args(Stem)
        and type(about.size) is int
        and 1 <= about.size <= LARGEST
        and len(about.mean) == len(about.std) >= 1
        and all(math.isfinite(value) for value in about.mean + about.std)
        and min(about.std) > 0
    ):
        raise ValueError("a value is out of its range")
    return about
