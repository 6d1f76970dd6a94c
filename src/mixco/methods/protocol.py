"""What training asks of a base method."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mixco.models.encoder import Encoder


class Method(Protocol):
    """A base method: a torch module with these parts. There is no base class."""

    encoder: Encoder
    """The encoder that is trained and kept."""

    def draw(self, batch: int, generator: torch.Generator) -> Any:
        """All random numbers of a step of B images, as a tuple of tensors, tuples and None, on the CPU.

        A base may leave it out; then its steps are never captured in a CUDA graph. Where it has it,
        `forward` takes what it returns, on the device too, and asks the host for nothing.
        """

    def forward(
        self, views: Sequence[Tensor], draws: Any, batch: int | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch, scalars: loss (with a gradient), clean, accuracy, and what else it has.

        views: [b, C, S, S] each, of the same images, as many as the base has; after them, with
        --teacher-views central, the teacher's outputs [b, D].
        draws: what `draw` returns, or a generator on the CPU to draw it from; equal on all processes.
        batch: images of all processes together; None with one process.
        """

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """The weights that keep the peak learning rate at all steps. A base may leave it out."""

    def after_step(self, progress: float) -> None:
        """Called after each update of the weights; progress: the part of all steps that is done.

        What it changes and `forward` reads should be a buffer, changed in place. A captured step keeps
        plain numbers, so with a method that changes one of its own the steps go on eagerly.
        """
