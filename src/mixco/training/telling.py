"""What a run tells a person: of its data, at the end of an epoch, and in the picture of what it saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixco.data.images import Images
from mixco.mixing import Mixer, draw_shares
from mixco.plots import draw_views
from mixco.runtime.files import naming, replacing, shown
from mixco.runtime.progress import NUMBERS, in_words, redraws, say
from mixco.runtime.seeding import generator_for
from mixco.settings.warnings import Caution
from mixco.training.setup import Choice
from mixco.views import augment as views


def note_once(path: Path, line: str) -> None:
    """Add a line to a text file, unless an earlier part of the run has."""
    with naming(path), path.open("a+", encoding="utf-8", errors="surrogateescape") as file:
        file.seek(0)
        if line not in file:
            file.write(line)


def say_choices(choices: Sequence[Choice]) -> None:
    """A line each: what was not given, what was taken for it, and why."""
    for choice in choices:
        say(f"  --{choice.option} {choice.value}: {choice.why}")


def report_data(images: Images, cautions: Sequence[Caution], size: int, folder: Path) -> None:
    """List what was left out, and warn of what may spoil the run."""
    if images.unreadable_files:
        lines = [f"{shown(file)}\t{reason}\n" for file, reason in images.unreadable_files]
        with replacing(folder / "unreadable.txt") as temporary:
            temporary.write_text("".join(lines), "utf-8")
        say(f"{len(lines)} unreadable images left out, listed in {folder / 'unreadable.txt'}")
    if (side := images.longest_side) is not None and side < size:
        say(
            f"warning: no image is longer than {side} px, so --size {size} only enlarges them; "
            f"--size {max(32, side)} shows as much in less time"
        )
    for caution in cautions:
        say(f"warning: {caution}")


def say_epoch(record: dict[str, float], epochs: int, images_left: int) -> None:
    """A line in the log at each kNN check, the first and the last epoch, and each tenth of the run.

    images_left: how many are to be trained on until the end, each time that they come up.
    """
    epoch = int(record["epoch"])
    if "knn" in record or epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
        # The rest is seen below a bar, if there is one.
        lasting = ("loss", "accuracy", "knn") if redraws() else NUMBERS
        left = None if redraws() else images_left / record["images_per_second"]
        say(f"epoch {epoch:>{len(str(epochs))}}/{epochs}  {in_words(record, lasting, left)}")


class Seen(NamedTuple):
    """Images as training sees them."""

    originals: Tensor
    """uint8 [B, C, H, W], on canvases"""
    extents: Tensor
    """int64 [B, 2]"""
    view_q: Tensor
    view_k: Tensor
    """float [B, C, S, S] in [0, 1], not normalised"""
    mixed: Tensor | None
    """float [M, C, S, S] in [0, 1]"""
    shares: list[tuple[int, int, float]]
    """Of each mixture its first and second source, and the share of the first."""


def what_it_sees(
    images: Images,
    augmentation: views.Augmentation,
    mixer: Mixer | None,
    seed: int,
) -> Seen:
    """Views and mixtures of eight images, drawn as in training."""
    count = min(8, len(images))
    index = torch.linspace(0, len(images) - 1, count).long()
    originals, extents = images.canvases(index, 2 * augmentation.input.size)
    generator = generator_for(seed, "what it saw")
    view_q, view_k = views.two_views(originals, extents, augmentation, generator, torch.float32)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in augmentation.input[1:])

    def visible(view: Tensor) -> Tensor:
        pixels = view * std + mean
        if originals.dtype == torch.uint8:
            return pixels.clamp(0, 1)
        return views.brightened(pixels, augmentation.input)

    mixed: Tensor | None = None
    shares: list[tuple[int, int, float]] = []
    if mixer is not None and count >= 2:
        half = count // 2
        mixture = mixer(view_q, draw_shares(half, generator))
        mixed = visible(mixture.images)
        shares = [(i, i + half, mixture.targets[i, i].item()) for i in range(len(mixture.images))]
    shown = views.brightened(originals, augmentation.input)
    return Seen(shown, extents, visible(view_q), visible(view_k), mixed, shares)


def show_what_it_saw(path: Path, seen: Seen) -> None:
    """The picture of it."""
    draw_views(path, seen.originals, seen.view_q, seen.view_k, seen.mixed, seen.shares)
