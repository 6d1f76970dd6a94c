"""A few real steps of a run that is not begun: how fast they are, and what memory they take."""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mixco.data.images import Images
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.models.encoder import drops_at_random
from mixco.runtime.device import Compute, peak_memory
from mixco.runtime.seeding import generator_for, global_draws
from mixco.settings.config import PretrainConfig
from mixco.training.optimisers import build_optimizer
from mixco.training.pretrain import plan
from mixco.views import augment as views

WARM_UP, FEWEST, MOST = 2, 2, 10  # steps


class Trial(NamedTuple):
    rates: list[float]
    """Images a second of each timed step."""
    waiting: float
    """Share of their time in which the device waited for images."""
    peak: int | None
    """Bytes that the process, or the GPU, held at its peak; None where the system does not tell."""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def try_steps(
    config: PretrainConfig,
    method: MoCo | SimCLR,
    images: Images,
    compute: Compute,
    *,
    seconds: float,
) -> Trial:
    """Ten steps of a resolved config on real images, after two to warm up; fewer in little time.

    method: as `build_method` gives it; it is trained. seconds: after which no more are begun, once
        there are two.
    """
    data, method_config, optimisation = config.data, config.method, config.optimisation
    assert data.size and data.mean and data.std and optimisation.batch_size
    assert optimisation.weight_decay is not None
    device = compute.device
    members = torch.arange(len(images))
    batch = min(optimisation.batch_size, len(members))
    optimizer = build_optimizer(method, optimisation.optimizer, optimisation.weight_decay)
    augmentation = views.weaken_jitter(
        views.AUGMENTATIONS[method_config.augmentation](
            views.Input(data.size, data.mean, data.std)
        ),
        method_config.jitter,
    )
    batches = images.view_batches(
        plan(members, batch, 10**6, config.run.seed),
        augmentation,
        members=members,
        batch_size=batch,
        compute=compute,
        on_unreadable=lambda _file, _reason: None,
    )
    drops = drops_at_random(method)
    method.train()
    rates: list[float] = []
    waited = 0.0
    with closing(batches):
        _empty(batches, images, seconds / 2)
        end = time.monotonic() + seconds
        for step in range(WARM_UP + MOST):
            if len(rates) >= FEWEST and time.monotonic() > end:
                break
            warm = step >= WARM_UP or (step > 0 and time.monotonic() > end)
            began = time.perf_counter()
            _, (view_q, view_k) = next(batches)
            _wait_for(device)
            has_images = time.perf_counter()
            dropout = generator_for(config.run.seed, "dropout", step=step) if drops else None
            with (
                compute.autocast(),
                global_draws(dropout, device) if dropout else nullcontext(),
            ):
                losses = method(view_q, view_k, generator_for(config.run.seed, "method", step=step))
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _wait_for(device)
            if warm:
                rates.append(batch / (time.perf_counter() - began))
                waited += has_images - began
    total = sum(batch / rate for rate in rates)
    return Trial(rates, waited / total, peak_memory(device))


def _empty(batches: Iterator[tuple[Tensor, list[Tensor]]], images: Images, seconds: float) -> None:
    """Take what worker processes have prepared ahead, which would make the first steps too fast."""
    end = time.monotonic() + seconds
    for _ in range(images.prefetched):
        if time.monotonic() < end:
            next(batches)


def _wait_for(device: torch.device) -> None:
    """Until it has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
