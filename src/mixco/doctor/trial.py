"""A few real steps of a run that has not begun: how fast they are, and how much memory they take."""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from torch import nn

from mixco.data.images import Drawn
from mixco.runtime.device import peak_memory, synchronise
from mixco.training.capture import build_step
from mixco.training.optimisers import build_optimizer
from mixco.training.setup import Setup

WARM_UP, FEWEST, MOST = 2, 2, 10  # steps


class Trial(NamedTuple):
    rates: list[float]
    """Images a second of each timed step."""
    data_wait: float
    """Share of their time in which the device waited for images."""
    peak: int | None
    """Bytes that the process, or the GPU, held at its peak; None where the system does not tell."""

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def try_steps(setup: Setup, method: nn.Module, *, seconds: float) -> Trial:
    """Time ten steps on real images, after two to warm up; fewer in little time.

    method: as `training.build.build` returns it; it is trained. seconds: no step begins after them, once
        two are timed.
    """
    optimisation, steps = setup.settings.optimisation, setup.steps
    batch, compute = min(optimisation.batch_size, len(setup.members)), setup.compute
    endless = dataclasses.replace(optimisation, batch_size=batch, epochs=10**6)
    setup = dataclasses.replace(
        setup, settings=dataclasses.replace(setup.settings, optimisation=endless)
    )
    optimizer = build_optimizer(
        method, optimisation.optimizer, optimisation.weight_decay, optimisation.lr
    )
    batches = setup.batches(lambda _file, _reason: None)
    take = build_step(setup, method.train(), method, optimizer, steps)
    rates: list[float] = []
    waited = 0.0
    with closing(batches):
        _use_up(batches, setup.images.prefetched, seconds / 2)
        end = time.monotonic() + seconds
        for step in range(WARM_UP + MOST):
            if len(rates) >= FEWEST and time.monotonic() > end:
                break
            warm = step >= WARM_UP or (step > 0 and time.monotonic() > end)
            began = time.perf_counter()
            drawn = next(batches)
            has_images = time.perf_counter()
            take.losses(drawn, step)
            take.update(0.0)
            synchronise(compute.device)
            if warm:
                rates.append(batch / (time.perf_counter() - began))
                waited += has_images - began
    total = sum(batch / rate for rate in rates)
    return Trial(rates, waited / total, peak_memory(compute.device))


def _use_up(batches: Iterator[Drawn], prefetched: int, seconds: float) -> None:
    """Take what worker processes have prepared ahead, which would make the first steps too fast."""
    end = time.monotonic() + seconds
    for _ in range(prefetched):
        if time.monotonic() < end:
            next(batches)
