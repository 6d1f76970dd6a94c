"""Parts that somebody may add to mixco: each is a function or a class, as a file would hold it."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixco.methods.mixed import mixed_queries
from mixco.methods.options import Advice
from mixco.mixing import Mixer, Pairs
from mixco.models.momentum import momentum_copy, momentum_update
from mixco.runtime.distributed import rank, split_batch, world
from mixco.runtime.setting import Rule, setting


# A mixer: image i with a random partner, of which a box is pasted in.
def boxes(batch: int, generator: torch.Generator) -> Pairs:
    second = torch.randperm(batch, generator=generator)
    lam = torch.rand(batch, generator=generator)
    centre = 0.25 + 0.5 * torch.rand(batch, 2, generator=generator)
    return Pairs(torch.arange(batch), second, lam, centre)


def paste(first: Tensor, second: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    assert pairs.centre is not None
    mixed, lam, size = first.clone(), torch.empty(len(first)), first.shape[-1]
    for i, (down, across) in enumerate((pairs.centre * size).int().tolist()):
        half = int((1 - pairs.lam[i]) * size / 4)  # within the image
        place = (slice(None), slice(down - half, down + half), slice(across - half, across + half))
        mixed[i][place] = second[i][place]
        lam[i] = 1 - (2 * half / size) ** 2  # of whole pixels
    return mixed, lam.to(first.device)


patches = Mixer(boxes, paste, per_image=1.0)


# A base with a setting of its own: BYOL (Grill et al. 2020, arXiv 2006.07733), as short as it can be.
def target_decay(steps: int) -> tuple[float, str]:
    return (0.9 if steps < 1000 else 0.99), f"for {steps:,} steps"


@dataclass(frozen=True)
class PullConfig:
    """The settings of `Pull`."""

    target_decay: float | None = setting(
        None,
        "How slowly the target network follows.",
        at_least=0,
        below=1,
        rule=Rule(target_decay, ("steps",)),
        chosen="the steps",
    )


def advise(options: Any, _images: int, batch: int) -> Iterator[Advice]:
    if options.target_decay == 0:
        yield Advice(f"the target follows at once, with batches of {batch}", "raise --target-decay")


class Pull(nn.Module):
    """Each view's prediction near the other view's target projection."""

    def __init__(self, encoder: nn.Module, mix: Mixer | None, dim: int, decay: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.target = momentum_copy(encoder)
        self.predictor = nn.Linear(dim, dim)
        self.mix, self.decay = mix, decay
        self.register_buffer("progress", torch.zeros(()))

    def forward(
        self, views: Sequence[Tensor], draws: torch.Generator, batch: int | None = None
    ) -> dict[str, Tensor]:
        parts = split_batch(batch or len(views[0]), world())
        with torch.no_grad():
            targets = F.normalize(self.target(views[1]).float(), dim=1)
        images = views[0]
        mixed = None
        if self.mix:
            pairs = self.mix.draw(sum(map(len, parts)), draws)
            mixed = mixed_queries(self.mix, images, parts, pairs)
        if mixed is not None:
            images = torch.cat([images, mixed.images])
        predictions = F.normalize(self.predictor(self.encoder(images)).float(), dim=1)
        similarity = predictions @ targets.T
        own = similarity[: len(targets)].diag()
        losses = {"loss": 2 - 2 * own.mean()}
        losses["clean"] = losses["loss"].detach()
        if mixed is not None:
            here = mixed.targets[:, parts[rank()]]
            loss = 2 - 2 * (here * similarity[len(targets) :]).sum(1).mean()
            losses |= {"loss": losses["loss"] + loss, "mixed": loss.detach()}
        best = similarity[: len(targets)].argmax(1) == torch.arange(len(targets))
        return {**losses, "accuracy": 100 * best.float().mean()}

    def after_step(self, progress: float) -> None:
        """The target slows down over the run, as in the paper."""
        self.progress.fill_(progress)  # type: ignore[operator]
        momentum_update(self.target, self.encoder, 1 - (1 - self.decay) * (1 - progress))


def build_pull(
    encoder: nn.Module, mix: Mixer | None, options: Any, *, dim: int, **_: Any
) -> nn.Module:
    return Pull(encoder, mix, dim, options.target_decay)


# A data set: 96 squares of two colours.
def list_squares(root: Path | None, split: str, cache: Path | None = None) -> Any:
    from mixco.data.datasets.folders import labelled_folder

    assert root is not None
    return labelled_folder(root / "squares", "test" if split == "test" else "train", cache)


# An evaluation: the class whose mean is nearest.
def centroids(features: Any) -> Tensor:
    unit, labels = F.normalize(features.train_features, dim=1), features.train_labels
    means = torch.stack([unit[labels == label].mean(0) for label in labels.unique()])
    return F.normalize(features.test_features, dim=1) @ F.normalize(means, dim=1).T


# A logger: lines in a file beside the run.
def lines(folder: Path, config: dict[str, Any], identity: str | None) -> Any:
    from mixco.training.loggers import Service

    path = folder.parent / f"{folder.name}.lines"

    def log(epoch: int, values: dict[str, float]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")

    finish: Callable[[bool], None] = lambda _: None  # noqa: E731
    return Service(identity or config["method"]["method"], log, finish)
