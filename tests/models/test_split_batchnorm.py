"""A split batch norm is torch's own of each part, side by side: values, gradients, statistics."""

import copy
import math
from typing import Any

import pytest
import torch
from sample_images import sample_images
from torch import Tensor, nn

from mixco.models.heads import HeadNorm
from mixco.models.split_batchnorm import normalise_in_one_pass, one_pass, split_batch_norms


def activations(count: int, dtype: torch.dtype) -> Tensor:
    """[count, 8, 16, 16] of real images, channels_last as in training."""
    images = sample_images(count)[:, :, ::4, ::4].double() / 255
    mixture = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.einsum("kc,nchw->nkhw", mixture, images)
    return x.to(dtype, memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("count", "splits", "momentum"), [(16, 4, 0.1), (10, 4, 0.1), (3, 8, 0.1), (12, 3, 0.003)]
)
def test_as_norms_of_the_parts(count: int, splits: int, momentum: float, affine: bool) -> None:
    plain = nn.BatchNorm2d(8, momentum=momentum, affine=affine, dtype=torch.float64)
    if affine:
        nn.init.uniform_(plain.weight, 0.5, 1.5, torch.Generator().manual_seed(1))
    split = split_batch_norms(copy.deepcopy(plain), splits)
    x, parts_x = activations(count, torch.float64), activations(count, torch.float64)
    slope = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)

    out = split(x)
    (out * slope).sum().backward()
    parts = min(splits, count)
    plain.momentum = 1 - (1 - momentum) ** (1 / parts)
    expected = torch.cat([plain(part) for part in parts_x.tensor_split(parts)])
    (expected * slope).sum().backward()

    assert torch.equal(out, expected)
    assert x.grad is not None and parts_x.grad is not None
    torch.testing.assert_close(x.grad, parts_x.grad, rtol=1e-12, atol=1e-12)
    for (name, ours), theirs in zip(split.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12, msg=name)
    torch.testing.assert_close(split.running_mean, plain.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(split.running_var, plain.running_var, rtol=1e-12, atol=0)
    assert int(split.num_batches_tracked) == 1


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.003])
def test_all_parts_at_once_are_the_parts_one_by_one(momentum: float, affine: bool) -> None:
    """As a GPU has it, compiled: the same outputs, gradients and running statistics."""
    plain = nn.BatchNorm2d(8, momentum=momentum, affine=affine, dtype=torch.float64)
    if affine:
        nn.init.uniform_(plain.weight, 0.5, 1.5, torch.Generator().manual_seed(1))
    found = []
    for way in (None, one_pass):
        norm = split_batch_norms(copy.deepcopy(plain), 4)
        normalise_in_one_pass(norm, way)
        x = activations(16, torch.float64)
        slope = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
        for _ in range(3):
            out = norm(x)
            (out * slope).sum().backward()
        assert out.is_contiguous(memory_format=torch.channels_last)
        uneven = norm(x[:15])  # which is never taken at once
        gradients = [p.grad for p in norm.parameters()]
        found.append([out, uneven, x.grad, *gradients, *norm.buffers()])
    for one_by_one, at_once in zip(*found, strict=True):
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("way", [None, one_pass])
@pytest.mark.parametrize("affine", [True, False])
def test_the_norms_of_a_head_are_those_of_its_parts(affine: bool, way: Any) -> None:
    plain = HeadNorm(6, affine=affine, dtype=torch.float64)
    split = split_batch_norms(copy.deepcopy(plain), 3)
    normalise_in_one_pass(split, way)
    values = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, parts_x = (values.clone().requires_grad_() for _ in range(2))
    slope = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    out = split(x)
    (out * slope).sum().backward()
    plain.momentum = 1 - (1 - 0.1) ** (1 / 3)
    expected = torch.cat([plain(part) for part in parts_x.chunk(3)])
    (expected * slope).sum().backward()
    for ours, theirs in (
        *((out, expected), (x.grad, parts_x.grad)),
        *zip(split.buffers(), plain.buffers(), strict=True),
    ):
        if ours is not None and ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(split.eval()(values), plain.eval()(values), rtol=1e-10, atol=1e-12)


def test_under_autocast_and_without_gradient() -> None:
    plain = nn.BatchNorm2d(8)
    split = split_batch_norms(copy.deepcopy(plain), 2)
    x, parts_x = activations(8, torch.bfloat16), activations(8, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = split(x)
        expected = torch.cat([plain(parts_x[:4]), plain(parts_x[4:])])
        with torch.no_grad():
            assert torch.equal(split(x), out)
    out.float().square().mean().backward()
    expected.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, expected)
    assert x.grad is not None and parts_x.grad is not None
    assert torch.equal(x.grad, parts_x.grad)
    assert torch.equal(split.weight.grad, plain.weight.grad)


def test_gradients_are_those_of_differences() -> None:
    split = split_batch_norms(nn.BatchNorm2d(8, dtype=torch.float64), 3)
    x = activations(6, torch.float64).detach()[:, :, :4, :4].contiguous().requires_grad_()
    assert torch.autograd.gradcheck(split, (x,), eps=1e-6, atol=1e-6)
    assert math.isfinite(split.running_var.sum().item())
