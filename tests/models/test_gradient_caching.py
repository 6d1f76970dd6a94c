"""A batch in micro-batches has the gradient of the whole batch, and needs the memory of one of them."""

from typing import Any

import pytest
import torch
from distributed_steps import build, plain_encoder, resnet, steps
from torch import nn

from mixco.methods import METHODS
from mixco.models.encoder import Encoder
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches


def close(actual: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("micro_batches", [2, 5])
@pytest.mark.parametrize("mix", ["none", "mixco"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_in_micro_batches_equal_whole_ones_without_batch_norm(
    method: str, mix: str, micro_batches: int
) -> None:
    whole, cut = (
        steps(build(method, mix, plain_encoder(), micro_batches=n), batch=13, count=3)
        for n in (1, micro_batches)
    )
    for kind in ("losses", "gradients", "state"):
        close(cut[kind], whole[kind], 1e-9)


def test_in_float32_it_is_equal_to_a_millionth() -> None:
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for micro_batches in (1, 6):
        encoder = plain_encoder().float()
        encode_in_micro_batches(encoder, images, micro_batches).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    close(gradients[1], gradients[0], 1e-6)


def test_virtual_devices_stay_the_same_in_micro_batches() -> None:
    """With as many parts in all, MoCo's split batch norms see the same images together."""
    whole, cut = (
        steps(build("moco", "none", resnet(), bn_splits=4, micro_batches=n), batch=16, count=2)
        for n in (1, 2)
    )
    for kind in ("losses", "gradients"):
        close(cut[kind], whole[kind], 1e-9)
    statistics = [key for key in whole["state"] if "running" in key]
    assert statistics
    for key in statistics:
        close(cut["state"][key], whole["state"][key], 1e-9)


def test_running_statistics_are_kept_once() -> None:
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    encoder = Encoder(body, nn.Linear(4 * 36, 4))
    encode_in_micro_batches(adjust_momentum(encoder, 2), images, 2).sum().backward()
    assert body[1].num_batches_tracked == 2
    by_hand = nn.BatchNorm2d(4, momentum=1 - 0.9**0.5)
    for piece in images.chunk(2):
        by_hand(body[0](piece))
    close(body[1].running_mean, by_hand.running_mean, 1e-6)
    close(body[1].running_var, by_hand.running_var, 1e-6)


def test_dropout_draws_the_same_on_the_way_back() -> None:
    """Else the gradient would be of another network than the loss."""
    encoder = Encoder(nn.Flatten(), nn.Sequential(nn.Linear(12, 6), nn.Dropout(0.5)))
    images = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    outputs = encode_in_micro_batches(encoder, images, 2)
    dropped = (outputs == 0).float()
    assert 0.2 < dropped.mean() < 0.8
    outputs.sum().backward()
    kept = 2 * (1 - dropped)  # dropout's scale
    close(encoder.head[0].bias.grad, kept.sum(0), 1e-6)
