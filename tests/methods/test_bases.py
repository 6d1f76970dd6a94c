"""What BYOL, SimSiam and Barlow Twins bring along: heads, momentum, rates, settings and warnings."""

import itertools
import math
from typing import Any

import pytest
import torch
from configs import resolved
from distributed_steps import build, plain_encoder, resnet, views_of_steps
from torch import nn

from mixco.methods import METHODS, MIXERS, mixer_of
from mixco.models.heads import HEADS, build_head
from mixco.models.momentum import momentum_copy
from mixco.runtime.errors import UserError
from mixco.runtime.seeding import generator_for
from mixco.settings.warnings import of_settings
from mixco.training.build import build_method
from mixco.training.optimisers import build_optimizer
from mixco.training.step import update

WITHOUT_NEGATIVES = ("byol", "simsiam", "barlow")


@pytest.mark.parametrize("head", HEADS)
def test_the_layers_of_a_head(head: Any) -> None:
    layers, width, norm, norm_after = HEADS[head]
    built = build_head(10, 6, head, seed=1)
    modules = [built] if isinstance(built, nn.Linear) else list(built.children())
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm1d)]
    sides = [10, *[width or 10] * layers, 6]
    assert [(each.in_features, each.out_features) for each in linear] == [
        *itertools.pairwise(sides)
    ]
    assert len(norms) == layers * norm + norm_after
    assert [each.affine for each in norms] == [True] * layers * norm + [False] * norm_after
    assert built(torch.randn(4, 10)).shape == (4, 6)
    weights = [next(build_head(10, 6, head, seed).parameters()) for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    if layers:
        narrow = build_head(10, 6, head, hidden=3)
        assert next(m.out_features for m in narrow.children() if isinstance(m, nn.Linear)) == 3


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_byols_target_slows_down(schedule: str, progress: float) -> None:
    method: Any = build("byol", "none", plain_encoder(), momentum=0.8, rises=schedule == "cosine")
    for parameter in method.encoder.parameters():
        parameter.data.add_(1.0)
    before = momentum_copy(method.target)
    method.after_step(progress)
    way = 0.2 * (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 0.2
    for was, now in zip(before.parameters(), method.target.parameters(), strict=True):
        torch.testing.assert_close(now, was + way)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_simsiams_predictor_keeps_its_rate(name: str) -> None:
    method: Any = build("simsiam", "none", plain_encoder())
    optimizer = build_optimizer(method, name, 0.01, peak=0.5)
    for rate in (0.25, 0.125):
        method(list(views_of_steps(4, 1)[0]), generator_for(0, "method"))["loss"].backward()
        update(optimizer, rate)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == {id(p) for p in method.parameters()}
    assert {found[id(p)] for p in method.predictor.parameters()} == {0.5}
    assert {found[id(p)] for p in method.encoder.parameters()} == {0.125}


@pytest.mark.parametrize("method", WITHOUT_NEGATIVES)
def test_the_settings_of_a_base_are_those_of_its_paper(method: str) -> None:
    settings = resolved(method=method)
    base, own = METHODS[method], vars(settings.method)
    assert (settings.model.head, settings.model.dim) == (base.head, base.dim)
    assert own["temperature"] is own["mix_temperature"] is own["queue"] is None
    hidden = {"byol": 4096, "simsiam": settings.model.dim // 4, "barlow": None}[method]
    assert own["predictor_hidden"] == hidden
    assert (own["off_diagonal"] is not None) == (method == "barlow")
    assert own["momentum"] == (0.99 if method == "byol" else None)
    built = build_method(resolved(method=method, arch="test_resnet"))
    assert any(isinstance(m, nn.BatchNorm1d) for m in built.get_submodule("encoder.head").modules())


def warned(**settings: Any) -> str:
    return "; ".join(map(str, of_settings(resolved(**settings), 1600, bfloat16=False)))


@pytest.mark.parametrize("method", WITHOUT_NEGATIVES)
def test_what_may_spoil_a_run_is_said(method: str) -> None:
    usual = warned(method=method, batch_size=128)
    assert "--head" not in usual and "--batch-size" not in usual
    assert "leave --head out" in warned(method=method, head="mlp")
    assert "--batch-size 64" in warned(method=method, batch_size=32)
    assert "--head" not in warned(method="moco", head="mlp")


@pytest.mark.parametrize("method", WITHOUT_NEGATIVES)
def test_too_few_mixed_images_for_batch_norm_are_refused(method: str) -> None:
    with pytest.raises(UserError, match="--batch-size 4"):
        resolved(method=method, mix="mixco", batch_size=2)
    with pytest.raises(UserError, match="--batch-size 16"):
        resolved(method=method, mix="mixco", batch_size=8, micro_batches=4)
    resolved(method=method, mix="mixco", batch_size=16, micro_batches=4)


@pytest.mark.parametrize("mix", MIXERS)
@pytest.mark.parametrize("method", ["byol", "simsiam"])
def test_every_mixed_loss_can_be_alone_or_added(method: str, mix: str) -> None:
    """Whichever way it was published: the mixed loss is the same."""
    found = {}
    for loss in ("alone", "added"):
        built = build(method, mixer_of(mix, loss=loss), plain_encoder())
        found[loss] = built(list(views_of_steps(8, 1)[0]), generator_for(0, "method"))
    assert "clean" not in found["alone"] and "clean" in found["added"]
    torch.testing.assert_close(found["alone"]["mixed"], found["added"]["mixed"], rtol=1e-9, atol=0)
    torch.testing.assert_close(found["alone"]["loss"].detach(), found["alone"]["mixed"])


def test_a_step_has_the_batch_norms_of_each_view_apart() -> None:
    """Two views and mixed images: three updates of the running statistics, as in the published codes."""
    for method in WITHOUT_NEGATIVES:
        encoder = resnet(head=METHODS[method].head)
        built = build(method, "mixco", encoder).train()
        built(list(views_of_steps(8, 1)[0]), generator_for(0, "method"))
        norm: Any = built.get_submodule("encoder.backbone.bn1")
        assert norm.num_batches_tracked == 3
