"""The teacher of a run: a trained encoder that looks at the student's images and is not trained."""

import dataclasses
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from mixco.data.images import Drawn, Images
from mixco.embeddings.features import features_of
from mixco.encoders.checkpoint import fingerprint
from mixco.encoders.loading import LoadedEncoder, UnknownArchitecture, load_encoder
from mixco.models.encoder import feature_dim
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.precision import Workload, fastest
from mixco.runtime.progress import counting, say
from mixco.settings.config import PretrainConfig, Settings
from mixco.settings.resolve import Tell, teacher_of, to_values
from mixco.views.augmentation import Input
from mixco.views.change_input import change_input


def load_teacher(config: PretrainConfig) -> LoadedEncoder | None:
    """The encoder that a run learns from; None for a base that learns from none.

    Raises UserError as `teacher_of` and `load_encoder` do.
    """
    what = teacher_of(config)
    if what is None:
        return None
    try:
        loaded = load_encoder(what, size=to_values(config)["teacher_size"])
    except UnknownArchitecture as error:
        how = "let `mixco export FILE --arch NAME --out FOLDER` write FOLDER/model.safetensors"
        raise UnknownArchitecture(
            error.why, f"--arch is the student's; {how}, and give that"
        ) from error
    for line in loaded.report:
        say(f"--teacher: {line}")
    return loaded


@dataclass(frozen=True)
class Teacher:
    """A function of the student's views: [B, C, S, S] -> features [B, D], without gradient."""

    backbone: nn.Module = field(repr=False)
    """In evaluation mode, on the device."""
    name: str
    """Of the architecture."""
    input: Input
    """What the backbone takes."""
    views: Input
    """What the student's views are made for."""
    dim: int
    """D"""
    compute: Compute

    @torch.no_grad()
    def __call__(self, views: Tensor) -> Tensor:
        images = change_input(views, self.views, self.input).to(self.compute.dtype)
        with self.compute.autocast():
            features: Tensor = self.backbone(images)
        return features

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights: SHA-256."""
        return fingerprint(self.backbone)


def as_teacher(encoder: LoadedEncoder, views: Input, compute: Compute) -> Teacher:
    """A loaded encoder as the teacher of views. Raises UserError where their channels differ.

    compute: where it computes; it need not be fastest in the student's number format.
    """
    about = encoder.description
    if about.channels != len(views.mean):
        raise UserError(
            f"--teacher {encoder.path}: it takes images of {about.channels} channels, and these have "
            f"{len(views.mean)}; give --channels {about.channels}, or another teacher"
        )
    backbone = encoder.backbone.eval()
    dim = feature_dim(backbone, about.size)
    backbone.to(compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]
    return Teacher(backbone, about.arch, about.input, views, dim, compute)


def with_teacher(
    settings: Settings, teacher: LoadedEncoder, device: torch.device, tell: Tell
) -> tuple[Settings, Teacher]:
    """The teacher on the device, in its number format, and the settings that follow from it."""
    about, asked = teacher.description, cast(Any, settings.method).teacher_precision
    formats, why = fastest(
        teacher.backbone,
        Workload(about.arch, about.stem, about.size, about.channels, training=False),
        device,
        settings.data.cache,
        precision=asked or "auto",
        memory_format="channels_last",
    )
    if why:
        tell("teacher_precision", formats.precision, why)
    views = Input(settings.data.views, settings.data.mean, settings.data.std)
    taught = as_teacher(teacher, views, formats.compute(device))
    tell("dim", taught.dim, f"the features of {taught.name}, the teacher")
    chosen: dict[str, Any] = {"teacher_precision": formats.precision}
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, dim=taught.dim),
        method=dataclasses.replace(settings.method, **chosen),
    ), taught


def with_central_outputs(
    batches: Generator[Drawn, None, None],
    teacher: Teacher,
    images: Images,
    members: Tensor,
    *,
    on_unreadable: Callable[[str, str], None],
) -> Generator[Drawn, None, None]:
    """The batches, each with the teacher's outputs for its images beside it: float32 [b, D].

    The teacher looks once at the middle of each image (see `evaluation_view`), at once. Its outputs stay
    in the CPU's memory, since training needs the device's: 4 D bytes an image. Several processes divide
    the work.
    members: int64: the images of all batches. An image that cannot be read now has an output of zeros.
    """
    with counting(f"{teacher.name} looks at {images.source.name}") as on_progress:
        found, index = features_of(
            teacher.backbone,
            images,
            members,
            teacher.input,
            compute=teacher.compute,
            on_unreadable=on_unreadable,
            on_progress=on_progress,
        )
    outputs = torch.zeros(len(images), found.shape[1]).index_copy_(0, index, found.cpu())

    def both() -> Generator[Drawn, None, None]:
        with closing(batches):
            for drawn in batches:
                yield drawn._replace(others=(outputs[drawn.images],))

    return both()
