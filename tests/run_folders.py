"""Run folders for tests of evaluation: as pretraining leaves them, without the pretraining."""

from pathlib import Path
from typing import Any

from configs import pretrain_config
from sample_images import unpack_sample

from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.methods import METHODS
from mixco.models.encoder import build_backbone
from mixco.runtime.run_folder import new_run_folder, write_json
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import to_dict
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD

ARCH = "test_resnet"


def random_run(folder: Path, data: str | Path, seed: int = 0) -> Path:
    """A run whose encoder is timm's smallest ResNet at 32 px, with random weights."""
    new_run_folder(folder)
    write_json(folder / "config.json", to_dict(pretrain_config(data=str(data), size=32)))
    save_encoder(
        folder / "encoder.safetensors",
        build_backbone(ARCH, 32, "standard", seed),
        EncoderDescription(
            arch=ARCH,
            stem="standard",
            size=32,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            training=f"random weights, seed {seed}",
        ),
    )
    return folder


def short_run(folder: Path, init: str, **settings: Any) -> PretrainConfig:
    """A run of two epochs over a few photographs, which begins with these weights."""
    photos = unpack_sample(folder / "photos", train=8, test=1, classes=2)
    places = {"data": str(photos), "out": folder / "run", "cache": folder / "packed"}
    usual = {"batch_size": 8, "epochs": 2, "workers": 1, "init": init}
    return pretrain_config(**places, **usual, **settings)


def needed_by(method: str, folder: Path) -> dict[str, Any]:
    """The settings that a base cannot do without: a teacher, for one that learns from it."""
    return {"teacher": str(random_teacher(folder))} if METHODS[method].teacher else {}


def random_teacher(folder: Path, seed: int = 5, mean: tuple[float, ...] = (0.5, 0.5, 0.5)) -> Path:
    """An encoder of images of 48 px with a normalisation of its own, with random weights."""
    path = folder / f"teacher-{seed}.safetensors"
    backbone = build_backbone(ARCH, 48, "standard", seed, channels=len(mean))
    std, about = tuple(0.3 for _ in mean), f"random weights, seed {seed}"
    save_encoder(path, backbone, EncoderDescription(ARCH, "standard", 48, mean, std, about))
    return path
