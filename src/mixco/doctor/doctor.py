"""Looks at the images and the machine before a run: what may spoil it, and how long it will take.

It prepares the run that the same options would begin and tries a few steps, but writes nothing into the
run folder. All findings are one dictionary, for the page (page.py) and for `--json`.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mixco.data.datasets import Where
from mixco.data.image_list import ImageList
from mixco.data.images import refuse_too_many
from mixco.data.loading import fits_packed
from mixco.data.packing import is_whole, pack, packed_path
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.streaming import stream
from mixco.doctor.files import describe_files
from mixco.doctor.leaks import find_leaks
from mixco.doctor.page import show
from mixco.doctor.survey import Header, copies, look_at, read_headers
from mixco.doctor.trial import Trial, try_steps
from mixco.methods.options import Advice
from mixco.runtime.device import describe, device_memory, memory_bytes, processors
from mixco.runtime.errors import UserError
from mixco.runtime.files import free_space
from mixco.runtime.progress import doing
from mixco.runtime.run_folder import write_json
from mixco.settings import warnings
from mixco.settings.commands import DoctorConfig
from mixco.settings.config import PretrainConfig, Settings, label_source
from mixco.settings.parse import to_dict
from mixco.settings.resolve import Choice
from mixco.training.build import build
from mixco.training.initial_weights import find_initial
from mixco.training.setup import (
    Setup,
    as_it_began,
    choose_size,
    device_of,
    set_up,
    size_of,
    step_bytes,
)
from mixco.training.teacher import load_teacher

# The most seconds of each part; together less than a minute.
HEADERS, COPIES, LOOKS, TEST_LOOKS, TRIAL = 20, 8, 15, 4, 12
LOOKED_AT = 400  # the fewest files that are decoded, however long it takes
TRIED = 1024  # images that are packed for the trial


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look, print the page, and return the findings as `--json` has them.

    "unusable" says why the run would be refused; None if it would begin.

    Raises UserError if no image can be read.
    """
    wanted = as_it_began(config.pretrain)
    device = device_of(wanted)
    workers = processors() if wanted.data.workers is None else wanted.data.workers
    cache = wanted.data.cache
    where = Where(wanted.data.data, wanted.data.data_path, label_source(wanted.data))
    source = where.images("pretrain", cache)
    source = dataclasses.replace(source, max_unreadable=wanted.data.max_unreadable)
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
        leaks = find_leaks(
            where,
            cache,
            source,
            looks,
            seconds=float("inf") if config.all else TEST_LOOKS,
            workers=workers,
        )
    found = describe_files(source, headers, looks, same, compared) | {"test_in_train": leaks}
    bad = {
        i: what for part in (headers, looks) for i, what in part.items() if isinstance(what, str)
    }
    good = [i for i in range(len(source.files)) if i not in bad]
    unusable = None
    advice = _of_files(found, config.json, source.max_unreadable)
    try:
        refuse_too_many(source, sorted(bad.items()))
    except UserError as error:
        if not good:
            raise
        unusable = str(error)

    try:
        read = [header for header in headers.values() if isinstance(header, Header)]
        setup = _set_up(wanted, source, good, device, workers)
        run, of_run = _of_run(setup, source, good, read, decoding, tried=config.trial)
        found |= run
        advice += of_run
    except UserError as error:
        unusable = unusable or str(error)
    found |= {"warnings": warnings.as_dicts(advice), "unusable": unusable}
    try:
        if config.json is not None:
            write_json(config.json, found)
    except OSError as error:
        raise UserError(f"--json {config.json}: cannot be written ({error.strerror})") from None
    finally:
        show(found)
    return found


def _of_files(found: dict[str, Any], json: Path | None, max_unreadable: float) -> list[Advice]:
    near, leaks = found["near_copies"], found["test_in_train"]
    return list(
        warnings.of_files(
            unreadable=found["unreadable_files"] / found["files"],
            max_unreadable=max_unreadable,
            copies=found["copies"]["files"] / max(1, found["copies"]["compared"]),
            near_copies=near["files"] / max(1, near["compared"]),
            test_in_train=leaks["files"] if leaks else 0,
            listed=f"{json} lists them" if json else "--json FILE lists them",
        )
    )


def _set_up(
    wanted: PretrainConfig, source: ImageList, good: list[int], device: torch.device, workers: int
) -> Setup:
    """The run that would begin, with the images that can be read (good), as if they were streamed."""
    initial = find_initial(wanted)
    config, choices = choose_size(wanted, source, device, initial)
    size, cache = size_of(config), config.data.cache
    loading = config.data.loading
    if loading == "auto":
        fits = fits_packed(source, size, cache, memory_bytes())
        loading = "packed" if fits else "streamed"
    images, teacher = stream(source.take(good), 0), load_teacher(config)
    setup = set_up(config, images, device, choices, initial, workers=workers, teacher=teacher)
    data = dataclasses.replace(setup.settings.data, loading=loading)
    return dataclasses.replace(setup, settings=dataclasses.replace(setup.settings, data=data))


def _of_run(
    setup: Setup,
    source: ImageList,
    good: list[int],
    read: list[Header],
    decoding: float,
    *,
    tried: bool,
) -> tuple[dict[str, Any], list[Advice]]:
    """The run's settings, what it needs, a trial of it, and what may spoil it.

    good: indices of the files that can be read. decoding: files a second. tried: is there a trial?
    """
    settings, compute = setup.settings, setup.compute
    method = build(setup)
    needs = _needs(setup, method, source, read)
    memory = needs["memory"]
    trial: Trial | None = None
    if tried and memory["step_estimated"] <= 0.9 * memory["of_device"]:
        with doing("trying some steps"):
            try:
                trial = _try(setup, method, source, good)
                memory["peak"] = trial.peak
            except torch.OutOfMemoryError:
                memory["peak"] = memory["of_device"]
    packed = settings.data.loading == "packed"
    images = setup.steps * settings.optimisation.batch_size
    seconds = images / trial.rate if trial else None
    found = {
        "device": describe(compute.device),
        "precision": str(compute.dtype).removeprefix("torch."),
        "choices": [_choice(choice) for choice in setup.choices],
        "config": to_dict(settings),
        "steps": setup.steps,
        **needs,
        "trial": trial and _of_trial(trial, seconds or 0),
        "packing_seconds": round(len(source.files) / decoding) if needs["disk"]["packing"] else 0,
    }
    bfloat16 = compute.dtype == torch.bfloat16
    advice = [
        *warnings.of_settings(settings, len(setup.members), bfloat16=bfloat16, spread=setup.spread),
        *_of_sizes(read, settings.data.size, packed, warned=setup.initial is None),
        *_of_disk(needs["disk"], settings),
        *warnings.of_trial(
            batch=settings.optimisation.batch_size,
            needed=memory["peak"] or memory["step_estimated"],
            memory=memory["of_device"],
            seconds=seconds,
            data_wait=trial.data_wait if trial else None,
            streamed=not packed,
        ),
    ]
    return found, advice


def _needs(
    setup: Setup, method: nn.Module, source: ImageList, read: list[Header]
) -> dict[str, Any]:
    """Bytes of memory and of disk, and what there is."""
    settings, compute = setup.settings, setup.compute
    size, cache = settings.data.size, settings.data.cache
    packed = settings.data.loading == "packed"
    side = min(2 * size, max(max(header.height, header.width) for header in read))
    canvases = len(source.files) * source.pixel.bytes * side**2 if packed else 0
    there = packed and is_whole(packed_path(source, size, cache))
    backbone = method.get_submodule("encoder.backbone")
    weights = _weights(method)
    step = settings.optimisation.batch_size * step_bytes(backbone, settings, compute.dtype.itemsize)
    return {
        "memory": {
            "of_device": device_memory(compute.device),
            "weights_and_optimiser": weights,
            "step_estimated": int(step),
            "peak": None,
            "packed_images": canvases,
        },
        "disk": {
            "packing": 0 if there else 2 * canvases,
            "packing_free": free_space(cache),
            "checkpoints": 3 * weights,
            "checkpoints_free": free_space(settings.run.out),
        },
    }


def _of_trial(trial: Trial, seconds: float) -> dict[str, Any]:
    return {
        "images_per_second": round(trial.rate, 1),
        "slowest": round(min(trial.rates), 1),
        "fastest": round(max(trial.rates), 1),
        "steps": len(trial.rates),
        "data_wait": round(trial.data_wait, 4),
        "seconds_to_the_end": round(seconds),
    }


def _of_sizes(read: list[Header], size: int, packed: bool, *, warned: bool) -> Iterator[Advice]:
    """warned: is it a loss to enlarge images? Weights do best at their own size, also on such."""
    sides = [(min(h.height, h.width), max(h.height, h.width)) for h in read]
    yield from warnings.of_sizes(
        smaller=sum(short < size for short, _ in sides) / len(sides) if warned else 0.0,
        long=sum(long >= warnings.LONG_SIDES * short for short, long in sides) / len(sides),
        size=size,
        packed=packed,
    )


def _of_disk(disk: dict[str, int], settings: Settings) -> Iterator[Advice]:
    yield from warnings.of_disk(
        needed=disk["packing"],
        free=disk["packing_free"],
        where=f"the disk of {settings.data.cache}",
        option="--cache on another disk, or --loading streamed",
    )
    yield from warnings.of_disk(
        needed=disk["checkpoints"],
        free=disk["checkpoints_free"],
        where=f"the disk of {settings.run.out}",
        option="--out on another disk",
    )


def _weights(method: nn.Module) -> int:
    """Bytes of a checkpoint: weights, momentum copy, queue, AdamW's two moments."""
    state = [value.nbytes for value in method.state_dict().values()]
    moments = [2 * p.nbytes for p in method.parameters() if p.requires_grad]
    return int(sum(state) + sum(moments))


def _try(setup: Setup, method: nn.Module, source: ImageList, good: list[int]) -> Trial:
    """A trial on some of the run's images: packed ones in a folder that is removed afterwards."""
    data, batch = setup.settings.data, setup.settings.optimisation.batch_size
    if data.loading == "streamed":
        images = stream(source.take(good), setup.workers)
        return try_steps(dataclasses.replace(setup, images=images), method, seconds=TRIAL)
    count = min(len(good), max(TRIED, 2 * batch))
    spread = np.linspace(0, len(good) - 1, count).astype(int).tolist()
    some = dataclasses.replace(source.take([good[i] for i in spread]), labels=None, classes=())
    with tempfile.TemporaryDirectory(prefix="mixco-doctor-") as folder:
        packed = pack(some, size=data.size, cache=Path(folder), workers=setup.workers or None)
        members = torch.arange(len(packed))
        sampled = dataclasses.replace(setup, images=packed, members=members)
        return try_steps(sampled, method, seconds=TRIAL)


def _choice(choice: Choice) -> dict[str, str]:
    return {"option": f"--{choice.option}", "value": choice.value, "why": choice.why}
