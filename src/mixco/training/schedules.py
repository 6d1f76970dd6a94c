"""Learning rates as pure functions of the step: nothing to save, nothing to restore."""

import math


def learning_rate(
    step: int,
    *,
    steps: int,
    peak: float,
    schedule: str,
    warmup: float = 0.0,
    milestones: tuple[float, ...] = (),
) -> float:
    """The rate of step 0 <= step < steps.

    It rises linearly to `peak` over the first `warmup` fraction of all steps. Then "cosine" falls to
    zero, which it would reach one step after the last, and "steps" divides by ten at each milestone, a
    fraction of all steps.
    """
    warm_steps = round(warmup * steps)
    if step < warm_steps:
        return peak * (step + 1) / (warm_steps + 1)
    if schedule == "steps":
        return peak * 0.1 ** sum(step >= part * steps for part in milestones)
    if schedule != "cosine":
        raise ValueError(f"unknown schedule {schedule!r}")
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_steps) / (steps - warm_steps)))
