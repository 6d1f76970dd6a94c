"""The one format of saved encoders: pretraining writes it, every evaluation reads it.

An encoder is its weights and a description with all that it takes to build and feed it. It is saved
alone as encoder.safetensors, with the description in the file's metadata, and inside checkpoints.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.encoders.download import Origin
from mixco.encoders.file_kinds import DOWNLOAD, is_safetensors, why_unreadable
from mixco.encoders.safe_load import safe_load
from mixco.models.encoder import (
    Stem,
)
from mixco.models.families import (
    first_line,
)
from mixco.runtime.errors import UserError, of_the_machine
from mixco.runtime.files import refuse_other_than_utf8, replacing
from mixco.views.augmentation import Input

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


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of all weights and buffers, running statistics among them."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key}/{value.dtype}/{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_encoder(path: Path) -> tuple[Any, EncoderDescription | None]:
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
