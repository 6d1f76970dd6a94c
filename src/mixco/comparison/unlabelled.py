"""Runs and what they began with, side by side without labels; there is no verdict."""

import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from mixco.comparison.geometry import Geometry, Looked, draw_changed, look, shared
from mixco.comparison.rows import (
    Encoder,
    Row,
    about,
    baseline_of,
    names_of_published,
    pretraining_seconds,
)
from mixco.data.datasets import Where
from mixco.data.image_list import ImageList
from mixco.data.images import Images
from mixco.data.loading import open_images
from mixco.embeddings.features import fastest_compute
from mixco.runtime.device import memory_bytes, processors
from mixco.runtime.errors import UserError
from mixco.runtime.progress import counting, say
from mixco.runtime.run_folder import read_config
from mixco.settings.compare import CompareConfig
from mixco.views.augmentation import AUGMENTATIONS, augmentation_of

PICTURE = "compare-neighbours.png"
FEWEST = 3  # images: a query, and neighbours to choose among

KNOWN = (
    "Without labels nobody can say which encoder is better. The numbers say how features lie, not "
    "whether they tell apart what matters to you.",
    "Effective rank: the number of directions that features use; a value near 1 is a collapse. "
    "Alignment: the distance of two views of an image; lower is more alike. Uniformity: "
    "lower is more evenly spread. Good features have both low, yet both may fall while features get "
    "worse.",
    "Same neighbours: how many of an image's {k} nearest images are also among those of {first}. The "
    "picture shows the images whose neighbours changed most: do those of the run belong together?",
    "A few hundred labelled images, in train/<class>/ and test/<class>/, allow a verdict.",
)


def compare_unlabelled(
    config: CompareConfig,
    rows: list[Row],
    where: Where,
    out: Path,
    device: torch.device,
    reason: str,
) -> dict[str, Any]:
    """What compare.json holds; also draws compare-neighbours.png. reason: why there are no labels."""
    source = where.images("pretrain", config.cache)
    say(f"no verdict, since there are no labels to test with: {reason}")
    first = config.runs[0]
    settings = read_config(first)
    opened: dict[tuple[int, int], Images] = {}
    looked: list[tuple[Row, list[Looked], float]] = []
    for row in rows:
        say(f"looking at {row.name}")
        began, found = time.perf_counter(), []
        for encoder in row.encoders:
            key = (encoder.description.size, encoder.description.channels)
            if key not in opened:
                bits = settings["data"].get("bits")
                opened[key] = _open(config, source, encoder, bits)
            found.append(_look(config, opened[key], encoder, settings["method"], device))
        looked.append((row, found, (time.perf_counter() - began) / len(found)))

    own = next(each for each in looked if each[0].kind == "run" and first in each[0].runs)
    before = baseline_of(own[0], rows)
    theirs = next(found for row, found, _ in looked if row is before)
    encoder = own[0].encoders[0]
    draw_changed(
        out / PICTURE,
        opened[encoder.description.size, encoder.description.channels],
        encoder.description,
        theirs[0],
        own[1][0],
        (before.name, own[0].name),
        config.seed,
    )
    sizes_differ = len({row.description.size for row in rows}) > 1
    return {
        "labelled": False,
        "data": source.name,
        "images": len(own[1][0].seen),
        "k": config.k,
        "seed": config.seed,
        "rows": [
            {
                **about(row, sizes_differ),
                "training_seconds": pretraining_seconds(row),
                "evaluation_seconds": round(seconds, 1),
                "geometry": _mean([each.geometry for each in found]),
                "same_neighbours": _same(own[1][0], found[0]),
            }
            for row, found, seconds in looked
        ],
        "verdicts": [],
        "notes": [
            f"No labels: {reason}",
            *names_of_published(rows),
            *(text.format(k=config.k, first=own[0].name) for text in KNOWN),
        ],
        "picture": PICTURE,
    }


def _open(config: CompareConfig, source: ImageList, encoder: Encoder, bits: int | None) -> Images:
    with counting(f"packing {source.name}") as on_progress:
        images = open_images(
            source,
            size=encoder.description.size,
            cache=config.cache,
            loading=config.loading,
            workers=processors() if config.workers is None else config.workers,
            memory=memory_bytes(),
            channels=encoder.description.channels,
            bits=bits,
            on_progress=on_progress,
        )
    if len(images) < FEWEST:
        raise UserError(
            f"{source.root}: {len(images)} images; give {FEWEST} or more to compare encoders on"
        )
    return images


def _look(
    config: CompareConfig,
    images: Images,
    encoder: Encoder,
    method: dict[str, Any],
    device: torch.device,
) -> Looked:
    """method: the settings of the first run, whose augmentation makes the views."""
    usual = {"augmentation": "simclr", "jitter": method.get("jitter", 1.0)}
    known = method.get("augmentation") in AUGMENTATIONS
    count = min(config.most_images, len(images))
    loaded = encoder.load()
    return look(
        loaded,
        images,
        torch.linspace(0, len(images) - 1, count).long(),
        augmentation_of(method if known else usual, encoder.description.input),
        k=config.k,
        seed=config.seed,
        compute=fastest_compute(loaded, device, config.precision, config.cache),
    )


def _mean(of: list[Geometry]) -> dict[str, float]:
    """Over the seeds of a row."""
    each = [asdict(geometry) for geometry in of]
    return {name: round(mean(values[name] for values in each), 4) for name in each[0]}


def _same(first: Looked, other: Looked) -> float:
    return round(float(shared(other.neighbours, first.neighbours).mean()), 4)
