"""Batch normalisation of parts of a batch, as if each part were on its own device.

MoCo cheats when a query and its key are normalised by the same statistics (He et al. 2020, section
3.3): the statistics tell the key from the negatives, the loss falls, and nothing is learned. On several
devices, shuffling the keys across them is enough. One device needs two things: splitting the batch into
virtual devices, which this module does, and permuting the keys, which methods/moco.py does.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mixco.models.frozen_batchnorm import Frozen
from mixco.models.heads import HeadNorm
from mixco.runtime.errors import UserError


class _Parts(torch.autograd.Function):
    """torch's batch norm of each contiguous part, written into one output.

    Equal to F.batch_norm of every part and torch.cat, value for value. But torch.cat copies the outputs
    at every norm of two encoders, which took a twentieth of MoCo's step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        sizes: list[int],
        momentum: float,
        eps: float,
    ) -> Tensor:
        """x: [N, C, H, W], in any memory format. sizes: of the parts; they sum to N."""
        out = torch.empty_like(x)
        # Statistics have the dtype of the running ones: float32 where x is bfloat16 under autocast.
        mean, inverse_std = running_mean.new_empty(2, len(sizes), x.shape[1]).unbind(0)
        parts = zip(_cut(x, sizes), _cut(out, sizes), mean, inverse_std, strict=True)
        for part, out_part, part_mean, part_inverse_std in parts:
            torch.ops.aten.native_batch_norm.out(
                part,
                weight,
                bias,
                running_mean,
                running_var,
                True,
                momentum,
                eps,
                out=out_part,
                save_mean=part_mean,
                save_invstd=part_inverse_std,
            )
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.sizes, ctx.eps, ctx.bias = sizes, eps, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        needed = [True, weight is not None, ctx.bias]
        parts = zip(_cut(gradient, ctx.sizes), _cut(x, ctx.sizes), mean, inverse_std, strict=True)
        gradients = [
            torch.ops.aten.native_batch_norm_backward(
                part_gradient, part, weight, None, None, *statistics, True, ctx.eps, needed
            )
            for part_gradient, part, *statistics in parts
        ]
        of_x, of_weight, of_bias = zip(*gradients, strict=True)
        return (
            torch.cat(of_x),
            torch.stack(of_weight).sum(0) if needed[1] else None,
            torch.stack(of_bias).sum(0) if needed[2] else None,
            *[None] * 5,
        )


def one_pass(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    splits: int,
    momentum: float,
    eps: float,
) -> Tensor:
    """`_Parts` for `splits` equal parts, all at once: for a compiler, which fuses it.

    Equal to it but for rounding. Operation by operation it would move three times the bytes.
    x: [N, C, H, W], N a multiple of splits.
    """
    batch, channels, height, width = x.shape
    parts = x.view(splits, batch // splits, channels, height, width)  # also of channels_last
    parts = parts.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(parts, dim=(1, 3, 4), correction=0, keepdim=True)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.view(1, 1, channels, 1, 1)
    out = (parts - mean) * scale
    if bias is not None:
        out = out + bias.view(1, 1, channels, 1, 1)
    with torch.no_grad():
        count = batch // splits * height * width
        # Each part's update shrinks those before it: part i is followed by splits - 1 - i others. The
        # weights are made on the device; a constant of the host would be copied there at each step.
        after = torch.arange(splits - 1, -1, -1, dtype=mean.dtype, device=x.device)[:, None]
        weights = momentum * (1 - momentum) ** after
        for running, found in (
            (running_mean, mean),
            (running_var, var * (count / (count - 1))),
        ):
            update = (weights * found.view(splits, channels)).sum(0)
            running.mul_((1 - momentum) ** splits).add_(update)
    return out.to(x.dtype).view(batch, channels, height, width)


def normalise_in_one_pass(model: nn.Module, function: Callable[..., Tensor] | None) -> None:
    """Let the split batch norms of the model take equal parts at once.

    function: `one_pass`, or compiled from it. None: one part after the other again.
    """
    for module in model.modules():
        if hasattr(module, "splits"):
            setattr(module, "one_pass", function)  # noqa: B010


def _split_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise each contiguous part of x [N, C, H, W] by its own statistics."""
    splits = min(cast(int, norm.splits), x.shape[0])
    # The parts update the running statistics one after the other. With this momentum all updates
    # together weigh as much as one update of the whole batch.
    momentum = 1 - (1 - cast(float, norm.momentum)) ** (1 / splits)
    cast(Tensor, norm.num_batches_tracked).add_(1)
    at_once = getattr(norm, "one_pass", None) if x.shape[0] % splits == 0 else None
    function = at_once or _Parts.apply
    parts = splits if at_once else _sizes(x.shape[0], splits)
    tensors = (x, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return cast(Tensor, function(*tensors, parts, momentum, norm.eps))


def _cut(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return x.split_with_sizes(sizes)


def _sizes(batch: int, splits: int) -> list[int]:
    """Sizes of the parts, as equal as possible, the larger ones first."""
    return [batch // splits + (part < batch % splits) for part in range(splits)]


class SplitHeadNorm(HeadNorm):
    """A head's batch norm, split only while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return _split_batch_norm(self, x[:, :, None, None]).flatten(1)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d with the same parameters and keys; split only while training."""

    def forward(self, x: Tensor) -> Tensor:
        return _split_batch_norm(self, x) if self.training else super().forward(x)


class SplitBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with activation, split only while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.act(self.drop(_split_batch_norm(self, x))))


SPLIT: dict[type, type] = {
    HeadNorm: SplitHeadNorm,
    nn.BatchNorm2d: SplitBatchNorm2d,
    BatchNormAct2d: SplitBatchNormAct2d,
}


def split_batch_norms(model: nn.Module, splits: int) -> nn.Module:
    """Let every batch norm of the model normalise `splits` contiguous parts of a batch separately.

    Works in place and returns the model; keys and values of the state dict stay the same. splits = 1
    changes nothing, and frozen ones stay whole.

    Raises ValueError for splits < 1, and UserError for a norm over the batch that cannot be split, which
    would leak. (A norm that is not derived from torch's and keeps no running statistics goes unnoticed.)
    """
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    if splits == 1:
        return model
    for name, module in model.named_modules():
        tracks = any(getattr(module, f"running_{k}", None) is not None for k in ("mean", "var"))
        if isinstance(module, Frozen) or not (isinstance(module, _BatchNorm) or tracks):
            continue
        known = type(module) in {*SPLIT, *SPLIT.values()}
        # Splitting needs running statistics, and a momentum to adjust.
        if not known or not tracks or module.momentum is None:
            raise UserError(
                f"{name} is a {type(module).__name__}, whose statistics cannot be split into virtual "
                "devices, and MoCo on one device would leak through them; give another --arch or "
                "--method simclr (--bn-splits 1 accepts the leak)"
            )
        # Changing the class keeps parameters, buffers and their names.
        module.__class__ = SPLIT.get(type(module), type(module))
        setattr(module, "splits", splits)  # noqa: B010
    return model


def dealt(count: int, splits: int, device: torch.device | None = None) -> Tensor:
    """The order in which images are dealt to the virtual devices, one each in turn: int64 [count].

    Split batch norms take contiguous parts. Dealt in turn, each part gets its share of the clean and
    of the mixed images, as each real device would.
    """
    return torch.argsort(torch.arange(count, device=device) % splits, stable=True)


def deal(images: Sequence[Tensor], splits: int) -> Tensor:
    """torch.cat(images) in the order of `dealt`, with at most one copy of each image."""
    if splits == 1:
        return images[0] if len(images) == 1 else torch.cat(list(images))
    starts = [sum(map(len, images[:i])) for i in range(len(images))]
    return torch.cat(
        [
            some[(split - start) % splits :: splits]
            for split in range(splits)
            for some, start in zip(images, starts, strict=True)
        ]
    )


def undeal(outputs: Tensor, splits: int) -> Tensor:
    """[N, C] in the order of `dealt` -> in the order before."""
    count = len(outputs)
    if count % splits == 0:
        return outputs.view(splits, count // splits, -1).transpose(0, 1).reshape(outputs.shape)
    order = dealt(count, splits, outputs.device)
    return torch.empty_like(outputs).index_copy(0, order, outputs)
