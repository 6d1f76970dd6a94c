"""One step of training: the losses and their gradient, then the update of the weights."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixco.data.images import Drawn
from mixco.models.encoder import drops_at_random
from mixco.runtime.device import Compute
from mixco.runtime.distributed import all_reduce_mean, rank
from mixco.runtime.seeding import generator_for, global_draws
from mixco.training.setup import Setup


class Step(NamedTuple):
    """The two halves of a step. Between them the loss can be read, before it reaches the weights."""

    losses: Callable[[Drawn, int], dict[str, Tensor]]
    """What the views are made from, and the number of the step -> losses, as by `forward_backward`. The
    next step may overwrite them."""
    update: Callable[[float], None]
    """Takes the learning rate."""


def eager_step(setup: Setup, method: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    """A step operation by operation, on any device and any number of processes.

    method: in training mode; with several processes, wrapped by `distributed.ddp`.
    """
    seed, batch = setup.settings.run.seed, setup.settings.optimisation.batch_size
    drops = drops_at_random(method)

    def losses(drawn: Drawn, number: int) -> dict[str, Tensor]:
        return forward_backward(
            method,
            setup.make_views(drawn),
            generator_for(seed, "method", step=number),
            compute=setup.compute,
            batch=batch,
            # Layers that drop at random take no generator of their own.
            dropout=generator_for(seed, "dropout", rank(), number) if drops else None,
        )

    return Step(losses, lambda lr: update(optimizer, lr))


def forward_backward(
    method: nn.Module,
    views: Sequence[Tensor],
    draws: Any,
    *,
    compute: Compute,
    batch: int | None = None,
    dropout: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Compute the losses of a batch and their gradient.

    method: see methods/protocol.py; with several processes, wrapped by `distributed.ddp`.
    views, draws, batch: see `Method.forward`. dropout: seeds dropout and stochastic depth; None without
    such layers.

    Returns the losses, scalars without gradient, the means over all processes.
    """
    with compute.autocast(), global_draws(dropout, compute.device) if dropout else nullcontext():
        losses: dict[str, Tensor] = method(views, draws, batch)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    return all_reduce_mean(losses)


def update(optimizer: torch.optim.Optimizer, lr: float | Tensor | Sequence[float]) -> None:
    """Update the weights, and drop the gradients.

    lr: one learning rate, which may be a scalar on the device, or one for each parameter group. Groups
    marked "constant" keep their own.
    """
    groups = optimizer.param_groups
    rates = [lr] * len(groups) if isinstance(lr, (int, float, Tensor)) else lr
    for group, rate in zip(groups, rates, strict=True):
        if not group.get("constant"):
            group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
