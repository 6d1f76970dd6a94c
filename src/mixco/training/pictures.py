"""Pictures of a run: what the network saw, and the curves."""

from pathlib import Path

import torch

from mixco.data.images import Images
from mixco.methods import mixer_of
from mixco.mixing import Mixer
from mixco.plots.charts import draw_curves
from mixco.plots.images import draw_views
from mixco.runtime.seeding import generator_for
from mixco.training.setup import Setup
from mixco.training.state import Record
from mixco.views.augmentation import Augmentation
from mixco.views.preview import Preview, preview


def draw_pictures(folder: Path, setup: Setup, records: list[Record], images: int = 8) -> None:
    """Write views.png, of up to so many images, and curves.png."""
    settings = setup.settings
    mixer = mixer_of(settings.method.mix, settings.method.mix_alpha)
    seen = preview_of(setup.images, setup.augmentation, mixer, settings.run.seed, images)
    draw_views(folder / "views.png", seen.originals, *seen[2:])  # without the extents
    draw_curves(folder / "curves.png", {setup.name: records})


def preview_of(
    images: Images, augmentation: Augmentation, mixer: Mixer | None, seed: int, count: int = 8
) -> Preview:
    """Some images as training sees them: their views, and mixed images of these."""
    index = torch.linspace(0, len(images) - 1, min(count, len(images))).long()
    originals, extents = images.canvases(index, 2 * augmentation.input.size)
    draws = generator_for(seed, "what it saw")
    return preview(originals, extents, augmentation, mixer, draws)
