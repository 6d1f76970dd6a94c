"""Batch normalisation by the statistics of all processes' images, for methods on several devices.

It normalises a batch as one process would that holds all of it. GPUs use torch's SyncBatchNorm, which
does not run on the CPU; there this module replaces it.
"""

from typing import cast

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from mixco.models.heads import HeadNorm
from mixco.runtime.distributed import gather, world
from mixco.runtime.errors import UserError


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of the model normalise by the statistics of all processes together.

    Returns the model; keys and values of the state dict stay the same. With one process nothing changes.
    Raises UserError for an unknown kind of batch norm on the CPU.
    """
    if world() == 1:
        return model
    if device.type == "cuda":
        return cast(nn.Module, convert_sync_batchnorm(model))  # type: ignore[no-untyped-call]
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in SYNCHRONISED:
                raise UserError(
                    f"{name} is a {type(module).__name__}, whose statistics cannot be synchronised on "
                    "the CPU; give another --arch, or --bn-over process"
                )
            module.__class__ = SYNCHRONISED[type(module)]
    return model


class SyncBatchNorm1d(nn.BatchNorm1d):
    """A BatchNorm1d, over all processes while training."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x) if self.training else super().forward(x)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d, over all processes while training."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x) if self.training else super().forward(x)


class SyncBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with activation, over all processes while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.act(self.drop(_normalise(self, x))))


SYNCHRONISED: dict[type, type] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    HeadNorm: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    BatchNormAct2d: SyncBatchNormAct2d,
}


def _normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise x [b, C, ...] by the statistics of all processes, computed in at least float32."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    others = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(values, dim=others, correction=0)
    count = torch.full_like(mean, x.numel() / x.shape[1])
    every = tuple(torch.tensor([process]) for process in range(world()))
    counts, means, variances = gather(torch.stack([count, mean, variance])[None], every).unbind(1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    # The variance within the processes, plus that between their means.
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    with torch.no_grad():
        cast(Tensor, norm.num_batches_tracked).add_(1)
        momentum = cast(float, norm.momentum)
        unbiased = variance * total / (total - 1)
        cast(Tensor, norm.running_mean).lerp_(mean.to(norm.running_mean.dtype), momentum)  # type: ignore[union-attr]
        cast(Tensor, norm.running_var).lerp_(unbiased.to(norm.running_var.dtype), momentum)  # type: ignore[union-attr]
    scale = torch.rsqrt(variance + norm.eps)
    shift = -mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (values * scale.view(shape) + shift.view(shape)).to(x.dtype)
