"""Checkpoints as i-Mix, Un-Mix, MYOL, Mix-BT, Barlow Twins, solo-learn and others write them."""

from typing import Any

import torch
from other_layouts import (
    Weights,
    lightning,
    linear,
    named,
    named_groups,
    optimizer_state,
    put,
    queue,
)
from torch import Tensor, nn


def saved(weights: Weights) -> dict[str, Any]:
    return {
        "epoch": 100,
        "arch": "resnet18",
        "state_dict": weights,
        "optimizer": optimizer_state(),
    }


def numbered(model: nn.Module, *without: str) -> nn.Sequential:
    """The parts of a ResNet but those, which gives the others other numbers."""
    return nn.Sequential(*(part for name, part in model.named_children() if name not in without))


def imix(model: nn.Module, other: nn.Module) -> Any:
    """i-Mix on MoCo. It cuts the wrapper off its keys, and its norms are in modules of its own."""
    fc = linear("fc.0", "fc.3", norm="fc.1.bn")
    query, key = ({**named(m), **fc} for m in (model, other))
    return saved({**put("encoder_q.", query), **put("encoder_k.", key), **queue()})


def imix_npair(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """One encoder alone."""
    return saved(
        put("encoder_q.", {**named(model), **linear("fc.0", "fc.3", norm="fc.4.bn")}),
    )


def imix_byol(model: nn.Module, other: nn.Module) -> Any:
    weights = {k: v for k, v in imix(model, other)["state_dict"].items() if "queue" not in k}
    return saved({**weights, **linear("pred.0", "pred.3", norm="pred.1.bn")})


def unmix(model: nn.Module, other: nn.Module) -> Any:
    """Un-Mix on CIFAR, and the demo of MoCo that it is made from: a sequence without max-pool."""
    sequences = [numbered(m, "maxpool", "fc") for m in (model, other)]
    query, key = ({**s.state_dict(), **linear("9")} for s in sequences)  # 8 is nn.Flatten
    weights = {**put("encoder_q.net.", query), **put("encoder_k.net.", key), **queue()}
    return {"epoch": 1000, "state_dict": weights, "optimizer": optimizer_state()}


def swav(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """SwAV's heads lie beside the ResNet's own parts."""
    heads = linear("projection_head.0", "projection_head.3", norm="projection_head.1")
    weights = {**named(model), **heads, "prototypes.weight": torch.ones(8, 4)}
    return {**saved(put("module.", weights)), "amp": {"loss_scaler0": {"loss_scale": 1.0}}}


def myol(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """The backbone, and a head that was never trained; the file is the state dict alone."""
    return {**put("f.", named(model)), **linear("g.0", "g.3", norm="g.1")}


def counted(model: nn.Module, prefix: str) -> Weights:
    """What thop leaves in a network that it has counted: two numbers for each block, and for all."""
    blocks = [prefix + k.removesuffix("conv1.weight") for k in model.state_dict() if ".conv1." in k]
    names = ("total_ops", "total_params")
    return {block + name: torch.zeros(1).double() for block in ["", *blocks] for name in names}


def mix_bt(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """A sequence, with a max-pool where the network has one."""
    without = ("maxpool", "fc") if isinstance(model.maxpool, nn.Identity) else ("fc",)
    sequence = numbered(model, *without)
    return {
        **put("f.", sequence.state_dict()),
        **linear("g.0", "g.3", norm="g.1"),
        **counted(sequence, "f."),
    }


def mix_bt_uncounted(model: nn.Module, other: nn.Module) -> Any:
    return {k: v for k, v in mix_bt(model, other).items() if "total" not in k}


def barlow_twins(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    norm = put("bn.", nn.BatchNorm1d(4, affine=False).state_dict())
    projector = linear("projector.0", "projector.3", norm="projector.1")
    weights = put("module.", {**put("backbone.", named(model)), **projector, **norm})
    return {"epoch": 1000, "model": weights, "optimizer": optimizer_state()}


def mix_bt_imagenet(model: nn.Module, other: nn.Module) -> Any:
    """As Barlow Twins, without its last norm."""
    content = barlow_twins(model, other)
    kept = {k: v for k, v in content["model"].items() if not k.startswith("module.bn.")}
    return {**content, "model": kept}


def backbone_alone(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """resnet50.pth of Barlow Twins and of Mix-BT."""
    return named(model)


def whitening_byol(model: nn.Module, other: nn.Module) -> Any:
    """Data parallelism inside the model."""
    encoders = {
        **put("model.module.", named(model)),
        **put("model_t.module.", named(other)),
    }
    return {**encoders, **linear("head.0", "head_t.0", "pred.0")}


def solo_learn_byol(model: nn.Module, other: nn.Module) -> Any:
    weights = {
        **put("backbone.", named(model)),
        **put("momentum_backbone.", named(other)),
        **linear("classifier", "projector.0", "predictor.0", "momentum_projector.0"),
    }
    groups = named_groups("backbone", "classifier", "projector", "predictor")
    return {**lightning(weights), "optimizer_states": [groups]}


def solo_learn_simsiam(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    weights = {
        **put("backbone.", named(model)),
        **linear("classifier", "projector.0", "predictor.0", norm="projector.7"),
    }
    groups = named_groups("backbone", "backbone_no_decay", "classifier", "projector", "predictor")
    return {**lightning(weights), "optimizer_states": [groups]}


def solo_learn_barlow(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    weights = {**put("backbone.", named(model)), **linear("classifier", "projector.0")}
    groups = named_groups("backbone", "classifier", "projector")
    return {**lightning(weights), "optimizer_states": [groups]}


def older(content: Any) -> Any:
    """As solo-learn wrote it before 1.0.3."""
    weights = {k.replace("backbone.", "encoder."): v for k, v in content["state_dict"].items()}
    groups = named_groups("encoder", "classifier")
    groups["param_groups"].append({"lr": 0.1})  # those of the heads had no name
    return {**content, "state_dict": weights, "optimizer_states": [groups]}


def older_byol(model: nn.Module, other: nn.Module) -> Any:
    return older(solo_learn_byol(model, other))


def older_simsiam(model: nn.Module, other: nn.Module) -> Any:
    return older(solo_learn_simsiam(model, other))


def older_barlow(model: nn.Module, other: nn.Module) -> Any:
    return older(solo_learn_barlow(model, other))


def patrick_hua(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """Every weight is in it twice, and its parts have names of their own."""
    projector = linear("layer1.0", "layer3.0", norm="layer1.1")
    weights = {
        **put("backbone.", named(model)),
        **put("encoder.0.", named(model)),
        **put("projector.", projector),
        **put("encoder.1.", projector),
        **linear("predictor.layer1.0", "predictor.layer2"),
    }
    return {"epoch": 800, "state_dict": weights}


def patrick_hua_shortcuts(model: nn.Module, other: nn.Module) -> Any:
    content = patrick_hua(model, other)
    weights = {k.replace("downsample", "shortcut"): v for k, v in content["state_dict"].items()}
    return {**content, "state_dict": weights}


def narrow(weights: Weights) -> Weights:
    """Half the channels: i-Mix's resnet18h."""

    def half(value: Tensor) -> Tensor:
        kept = [slice(n if n in (1, 3, 7) else n // 2) for n in value.shape]
        return value[tuple(kept)]

    return {key: half(value) for key, value in weights.items()}
