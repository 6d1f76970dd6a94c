"""What comes last in a run is tried before its first step, on the fresh network.

So whatever cannot be saved, read back or drawn ends the run before it has cost anything.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from mixco.encoders.checkpoint import save_encoder
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.models.encoder import input_channels
from mixco.models.families import first_line
from mixco.runtime.errors import UserError, out_of_memory
from mixco.runtime.seeding import generator_for
from mixco.training.pictures import draw_pictures
from mixco.training.setup import Setup

Rehearsal = Callable[[LoadedEncoder, Path], None]
"""Tries something with the encoder; the folder is empty, and removed afterwards."""

IMAGES = 2
# Of the largest feature. Another memory layout rounds differently, on a GPU in TF32 too; weights that
# were mixed up change features by far more.
ROUNDING = 2e-2


def rehearse(setup: Setup, method: nn.Module, others: tuple[Rehearsal, ...] = ()) -> None:
    """Save the encoder, read it back and compare; draw the pictures; then what else is to be tried.

    Nothing is left behind, and neither weights nor random state change. Raises UserError that names what
    cannot be done. A temporary folder that is full or read-only says nothing of the run's own.
    """
    backbone = method.get_submodule("encoder.backbone")
    with (
        suppress(OSError),
        torch.random.fork_rng(devices=[]),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place,
    ):
        folder = Path(place)
        with naming(
            f"--arch {setup.settings.model.arch}: the encoder cannot be saved and read back"
        ):
            save_encoder(folder / "encoder.safetensors", backbone, setup.encoder)
            loaded = load_encoder(folder / "encoder.safetensors")
            _compare(backbone, loaded, setup)
        with naming("the pictures of the run cannot be drawn"):
            draw_pictures(folder, setup, [{"epoch": 1, "clean": 1.0}], images=IMAGES)
        for number, other in enumerate(others):
            (folder / str(number)).mkdir()
            other(loaded, folder / str(number))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Inside, every error but the machine's becomes a UserError that begins with `what`."""
    try:
        yield
    except Exception as error:  # of many libraries
        if out_of_memory(error) or isinstance(error, OSError):
            raise
        reason = first_line(error) or type(error).__name__
        raise UserError(f"{what} ({reason}); nothing was trained") from error


@torch.no_grad()
def _compare(backbone: nn.Module, loaded: LoadedEncoder, setup: Setup) -> None:
    """Raises UserError unless both give the same features, each time, and finite ones."""
    arch, size, device = setup.settings.model.arch, setup.settings.data.size, setup.compute.device
    draws = generator_for(setup.settings.run.seed, "rehearsal")
    shape = (IMAGES, input_channels(loaded.backbone), size, size)
    images = torch.randn(shape, generator=draws).to(device)
    training = backbone.training
    try:
        first, second = (cast(Tensor, backbone.eval()(images)) for _ in range(2))
    finally:
        backbone.train(training)
    other = cast(Tensor, loaded.backbone.to(device)(images))
    loaded.backbone.cpu()
    if not first.isfinite().all():
        raise UserError(f"the fresh {arch} gives features that are not finite")
    allowed = ROUNDING * first.abs().max()
    for found, what in ((second, "the second time"), (other, "when loaded")):
        if (found - first).abs().max() > allowed:
            raise UserError(f"{arch} gives other features {what}")
