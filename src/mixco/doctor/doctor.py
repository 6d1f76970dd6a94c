"""A look at the images and the machine before a run is begun: what spoils it, how long it takes.

It goes the way of the run that the same options would begin, up to a few steps of it, but writes nothing
into its folder. What is found is one dictionary, for the page (doctor/page.py) and for `--json`.
"""

import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from mixco.data.datasets.folders import EXTENSIONS
from mixco.data.datasets.sources import list_images
from mixco.data.image_list import ImageList
from mixco.data.loading import fits_packed
from mixco.data.packing import is_whole, pack, packed_path
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.streaming import stream
from mixco.doctor.near_duplicates import near_copies
from mixco.doctor.page import show
from mixco.doctor.survey import Header, Look, copies, look_at, other_files, read_headers
from mixco.doctor.trial import Trial, try_steps
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.runtime.device import (
    Compute,
    describe,
    device_memory,
    keep_freed_memory,
    memory_bytes,
    pick_device,
    pick_dtype,
    processors,
)
from mixco.runtime.errors import UserError
from mixco.runtime.files import free_space
from mixco.runtime.progress import doing
from mixco.runtime.run_folder import write_json
from mixco.settings import warnings as cautions
from mixco.settings.config import DoctorConfig, PretrainConfig
from mixco.settings.resolve import to_dict
from mixco.settings.warnings import Caution
from mixco.training.held_out import split_holdout
from mixco.training.pretrain import build_method
from mixco.training.setup import (
    Choice,
    as_it_began,
    cautions_of,
    choose_rest,
    choose_size,
    step_bytes,
)

# Seconds that each part may take; together less than a minute.
HEADERS, COPIES, LOOKS, TRIAL = 20, 8, 15, 12
LOOKED_AT = 400  # files that are decoded, however long it takes
TRIED = 1024  # images that the trial is made with, where they are packed
LISTED = 1000  # names of a kind in the JSON file


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look, print a page, and return all that is on it, as `--json` has it.

    "unusable" tells why the run would be refused; None where it would begin.

    Raises UserError where there is nothing to look at.
    """
    wanted = as_it_began(config.pretrain)
    device = pick_device(wanted.run.device)
    dtype = pick_dtype(device, wanted.run.precision)
    keep_freed_memory(device)
    workers = processors() if wanted.data.workers is None else wanted.data.workers
    cache = wanted.data.cache.expanduser()
    source = list_images(wanted.data.data, wanted.data.data_path, "pretrain", cache)
    source = infer_pixel_format(source, wanted.data.channels, wanted.data.bits)

    with doing(f"reading the headers of {len(source.files):,} files"):
        headers = read_headers(source, seconds=HEADERS, workers=workers)
        same, compared = copies(source, headers, seconds=COPIES)
    with doing("decoding"):
        began = time.perf_counter()
        looks = look_at(
            source,
            seconds=float("inf") if config.all else LOOKS,
            workers=workers,
            at_least=LOOKED_AT,
        )
        decoding = len(looks) / (time.perf_counter() - began)
    found = of_files(source, headers, looks, same, compared)
    bad = {i for part in (headers, looks) for i, what in part.items() if isinstance(what, str)}
    good = [i for i in range(len(source.files)) if i not in bad]
    if not good:
        raise UserError(f"{source.root}: none of its {len(source.files):,} images can be read")
    warned = _of_files(found, config.json)
    unusable = None
    if len(bad) > cautions.MOST_UNREADABLE * len(source.files):
        unusable = f"{len(bad):,} of {len(source.files):,} files cannot be read"

    try:
        run, of_run = _of_run(
            wanted,
            source,
            good,
            [header for header in headers.values() if isinstance(header, Header)],
            device,
            dtype,
            workers=workers,
            decoding=decoding,
            trial_wanted=config.trial,
        )
        found |= run
        warned += of_run
    except UserError as error:
        unusable = unusable or str(error)
    found |= {"cautions": cautions.as_dicts(warned), "unusable": unusable}
    show(found)
    if config.json is not None:
        try:
            write_json(config.json, found)
        except OSError as error:
            raise UserError(f"--json {config.json}: cannot be written ({error.strerror})") from None
    return found


def of_files(
    source: ImageList,
    headers: dict[int, Header | str],
    looks: dict[int, Look | str],
    same: list[list[int]],
    compared: int,
) -> dict[str, Any]:
    """What the files are, without a thought of a run."""
    read = [header for header in headers.values() if isinstance(header, Header)]
    reasons = {
        i: what for part in (headers, looks) for i, what in part.items() if isinstance(what, str)
    }
    seen = sorted(i for i, look in looks.items() if isinstance(look, Look))
    pictures = [look for i in seen if isinstance(look := looks[i], Look)]
    # Copies are alike too; what is told apart here is what only looks so.
    first = {i: group[0] for group in same for i in group}
    pairs = [(seen[a], seen[b]) for a, b in _near(pictures)]
    pairs = [(a, b) for a, b in pairs if first.get(a, a) != first.get(b, b)]
    folder = source.root.is_dir() and source.arrays is None
    names: Sequence[str] = source.files
    return {
        "data": source.name,
        "root": str(source.root),
        "files": len(names),
        "headers": len(headers),
        "decoded": len(looks),
        "unreadable": [{"file": names[i], "reason": reasons[i]} for i in sorted(reasons)[:LISTED]],
        "unreadable_files": len(reasons),
        "other_files": dict(other_files(source.root, EXTENSIONS).most_common()) if folder else {},
        "bytes": sum(header.length for header in read) * len(names) // max(1, len(headers)),
        "sizes": _sizes(read),
        "kinds": dict(Counter(header.kind for header in read).most_common()),
        "grey": sum(look.grey for look in pictures),
        "copies": {
            "files": sum(len(group) - 1 for group in same),
            "compared": compared,
            "groups": [[names[i] for i in group] for group in same[:LISTED]],
        },
        "near_copies": {
            "files": len({b for _, b in pairs}),
            "compared": len(pictures),
            "pairs": [[names[a], names[b]] for a, b in pairs[:LISTED]],
        },
        "classes": _classes(source),
    }


def _near(pictures: list[Look]) -> list[tuple[int, int]]:
    if len(pictures) < 2:
        return []
    pairs = near_copies(np.stack([look.thumbnail for look in pictures]))
    return [(int(a), int(b)) for a, b in pairs]


def _sizes(read: list[Header]) -> dict[str, Any] | None:
    if not read:
        return None
    by_area = sorted(read, key=lambda header: header.height * header.width)
    aspects = [max(h.height, h.width) / min(h.height, h.width) for h in read]
    return {
        "smallest": [by_area[0].width, by_area[0].height],
        "median": [int(median(h.width for h in read)), int(median(h.height for h in read))],
        "largest": [by_area[-1].width, by_area[-1].height],
        "longest_side": max(max(h.height, h.width) for h in read),
        "aspect": {"median": round(median(aspects), 2), "largest": round(max(aspects), 1)},
    }


def _classes(source: ImageList) -> dict[str, Any] | None:
    """How many files each class has, or each folder on top where those may be classes."""
    if source.labels is not None:
        of_each = Counter(source.classes[label] for label in source.labels)
    else:
        of_each = Counter(name.partition("/")[0] for name in source.files if "/" in name)
        if len(of_each) < 2 or of_each.total() < len(source.files):
            return None
    (largest, most), *_, (smallest, fewest) = of_each.most_common()
    return {
        "are": "folders" if source.labels is None else "classes",
        "number": len(of_each),
        "smallest": [smallest, fewest],
        "largest": [largest, most],
    }


def _of_files(found: dict[str, Any], json: Path | None) -> list[Caution]:
    near = found["near_copies"]
    return list(
        cautions.of_files(
            unreadable=found["unreadable_files"] / found["files"],
            copies=found["copies"]["files"] / max(1, found["copies"]["compared"]),
            near_copies=near["files"] / max(1, near["compared"]),
            listed=f"{json} lists them" if json else "--json FILE lists them",
        )
    )


def _of_run(
    wanted: PretrainConfig,
    source: ImageList,
    good: list[int],
    read: list[Header],
    device: torch.device,
    dtype: torch.dtype,
    *,
    workers: int,
    decoding: float,
    trial_wanted: bool,
) -> tuple[dict[str, Any], list[Caution]]:
    """The run that would begin, its settings, what it needs, and a trial of it; and what may spoil it.

    good: indices of the files that can be read; decoding: files a second.
    """
    config, choices, members = _resolved(wanted, source, good, device, dtype)
    method = build_method(config)
    needs = _needs(config, method, source, read, device, dtype)
    memory = needs["memory"]
    trial: Trial | None = None
    if trial_wanted and memory["step_estimated"] <= 0.9 * memory["of_device"]:
        with doing("trying some steps"):
            try:
                trial = _try(config, method, source, good, device, dtype, workers)
                memory["peak"] = trial.peak
            except torch.OutOfMemoryError:
                memory["peak"] = memory["of_device"]
    batch, epochs = config.optimisation.batch_size, config.optimisation.epochs
    assert batch and epochs and config.data.size
    steps = members // batch * epochs
    packed = config.data.loading == "packed"
    seconds = steps * batch / trial.rate if trial else None
    found = {
        "device": describe(device),
        "precision": str(dtype).removeprefix("torch."),
        "choices": [_choice(choice) for choice in choices],
        "config": to_dict(config),
        "steps": steps,
        **needs,
        "trial": trial and _of_trial(trial, seconds or 0),
        "packing_seconds": round(len(source.files) / decoding) if needs["disk"]["packing"] else 0,
    }
    warned = [
        *cautions_of(config, members, dtype),
        *_of_sizes(read, config.data.size, packed),
        *_of_disk(needs["disk"], config),
        *cautions.of_trial(
            batch=batch,
            needed=memory["peak"] or memory["step_estimated"],
            memory=memory["of_device"],
            seconds=seconds,
            waiting=trial.waiting if trial else None,
            streamed=not packed,
        ),
    ]
    return found, warned


def _resolved(
    wanted: PretrainConfig,
    source: ImageList,
    good: list[int],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PretrainConfig, list[Choice], int]:
    """As pretraining resolves it, what of it is chosen, and how many images are trained on."""
    config, choices = choose_size(wanted, source, device)
    data = config.data
    assert data.size is not None
    if data.loading == "auto":
        fits = fits_packed(source, data.size, data.cache.expanduser(), memory_bytes())
        data = dataclasses.replace(data, loading="packed" if fits else "streamed")
    pixel = source.pixel
    data = dataclasses.replace(data, channels=pixel.channels, bits=pixel.bits)
    config = dataclasses.replace(config, data=data)
    images = stream(_some(source, good), 0)
    bank, _ = split_holdout(images, config.run.holdout, config.run.seed)
    members = len(bank) if config.run.exclude_holdout else len(images)
    config, more = choose_rest(config, images, members, device, dtype)
    return config, [*choices, *more], members


def _needs(
    config: PretrainConfig,
    method: MoCo | SimCLR,
    source: ImageList,
    read: list[Header],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Bytes of memory and of disk, and what there is."""
    size, cache, batch = (
        config.data.size,
        config.data.cache.expanduser(),
        config.optimisation.batch_size,
    )
    assert size and batch and config.run.out is not None
    packed = config.data.loading == "packed"
    side = min(2 * size, max(max(header.height, header.width) for header in read))
    canvases = len(source.files) * source.pixel.bytes * side**2 if packed else 0
    there = packed and is_whole(packed_path(source, size, cache))
    backbone = cast(nn.Module, method.encoder.backbone)
    weights = _weights(method)
    return {
        "memory": {
            "of_device": device_memory(device),
            "weights_and_optimiser": weights,
            "step_estimated": int(batch * step_bytes(backbone, config, dtype.itemsize)),
            "peak": None,
            "packed_images": canvases,
        },
        "disk": {
            "packing": 0 if there else 2 * canvases,
            "packing_free": free_space(cache),
            "checkpoints": 3 * weights,
            "checkpoints_free": free_space(config.run.out),
        },
    }


def _of_trial(trial: Trial, seconds: float) -> dict[str, Any]:
    return {
        "images_per_second": round(trial.rate, 1),
        "slowest": round(min(trial.rates), 1),
        "fastest": round(max(trial.rates), 1),
        "steps": len(trial.rates),
        "waiting_share": round(trial.waiting, 4),
        "seconds_to_the_end": round(seconds),
    }


def _of_sizes(read: list[Header], size: int, packed: bool) -> Iterator[Caution]:
    sides = [(min(h.height, h.width), max(h.height, h.width)) for h in read]
    yield from cautions.of_sizes(
        smaller=sum(short < size for short, _ in sides) / len(sides),
        long=sum(long >= cautions.LONG_SIDES * short for short, long in sides) / len(sides),
        size=size,
        packed=packed,
    )


def _of_disk(disk: dict[str, int], config: PretrainConfig) -> Iterator[Caution]:
    yield from cautions.of_disk(
        needed=disk["packing"],
        free=disk["packing_free"],
        where=f"the disk of {config.data.cache}",
        option="--cache on another disk, or --loading streamed",
    )
    yield from cautions.of_disk(
        needed=disk["checkpoints"],
        free=disk["checkpoints_free"],
        where=f"the disk of {config.run.out}",
        option="--out on another disk",
    )


def _weights(method: MoCo | SimCLR) -> int:
    """Bytes of all that a checkpoint holds: weights, momentum copy, queue, AdamW's two moments."""
    state = [value.nbytes for value in method.state_dict().values()]
    moments = [2 * p.nbytes for p in method.parameters() if p.requires_grad]
    return int(sum(state) + sum(moments))


def _try(
    config: PretrainConfig,
    method: MoCo | SimCLR,
    source: ImageList,
    good: list[int],
    device: torch.device,
    dtype: torch.dtype,
    workers: int,
) -> Trial:
    """A trial of the run, on some of its images: packed ones in a folder that goes afterwards."""
    assert config.data.size is not None and config.optimisation.batch_size is not None
    method = method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.data.loading == "streamed":
        images = stream(_some(source, good), workers)
        return try_steps(config, method, images, Compute(device, dtype), seconds=TRIAL)
    count = min(len(good), max(TRIED, 2 * config.optimisation.batch_size))
    spread = np.linspace(0, len(good) - 1, count).astype(int).tolist()
    some = dataclasses.replace(_some(source, [good[i] for i in spread]), labels=None, classes=())
    with tempfile.TemporaryDirectory(prefix="mixco-doctor-") as folder:
        packed = pack(some, size=config.data.size, cache=Path(folder), workers=workers or None)
        return try_steps(config, method, packed, Compute(device, dtype), seconds=TRIAL)


def _some(source: ImageList, indices: list[int]) -> ImageList:
    """Part of a list."""
    if len(indices) == len(source.files):
        return source
    return dataclasses.replace(
        source,
        files=tuple(source.files[i] for i in indices),
        labels=None if source.labels is None else tuple(source.labels[i] for i in indices),
        arrays=None if source.arrays is None else source.arrays.take(indices),
    )


def _choice(choice: Choice) -> dict[str, str]:
    return {"option": f"--{choice.option}", "value": choice.value, "why": choice.why}
