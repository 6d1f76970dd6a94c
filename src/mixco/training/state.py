"""The progress of a run: all that changes with its steps, beside weights and optimiser."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixco.runtime.progress import Stopwatch

Record = dict[str, float]


@dataclass
class TrainState:
    """The state after `step` steps."""

    step: int = 0
    records: list[Record] = field(default_factory=list)
    """One for each finished epoch."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """The sum of each loss over the steps of the current epoch; scalars on the device."""
    means: Record = field(default_factory=dict)
    """The mean of each loss over the current epoch, as of the last look."""
    lr: float = 0.0
    """The learning rate of the last step."""
    whole: Stopwatch = field(default_factory=Stopwatch)
    """The time of the run; a resumed run continues it."""
    epoch: Stopwatch = field(default_factory=Stopwatch)
    """The time of the current epoch."""

    def add(self, losses: dict[str, Tensor], lr: float) -> None:
        """Add the losses of a step to those of the epoch; nothing waits for the device."""
        for key, value in losses.items():
            self.sums[key] = self.sums.get(key, torch.zeros_like(value)) + value
        self.lr = lr

    def count(self, images: int) -> None:
        """Count a finished step; images: of its batch, over all processes."""
        self.step += 1
        self.whole.images += images
        self.epoch.images += images

    def look(self, steps: int) -> bool:
        """Read the means over the `steps` steps of the epoch so far, which waits for the device.

        Returns whether the loss is finite.
        """
        self.means = {key: value.item() / steps for key, value in self.sums.items()}
        return math.isfinite(self.means["loss"])

    def end_epoch(self) -> Record:
        """Append the record of the finished epoch, return it, and start the sums afresh."""
        record = {
            "epoch": len(self.records) + 1,
            **{key: round(mean, 5) for key, mean in self.means.items()},
            "lr": self.lr,
            "images_per_second": round(self.epoch.rate, 1),
            "data_wait": round(self.epoch.data_wait, 4),
        }
        self.records.append(record)
        self.sums = {}
        return record

    def saved(self) -> dict[str, Any]:
        """The part of the state that a checkpoint holds; `restored` reads it."""
        time = (self.whole.seconds, self.whole.waited, self.whole.images)
        return {"step": self.step, "records": self.records, "sums": self.sums, "time": time}


def restored(saved: dict[str, Any], device: torch.device) -> TrainState:
    """The state of a checkpoint, its sums on the device."""
    state = TrainState(saved["step"], saved["records"])
    state.sums = {key: value.to(device) for key, value in saved["sums"].items()}
    state.whole.go_on(*saved["time"])
    return state
