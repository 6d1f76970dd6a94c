"""What training asks of a base method."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mixco.models.encoder import Encoder


class Method(Protocol):
    """A base method: a torch module with these parts. There is no base class."""

    encoder: Encoder
    """The encoder that is trained and kept."""

    def forward(
        self, views: Sequence[Tensor], draws: torch.Generator, batch: int | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch, scalars: loss (with a gradient), clean, accuracy, and what else it has.

        views: [b, C, S, S] each, of the same images, as many as the base has; after them, with
        --teacher-views central, the teacher's outputs [b, D]. draws: on the CPU, equal on all processes.
        batch: images of all processes together; None with one process.
        """

    def after_step(self, progress: float) -> None:
        """Called after each update of the weights; progress: the part of all steps that is done."""
