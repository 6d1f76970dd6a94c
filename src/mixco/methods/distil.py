"""Distillation by similarities: SEED (Fang et al. 2021, arXiv 2101.04731), plain or mixed.

A trained teacher compares each image with a queue of its own earlier outputs; a smaller student learns
to see the same similarities. As in the paper, teacher and student look at the same view.

With a mixer, a mixed image learns from the teacher's answers on its two sources, weighted by lambda.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mixco.losses import (
    contrastive_accuracy,
    mixtures,
    similarity_logits,
    soft_cross_entropy,
    unit,
)
from mixco.methods.mixed import mixed_queries, total_losses
from mixco.methods.options import DistilOptions
from mixco.mixing import Mixer, Pairs
from mixco.models.gradient_caching import adjust_momentum, encode_in_micro_batches
from mixco.models.key_queue import KeyQueue, own_key
from mixco.runtime.distributed import (
    Parts,
    gather,
    local_rows,
    scale_local_mean,
    split_batch,
    world,
)


def build(
    encoder: nn.Module,
    mix: Mixer | None,
    options: DistilOptions,
    *,
    dim: int,
    micro_batches: int,
    generator: torch.Generator,
    teacher: Callable[[Tensor], Tensor],
) -> "Distil":
    """SEED by its settings."""
    return Distil(
        encoder,
        teacher,
        dim=dim,
        queue=options.queue,
        temperature=options.temperature,
        teacher_temperature=options.teacher_temperature,
        mix=mix,
        mix_temperature=options.mix_temperature,
        mix_weight=options.mix_weight,
        generator=generator,
        micro_batches=micro_batches,
    )


class Distil(nn.Module):
    """The student's similarities to the teacher's outputs against the teacher's own.

    encoder: the student, images [B, 3, S, S] -> projections [B, D].
    teacher: a function of the student's views, [B, 3, S, S] -> outputs [B, D]. It is no part of this
        module, also where it is one itself: no checkpoint holds it, and it is neither trained nor moved.
        So it must be in evaluation mode and on its device already.
    dim: D, of the teacher's outputs. queue: K, how many of them are kept.
    temperature, teacher_temperature: of the student's and of the teacher's similarities, T_S and T_T.
    mix_temperature: in the place of T_S for mixed images. mix_weight: weight of the mixed loss.
    mix: a mixer, or None for plain SEED.
    generator: draws the first outputs of the queue.
    micro_batches: parts in which student and teacher take a batch, see models/gradient_caching.py.
    """

    def __init__(
        self,
        encoder: nn.Module,
        teacher: Callable[[Tensor], Tensor],
        *,
        dim: int,
        queue: int,
        temperature: float,
        teacher_temperature: float,
        mix: Mixer | None,
        mix_temperature: float,
        mix_weight: float,
        generator: torch.Generator,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = adjust_momentum(encoder, micro_batches)
        self._teacher = (teacher,)  # a module in a tuple is no part of this one
        self.queue = KeyQueue(queue, dim, generator)
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.mix = mix
        self.mix_temperature = mix_temperature
        self.mix_weight = mix_weight
        self.micro_batches = micro_batches

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Pairs, ...]:
        """The draws of a step: the pairs of the mixer, where there is one."""
        return (self.mix.draw(batch, generator),) if self.mix else ()

    def forward(
        self,
        views: Sequence[Tensor],
        draws: torch.Generator | tuple[Pairs, ...],
        batch: int | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch: scalars loss, clean, accuracy, and mixed where there is a mixer.

        views: one of [b, 3, S, S], and after it the teacher's outputs [b, D] for these images where they
            are known already; otherwise the teacher looks at the view.
        draws: what `draw` gives, equal on all processes, or a generator on the CPU to draw it from.
        batch: B, the images of all processes, of which this one holds b (`distributed.split_batch`);
            None with one process. The mean of the losses over the processes does not depend on how many
            there are.

        accuracy: percentage of images whose student output is nearer to the teacher's output for the
            same image than to all of the queue.
        """
        view, *known = views
        here = len(view)
        batch = batch or here
        parts = split_batch(batch, world())
        pairs = self.draw(batch, draws) if isinstance(draws, torch.Generator) else draws
        mixed = mixed_queries(self.mix, view, parts, pairs[0]) if self.mix else None
        alone = mixed is not None and self.mix is not None and self.mix.alone
        images = torch.cat([*([] if alone else [view]), *([mixed.images] if mixed else [])])
        students = unit(encode_in_micro_batches(self.encoder, images, self.micro_batches))
        taught = self.teach(view, known, parts)  # [B, D]
        candidates = torch.cat([taught, self.queue.keys])  # [B + K, D]

        clean = mixed_loss = None
        if not alone:
            # Fang et al. 2021, eq. 2 to 5: the candidates are the own output and the queue.
            own, others = own_key(batch, candidates)
            rows = local_rows(batch, view.device)
            targets = similarity_logits(taught[rows], candidates, self.teacher_temperature, others)
            logits = similarity_logits(students[:here], candidates, self.temperature, others)
            clean = scale_local_mean(soft_cross_entropy(logits, targets.softmax(1)), here, batch)
            accuracy = scale_local_mean(contrastive_accuracy(logits, own), here, batch)
        if mixed is not None:
            answers = similarity_logits(taught, candidates, self.teacher_temperature).softmax(1)
            targets = mixtures(mixed.targets, answers)  # [m, B + K]
            students = students if alone else students[here:]
            logits = similarity_logits(students, candidates, self.mix_temperature)
            mixed_loss = mixed.mean(soft_cross_entropy(logits, targets))
            if alone:
                accuracy = mixed.mean(contrastive_accuracy(logits, mixed.targets))
        self.queue.push(taught)
        return total_losses(clean, mixed_loss, self.mix_weight, accuracy)

    def after_step(self, progress: float) -> None:
        """Nothing changes with the steps."""

    @torch.no_grad()
    def teach(self, view: Tensor, known: Sequence[Tensor], parts: Parts) -> Tensor:
        """The teacher's outputs for the images of all processes, of unit length: [B, D].

        view: this process's images, [b, 3, S, S]. known: the outputs [b, D] for them, if any.
        """
        (teacher,), micro = self._teacher, view.tensor_split(self.micro_batches)
        outputs = known[0] if known else torch.cat([teacher(part) for part in micro])
        return unit(outputs) if world() == 1 else gather(unit(outputs), parts)
