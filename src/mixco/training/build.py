"""The method of a run, built from its settings."""

from pkgutil import resolve_name

from torch import nn

from mixco.encoders.loading import LoadedEncoder
from mixco.methods import METHODS, mixer_of
from mixco.models.encoder import Encoder, build_backbone, feature_dim
from mixco.models.frozen_batchnorm import freeze_batch_norms
from mixco.models.heads import build_head
from mixco.models.sync_batchnorm import synchronise_batch_norms
from mixco.runtime.seeding import generator_for
from mixco.settings.config import Settings
from mixco.training.initial_weights import start_from
from mixco.training.setup import Setup
from mixco.training.teacher import Teacher


def build_method(
    settings: Settings, initial: LoadedEncoder | None = None, teacher: Teacher | None = None
) -> nn.Module:
    """The method (methods/protocol.py), with weights drawn from the seed of the run.

    initial: the backbone's weights, in place of random ones.
    """
    data, model, method, seed = settings.data, settings.model, settings.method, settings.run.seed
    backbone = build_backbone(model.arch, data.size, model.stem, seed, data.channels)
    if initial is not None:
        start_from(backbone, initial, data.size)
    if model.bn_statistics == "frozen":
        freeze_batch_norms(backbone)
    features = feature_dim(backbone, data.size)
    head = build_head(features, model.dim, model.head, seed, model.head_hidden)
    built: nn.Module = resolve_name(METHODS[method.method].build)(
        Encoder(backbone, head),
        mixer_of(method.mix, method.mix_alpha, method.mix_loss),
        method,
        dim=model.dim,
        micro_batches=settings.optimisation.micro_batches,
        generator=generator_for(seed, "queue"),
        teacher=teacher,
    )
    return built


def build(setup: Setup) -> nn.Module:
    """The method of a run on its device, its batch norms synchronised where the settings say so."""
    device = setup.compute.device
    method = build_method(setup.settings, setup.initial, setup.teacher)
    method = method.to(device, memory_format=setup.compute.memory_format)  # type: ignore[call-overload]
    settings = setup.settings
    if settings.method.bn_over == "all" and settings.model.bn_statistics == "batch":
        method = synchronise_batch_norms(method, device)
    return method
