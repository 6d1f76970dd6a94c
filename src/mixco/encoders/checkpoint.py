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
from mixco.encoders.safe_load import safe_load
from mixco.models.encoder import (
    Stem,
    build_backbone,
    classifier_layers,
    feature_dim,
    first_convolution,
    usual_size,
)
from mixco.runtime.errors import UserError
from mixco.runtime.files import refuse_other_than_utf8, replacing
from mixco.views.augment import IMAGENET_MEAN, IMAGENET_STD, Input

LARGEST = 4096  # pixels of an encoder's input; a file with a larger side is damaged


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

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def input(self) -> Input:
        return Input(self.size, self.mean, self.std)


@dataclass(frozen=True)
class LoadedEncoder:
    """A backbone whose every weight came from the file."""

    backbone: nn.Module = field(repr=False)
    description: EncoderDescription
    path: Path
    matched: int
    """How many tensors the backbone has, all of them from the file."""
    report: tuple[str, ...] = ()
    """For another project's file, lines of text: what was left out, and what was assumed."""


def save_encoder(path: Path, backbone: nn.Module, description: EncoderDescription) -> None:
    """Write encoder.safetensors atomically, with timm's keys."""
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"mixco": json.dumps(dataclasses.asdict(description))})


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: under a temporary name, synced to the disk, then renamed."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_encoder(
    path: Path | str, *, arch: str | None = None, stem: Stem | None = None, size: int | None = None
) -> LoadedEncoder:
    """Build the backbone that a file describes, and load all of its weights.

    path: an encoder.safetensors, a checkpoint of a run (checkpoints/*.pt), a run folder, or another
        project's checkpoint (see encoders/other_projects.py). No code in it is run.
    arch, stem: for another project's encoder, where its weights do not tell.
    size: the side of the images in pixels, if not the one in the file.

    Raises UserError when the file is missing, damaged or of an unknown layout, and when any weight of
    the backbone is missing, left over or of another shape. So it never returns random weights.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "encoder.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give a run, an encoder or a checkpoint")
    if size is not None and not 1 <= size <= LARGEST:
        raise UserError(f"--size must be between 1 and {LARGEST} pixels, got {size}")
    content, description = _read(path)
    if description is None:
        return _load_other_project(path, content, arch, stem, size)
    if arch is not None or stem is not None:
        raise UserError(
            f"{path}: the file itself names {description.arch} with stem {description.stem}; leave out "
            "--arch and --stem"
        )
    backbone = build_backbone(
        description.arch,
        description.size,
        description.stem,  # type: ignore[arg-type]
        channels=description.channels,
    )
    _fill(backbone, content, description, path)
    if size is not None and size != description.size:
        feature_dim(backbone, size)  # refuses a size that the backbone cannot take
        description = dataclasses.replace(description, size=size)
    return LoadedEncoder(backbone.eval(), description, path, len(content))


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights and buffers, running statistics among them."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}/{value.dtype}/{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _load_other_project(
    path: Path, content: Any, arch: str | None, stem: Stem | None, size: int | None
) -> LoadedEncoder:
    weights, beside = other_projects.find_weights(content, str(path))
    found = other_projects.recognise(weights, str(path))
    name = arch or other_projects.resnet_name(found.backbone)
    if name is None:
        raise UserError(
            f"{path}: {other_projects.unknown_arch(found)}; give --arch, timm's name of it"
        )
    assumed = ""
    if stem is None:
        is_resnet = other_projects.is_resnet(found.backbone)
        stem, assumed = (
            other_projects.resnet_stem(found, str(path)) if is_resnet else ("standard", "")
        )
    size = size or (usual_size(name) if stem == "standard" else 32)
    backbone = build_backbone(name, size, stem)
    first = found.backbone.get(f"{first_convolution(backbone)}.weight")
    if first is not None and first.ndim == 4 and first.shape[1] != 3:
        raise UserError(
            f"{path}: its first convolution has {first.shape[1]} channels; other projects' encoders "
            "must be of RGB images, since their files do not say how other images are normalised"
        )
    found = other_projects.without_classifier(
        found, classifier_layers(backbone), backbone.state_dict()
    )
    description = EncoderDescription(
        arch=name,
        stem=stem,
        size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        training=f"trained elsewhere, keys of {found.project}",
    )
    _fill(backbone, found.backbone, description, path)
    norm = f"images of {size} px, normalised with ImageNet's mean and standard deviation"
    report = (
        *other_projects.report(found, beside),
        "assumed: " + "; ".join(filter(None, (norm, assumed))),
    )
    return LoadedEncoder(backbone.eval(), description, path, len(found.backbone), report)


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
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            description = _describe(json.loads(metadata["mixco"])) if "mixco" in metadata else None
            return content, description
        content = safe_load(path)
        if not (isinstance(content, dict) and {"method", "encoder"} <= content.keys()):
            return content, None
        prefix = "encoder.backbone."
        weights = {
            key.removeprefix(prefix): value
            for key, value in content["method"].items()
            if key.startswith(prefix) and isinstance(value, Tensor)
        }
        return weights, _describe(content["encoder"])
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
    except Exception as error:  # torch.load raises many kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason})") from None


def _describe(values: dict[str, Any]) -> EncoderDescription:
    """Raises ValueError, TypeError or KeyError for a damaged description."""
    about = EncoderDescription(
        **{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])}
    )
    texts = all(isinstance(text, str) for text in (about.arch, about.stem, about.training))
    if not (
        texts
        and about.stem in get_args(Stem)
        and type(about.size) is int
        and 1 <= about.size <= LARGEST
        and len(about.mean) == len(about.std) >= 1
        and all(math.isfinite(value) for value in about.mean + about.std)
        and min(about.std) > 0
    ):
        raise ValueError("its description is damaged")
    return about
