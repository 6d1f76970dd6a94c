"""Finds test images that are copies of train images, by the pixels that the survey has seen."""

import dataclasses
from pathlib import Path
from typing import Any

from mixco.data.datasets import Where, is_hub
from mixco.data.image_list import ImageList
from mixco.doctor.files import LISTED
from mixco.doctor.survey import Look, look_at
from mixco.runtime.errors import UserError


def find_leaks(
    where: Where,
    cache: Path,
    source: ImageList,
    looks: dict[int, Look | str],
    *,
    seconds: float,
    workers: int,
) -> dict[str, Any] | None:
    """Which test images are copies of train images; None where there are no two splits with labels.

    None also for a set of the hub: its test split would have to be downloaded.

    source, looks: the images for pretraining, and what is known of them; those of train are among them.
    seconds: for decoding the test images. Copies have the same pixels at the survey's small scale.
    """
    if is_hub(where.data):
        return None
    try:
        train, test = (where.images(split, cache) for split in ("train", "test"))
    except UserError:
        return None
    test = dataclasses.replace(test, pixel=source.pixel)
    seen = look_at(test, seconds=seconds, workers=workers, at_least=0)
    names = set(train.files)
    of_train = [
        (look.pixels, source.files[i])
        for i, look in sorted(looks.items(), reverse=True)
        if isinstance(look, Look) and source.files[i] in names
    ]
    first = dict(of_train)
    pairs = [
        [test.files[i], first[look.pixels]]
        for i, look in sorted(seen.items())
        if isinstance(look, Look) and look.pixels in first
    ]
    return {
        "files": len(pairs),
        "of": len(test.files) + len(train.files),
        "compared": len(seen) + len(of_train),
        "pairs": pairs[:LISTED],
    }
