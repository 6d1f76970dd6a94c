"""The one schema of saved encoders: written by pretraining, read by every evaluation.

An encoder is its weights and a description that suffices to build it and to feed it. It is saved
alone as encoder.safetensors (the description in the file's metadata), and inside checkpoints.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mixco.errors import UserError
from mixco.files import replacing
from mixco.models.encoder import build_backbone


@dataclass(frozen=True)
class EncoderDescription:
    """How to build the backbone, and what it expects to see."""

    arch: str
    stem: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    training: str
    """How it was trained, in words: "simclr+mixco, 40 epochs, seed 0" or "random weights, seed 0"."""


@dataclass(frozen=True)
class LoadedEncoder:
    """A backbone whose every weight came from the file."""

    backbone: nn.Module
    description: EncoderDescription
    path: Path
    matched: int
    """Number of tensors in the file, all of which the backbone took."""


def save_encoder(path: Path, backbone: nn.Module, description: EncoderDescription) -> None:
    """Write encoder.safetensors atomically; keys are timm's."""
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in backbone.state_dict().items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"mixco": json.dumps(dataclasses.asdict(description))})


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: temporary name, synced to the disk, renamed."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_encoder(path: Path) -> LoadedEncoder:
    """Build the backbone that a file describes and load its weights, all of them.

    path: an encoder.safetensors, a checkpoint of a run (checkpoints/*.pt), or a run folder.

    Raises UserError when the file is missing, damaged, of another kind, or when any weight is
    missing, left over or of another shape. There is no way to get random weights from here.
    """
    if path.is_dir():
        path = path / "encoder.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected a run's encoder or checkpoint")
    try:
        weights, description = (
            _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
        )
    except UserError:
        raise
    except Exception as error:  # torch.load and safetensors raise many kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    backbone = build_backbone(
        description.arch,
        description.size,
        description.stem,  # type: ignore[arg-type]
    )
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
        raise UserError(
            f"{path}: the weights do not fit {description.arch} with stem {description.stem}: "
            f"{'; '.join(sorted(wrong)[:3])}{more}"
        )
    backbone.load_state_dict(dict(weights))
    return LoadedEncoder(backbone.eval(), description, path, len(weights))


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], EncoderDescription]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "mixco" not in metadata:
                raise UserError(
                    f"{path}: a safetensors file without mixco's description of the encoder; "
                    "expected the encoder.safetensors of a run"
                )
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
    return weights, _describe(json.loads(metadata["mixco"]))


def _read_checkpoint(path: Path) -> tuple[Mapping[str, Tensor], EncoderDescription]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not {"method", "encoder"} <= state.keys():
        raise UserError(f"{path}: not a checkpoint of mixco (no method or encoder in it)")
    prefix = "encoder.backbone."
    weights = {
        key.removeprefix(prefix): value
        for key, value in state["method"].items()
        if key.startswith(prefix)
    }
    return weights, _describe(state["encoder"])


def _describe(values: dict[str, Any]) -> EncoderDescription:
    return EncoderDescription(
        **{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])}
    )
