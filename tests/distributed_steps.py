"""Steps of training that several processes make together, on real images, in float64."""

import itertools
from typing import Any, cast

import torch
from mixers import MIXES, works
from sample_images import sample_images
from torch import Tensor, nn

from mixco.methods import METHODS
from mixco.methods.barlow import BarlowTwins
from mixco.methods.byol import BYOL
from mixco.methods.distil import Distil
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.methods.simsiam import SimSiam
from mixco.mixing import Mixer
from mixco.models.encoder import Encoder, build_backbone, feature_dim
from mixco.models.frozen_batchnorm import freeze_batch_norms
from mixco.models.heads import build_head
from mixco.models.sync_batchnorm import synchronise_batch_norms
from mixco.runtime.device import Compute
from mixco.runtime.distributed import broadcast_buffers, ddp, rank, split_batch, world
from mixco.runtime.seeding import generator_for
from mixco.training.step import forward_backward, update

# Without autocast: float64 stays what it is.
CPU = Compute(torch.device("cpu"), torch.float32)

SETTINGS = [
    (method, mix, batch)
    for method, mix in itertools.product(METHODS, MIXES)
    if works(method, MIXES[mix])
    # Even parts, and such as are not: with four processes 4, 3, 3, 3 images. One mixer tells enough of
    # even parts.
    for batch in ((16, 13) if mix in ("none", "mixco", "one") else (13,))
]


def plain_encoder() -> Encoder:
    """Without batch norm."""
    draws = torch.Generator().manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 2, 1), nn.GELU(), nn.Flatten()
    )
    head = nn.Sequential(nn.Linear(16 * 64, 32), nn.ReLU(), nn.Linear(32, 8))
    encoder = Encoder(body, head).double()
    for parameter in encoder.parameters():
        width = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, std=width**-0.5, generator=draws)
    return encoder


def resnet(arch: str = "test_resnet", head: Any = "mlp") -> Encoder:
    backbone = build_backbone(arch, 32, "auto", 0)
    return Encoder(backbone, build_head(feature_dim(backbone, 32), 8, head, 0, 32)).double()


def plain_predictor() -> nn.Module:
    """Without batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).double()


def build(method: str, mix: str | Mixer | None, encoder: Encoder, **more: Any) -> nn.Module:
    """A method of small sizes in float64, around an encoder whose outputs have 8 dimensions.

    mix: a mixer, or its name in MIXES.
    """
    mixer = MIXES[mix] if isinstance(mix, str) else mix
    common: dict[str, Any] = {"mix": mixer, "mix_weight": 1.0, **more}
    if method == "byol":
        return BYOL(encoder, plain_predictor(), **{"momentum": 0.9, **common})
    if method == "simsiam":
        return SimSiam(encoder, plain_predictor(), **common)
    if method == "barlow":
        return BarlowTwins(encoder, **{"off_diagonal": 0.1, **common})
    common = {"temperature": 0.2, "mix_temperature": 0.1, **common}
    if method == "simclr":
        return SimCLR(encoder, **common)
    queue = {"dim": 8, "queue": 40, "generator": generator_for(0, "queue")}
    if method == "distil":
        teacher = plain_encoder().eval()
        return Distil(encoder, teacher, **{"teacher_temperature": 0.05, **queue, **common}).double()
    return MoCo(encoder, **{"bn_splits": 1, "momentum": 0.9, **queue, **common}).double()


def views_of_steps(batch: int, count: int) -> Tensor:
    """[count, 2, batch, 3, 32, 32]: real images, two different ones for the views of each."""
    images = sample_images(2 * batch * count).double()[:, :, ::2, ::2] / 255 - 0.5
    return images.view(count, 2, batch, *images.shape[1:])


def steps(method: nn.Module, batch: int, count: int) -> dict[str, Any]:
    """Some steps of this process's part of each batch; the losses of all, and all that came of it."""
    trained = ddp(method)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.0)
    here = split_batch(batch, world())[rank()]
    seen: list[Tensor] = []
    losses, gradients = [], {}
    encoder = method.get_submodule("key_encoder" if isinstance(method, MoCo) else "encoder")
    encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    for step, views in enumerate(views_of_steps(batch, count)):
        draws = generator_for(0, "method", step=step)
        given = list(views[: 1 if isinstance(method, Distil) else 2, here])
        found = forward_backward(trained, given, draws, compute=CPU, batch=batch)
        losses.append({key: value.item() for key, value in found.items()})
        named = method.named_parameters()
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        # Barlow's loss is a sum, so its steps are large: they would make much of rounding.
        update(optimizer, 5e-4 if isinstance(method, BarlowTwins) else 0.05)
        cast(Any, method).after_step((step + 1) / count)
    return {"losses": losses, "state": method.state_dict(), "gradients": gradients, "seen": seen}


def all_settings(count: int = 3) -> dict[tuple[str, str, int], dict[str, Any]]:
    return {
        (method, mix, batch): steps(build(method, mix, plain_encoder()), batch, count)
        for method, mix, batch in SETTINGS
    }


def synchronised(method: str, mix: str, batch: int = 16) -> dict[str, Any]:
    """With a ResNet, its batch norms, and those of a head, over all processes."""
    encoder = resnet(head="mlp" if method == "simclr" else METHODS[method].head)
    synchronise_batch_norms(encoder, torch.device("cpu"))
    return steps(build(method, mix, encoder), batch, 2)


def split(bn_splits: int = 4, batch: int = 16) -> dict[str, Any]:
    """MoCo with a ResNet, its batch norms in virtual devices."""
    return steps(build("moco", "mixco", resnet("resnet18"), bn_splits=bn_splits), batch, 1)


def frozen(method: str, batch: int = 13) -> dict[str, Any]:
    """With a ResNet whose batch norms keep their statistics."""
    encoder = resnet()
    freeze_batch_norms(encoder.backbone)
    return steps(build(method, "mixco", encoder), batch, 2)


def statistics() -> dict[str, Tensor]:
    """A ResNet's buffers when each process has seen images of its own, and then taken the first's."""
    encoder = resnet().train()
    images = sample_images(16)[rank() * 8 :][:8]
    encoder(images.double() / 255)
    broadcast_buffers(encoder)
    return {name: buffer.clone() for name, buffer in encoder.named_buffers()}


def everything() -> dict[str, Any]:
    """All of the above in one go: to start a process takes longer than any of it."""
    return {
        "settings": all_settings(),
        "none": synchronised("simclr", "none"),
        "mixco": synchronised("simclr", "mixco"),
        "byol": synchronised("byol", "myol"),
        "simsiam": synchronised("simsiam", "imix"),
        "barlow": synchronised("barlow", "mixbt"),
        "split": split(),
        "frozen moco": frozen("moco"),
        "frozen simclr": frozen("simclr"),
        "statistics": statistics(),
    }
