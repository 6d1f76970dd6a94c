"""Checkpoints as other projects write them, around ResNets of torchvision with known features."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from mixco.encoders.loading import LoadedEncoder
from mixco.encoders.other_projects import find_weights

Weights = dict[str, Tensor]


def resnet(
    seed: int, arch: str = "resnet18", padding: int | None = None, pool: bool = False
) -> nn.Module:
    """A ResNet in evaluation mode, with random statistics, so that a wrong mapping changes its features.

    padding: of a 3x3 first convolution, without max-pool if not `pool`; None for the standard stem.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = torchvision.models
        model: nn.Module = (
            models.ResNet(models.resnet.Bottleneck, [2, 2, 2, 2])
            if arch == "resnet26"
            else getattr(models, arch)()
        )
        if padding is not None:
            model.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
            model.maxpool = model.maxpool if pool else nn.Identity()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.running_var, module.weight):
                    assert values is not None
                    values.data.uniform_(0.5, 1.5)
                for values in (module.running_mean, module.bias):
                    assert values is not None
                    values.data.normal_(std=0.1)
    return model.eval()


def assert_all_counted(loaded: LoadedEncoder, content: Any) -> None:
    """The lines of the report count every weight of the file once."""
    counted = [int(n) for line in loaded.report for n in re.findall(r"^[a-z' ]+: (\d+) ", line)]
    weights, _ = find_weights(content, "the file")
    assert sum(counted) == len(weights)
    assert counted[0] == loaded.matched == len(loaded.backbone.state_dict())


def features(model: nn.Module, images: Tensor) -> Tensor:
    """[B, D]: the input of the classifier of a torchvision model."""
    classifier, model.fc = model.fc, nn.Identity()
    with torch.no_grad():
        result: Tensor = model(images)
    model.fc = classifier  # type: ignore[assignment]
    return result


def numbered(model: nn.Module) -> Weights:
    """The weights of nn.Sequential(*model.children()) without the classifier."""
    return nn.Sequential(*list(model.children())[:-1]).state_dict()


def named(model: nn.Module) -> Weights:
    return {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}


def put(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def linear(*names: str, norm: str | None = None) -> Weights:
    """Some weights of a head; a batch norm too, when it is named."""
    weights = {f"{n}.{w}": torch.ones(4, 4) for n in names for w in ("weight", "bias")}
    if norm:
        weights |= put(f"{norm}.", nn.BatchNorm1d(4).state_dict())
    return weights


def optimizer_state() -> dict[str, Any]:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def of_2020(weights: Weights) -> dict[str, Any]:
    """What the MoCo scripts and those of MixCo save; the best accuracy is a NumPy number."""
    return {
        "epoch": 100,
        "arch": "resnet18",
        "state_dict": weights,
        "best_acc1": np.float64(61.2),
        "optimizer": optimizer_state(),
    }


def lightning(weights: Weights, hyper_parameters: object = None) -> dict[str, Any]:
    return {
        "epoch": 1,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"dirpath": "runs", "best_model_score": torch.ones(())}},
        "optimizer_states": [optimizer_state()],
        "lr_schedulers": [],
        "hparams_name": "args",
        "hyper_parameters": hyper_parameters or {"batch_size": 256},
    }


def queue(prefix: str = "") -> Weights:
    return {f"{prefix}queue": torch.ones(4, 8), f"{prefix}queue_ptr": torch.zeros(1).long()}


def moco_v2(model: nn.Module, other: nn.Module) -> Any:
    head = linear("fc.0", "fc.2")
    query, key = ({**named(m), **head} for m in (model, other))
    weights = {**put("encoder_q.", query), **put("encoder_k.", key), **queue()}
    return of_2020(put("module.", weights))


def moco_v1_one_gpu(model: nn.Module, other: nn.Module) -> Any:
    query, key = model.state_dict(), other.state_dict()
    return of_2020({**put("encoder_q.", query), **put("encoder_k.", key), **queue()})


def simclr_2020(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return of_2020({**put("features.", numbered(model)), **linear("l1", "l2")})


def simclr_2020_many_gpus(model: nn.Module, other: nn.Module) -> Any:
    return of_2020(put("module.", simclr_2020(model, other)["state_dict"]))


def linear_evaluation_2020(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return of_2020(put("module.", model.state_dict()))


def lightly_moco(model: nn.Module, other: nn.Module) -> Any:
    weights = {
        **put("backbone.", numbered(model)),
        **linear("projection_head.layers.0", "projection_head.layers.2"),
        **put("backbone_momentum.", numbered(other)),
        **linear("projection_head_momentum.layers.0", "projection_head_momentum.layers.2"),
        "criterion.memory_bank.bank": torch.ones(4, 8),
    }
    return lightning(weights)


def lightly_benchmark(model: nn.Module, other: nn.Module) -> Any:
    weights = {
        **put("backbone.", named(model)),
        **linear("projection_head.layers.0", norm="projection_head.layers.1"),
        **put("key_backbone.", named(other)),
        **linear("key_projection_head.layers.0", "online_classifier.fc"),
    }
    return lightning(weights)


def lightly_plain(model: nn.Module, other: nn.Module) -> Any:
    return lightly_moco(model, other)["state_dict"]


def lightly_small(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """lightly's own small ResNet: it has no modules for its activation and pooling."""
    parts = [model.conv1, model.bn1, model.layer1, model.layer2, model.layer3, model.layer4]
    weights = nn.Sequential(*parts).state_dict()  # type: ignore[arg-type]
    weights = {k.replace("downsample", "shortcut"): v for k, v in weights.items()}
    return {"state_dict": {**put("backbone.", weights), **linear("projection_head.layers.0")}}


def lightly_train_simclr(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    weights = {
        **put("embedding_model.wrapped_model._features.", named(model)),
        **linear("projection_head.layers.0", norm="projection_head.layers.1"),
    }
    # It keeps the model itself, as a pickled module, beside its weights.
    entry = {"version": "0.18.0", "models": {"model": torchvision.models.resnet18()}}
    return {**lightning(weights), "lightly_train": entry}


def lightly_train_dino(model: nn.Module, other: nn.Module) -> Any:
    weights = {
        **put("student_embedding_model.wrapped_model._features.", named(other)),
        **linear("student_projection_head.layers.0", "teacher_projection_head.layers.0"),
        **put("teacher_embedding_model.wrapped_model._features.", named(model)),
        "criterion.center": torch.zeros(1, 4),
    }
    return lightning(weights)


def lightly_train_distillation(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    weights = {
        **put("student_embedding_model.wrapped_model._features.", named(model)),
        **linear("student_projection_head"),
        "teacher_queue": torch.zeros(8, 4),
    }
    return lightning(weights)


def state_dict(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return model.state_dict()


def timm_training(model: nn.Module, other: nn.Module) -> Any:
    return {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": model.state_dict(),
        "state_dict_ema": other.state_dict(),
        "args": argparse.Namespace(model="resnet18", output=Path("out")),
    }


def compiled(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    return {"model": put("_orig_mod.module.", model.state_dict())}


def solo_learn(model: nn.Module, other: nn.Module) -> Any:
    weights = {
        **queue(),
        **put("backbone.", named(model)),
        **linear("classifier", "projector.0", "projector.2"),
        **put("momentum_backbone.", named(other)),
        **linear("momentum_projector.0", "momentum_projector.2"),
    }
    return lightning(weights, argparse.Namespace(dataset="cifar10", dir=Path("data")))


def named_groups(*names: str) -> dict[str, Any]:
    """An optimiser's state whose groups of parameters have names, as solo-learn gives them."""
    return {"state": {}, "param_groups": [{"name": name, "lr": 0.1} for name in names]}


def solo_learn_simclr(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """Its modules' names are common; those of its optimiser's groups are not."""
    weights = {**put("backbone.", named(model)), **linear("classifier", "projector.0")}
    groups = named_groups("backbone", "classifier", "projector")
    return {**lightning(weights), "optimizer_states": [groups]}


def stable_pretraining(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    weights = {**put("backbone.", named(model)), **linear("projector.0", "projector.3")}
    return lightning({**weights, **linear("callbacks_modules.linear_probe")})


def simsiam(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    heads = linear("encoder.fc.0", "encoder.fc.3", "encoder.fc.6", "predictor.0")
    return of_2020(put("module.", {**put("encoder.", named(model)), **heads}))


def moco_v3(model: nn.Module, other: nn.Module) -> Any:
    encoders = {**put("base_encoder.", named(model)), **put("momentum_encoder.", named(other))}
    heads = linear("base_encoder.fc.0", "momentum_encoder.fc.0", "predictor.0")
    return of_2020(put("module.", {**encoders, **heads}))


def dino(model: nn.Module, other: nn.Module) -> Any:
    """Several networks, each an entry of its own."""
    return {
        "student": put("module.", {**put("backbone.", named(other)), **linear("head.mlp.0")}),
        "teacher": {**put("backbone.", named(model)), **linear("head.mlp.0")},
        "dino_loss": {"center": torch.zeros(1, 4)},
        "optimizer": optimizer_state(),
        "epoch": 3,
    }


def byol(model: nn.Module, other: nn.Module) -> Any:
    encoders = {
        **put("online_encoder.net.", model.state_dict()),
        **put("target_encoder.net.", other.state_dict()),
    }
    return {"state_dict": {**encoders, **linear("online_encoder.projector.net.0")}}


def pytorch_cifar(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """kuangliu's: another entry, shortcuts, and a tensor beside it."""
    weights = {k.replace("downsample", "shortcut"): v for k, v in named(model).items()}
    return {
        "net": put("module.", {**weights, **linear("linear")}),
        "acc": torch.ones(()),
        "epoch": 1,
    }


def in_a_sequence(model: nn.Module, other: nn.Module) -> Any:  # noqa: ARG001
    """nn.Sequential(encoder, head) in somebody's own trainer."""
    return {"trainer": {"network": {**put("0.", named(model)), **linear("1.0", "1.2")}}, "step": 3}


Layout = Callable[[nn.Module, nn.Module], Any]
