"""Which number format and memory format a network is fastest in on this machine, by measurement.

No rule fits all: on a CPU with AMX, bfloat16 makes a ResNet faster and a network of depthwise
convolutions several times slower. So each combination is timed on the run's own network. The figures
are kept in the cache folder, where the next run on this machine finds them: a clock may say something
else each time, and two runs with one seed must be equal bit for bit.
"""

import copy
import hashlib
import json
import math
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mixco.runtime.device import (
    Compute,
    computes_bfloat16,
    describe,
    pick_dtype,
    pick_memory_format,
    processor,
    synchronise,
)
from mixco.runtime.distributed import broadcast_object, rank
from mixco.runtime.files import replacing
from mixco.runtime.locks import one_at_a_time
from mixco.runtime.progress import doing
from mixco.runtime.seeding import generator_for, global_draws

CLEARLY = 1.2
"""A change must be this many times as fast, its slower timed step than the faster one before. Timings of
one network differ by a tenth on a quiet machine, and by any factor on a busy one, whose figures would be
kept. And a smaller gain is not worth other rounding than on the next machine."""
GIVE_UP, PATIENCE = 4.0, 1.0
"""A format is given up after one step that takes this many times the best one's time, and more than so
many seconds."""
FEWEST, MOST = {"cpu": 4, "cuda": 128}, {"cpu": 16, "cuda": 512}
"""Images of a timed step: the most up to `SIDE` pixels, as many pixels beyond, but never less than the
fewest. They are enough to keep the device busy: a GPU with few images waits for its host."""
SIDE = 64


class Workload(NamedTuple):
    """What is timed: a network on images of one size."""

    arch: str
    stem: str
    size: int
    """Side of the images, in pixels."""
    channels: int
    training: bool
    """Forward and backward; else forward alone, in evaluation mode."""


class Rates(NamedTuple):
    """Images a second in the faster and in the slower of the timed steps; 0 where a format failed."""

    faster: float
    slower: float


_unwritten: dict[Path, dict[str, Rates]] = {}
"""The figures of this process that the cache folder could not take, by their file."""


class Formats(NamedTuple):
    """The names of a number format and a memory format, as the settings have them."""

    precision: str
    memory_format: str

    def compute(self, device: torch.device) -> Compute:
        dtype, memory_format = pick_dtype(device, self.precision), self.memory_format
        return Compute(device, dtype, pick_memory_format(memory_format))


def fastest(
    network: nn.Module,
    workload: Workload,
    device: torch.device,
    cache: Path,
    *,
    precision: str = "auto",
    memory_format: str = "auto",
) -> tuple[Formats, str]:
    """The fastest of the formats that are left to choose, and why, in words; "" without a choice.

    network: [B, channels, size, size] -> a tensor. It stays as it is: a copy is timed. So do the global
        generators.
    cache: the folder in which the figures are kept.
    precision, memory_format: given, or "auto". With a given precision, "auto" is channels_last and
        nothing is timed: whoever asks for a number format gets the same numbers on every machine. On
        Apple's devices, too, nothing is timed; there "auto" is float32.

    The usual formats, bfloat16 where the hardware computes in it, and channels_last, stay unless others
    are `CLEARLY` faster. With several processes the first one decides, and all return the same.
    """
    if device.type == "mps" and precision == "auto":
        precision = "float32"
    if precision != "auto":
        return Formats(precision, "channels_last" if memory_format == "auto" else memory_format), ""
    left = [f for f in formats(device) if memory_format in ("auto", f.memory_format)]
    if len(left) == 1:
        return left[0], ""
    rates = broadcast_object(_rates(network, workload, device, cache) if rank() == 0 else {})
    chosen = left[0]
    for other in left[1:]:
        if rates[_name(other)].slower > CLEARLY * rates[_name(chosen)].faster:
            chosen = other
    figures = ", ".join(f"{_name(each)} {rates[_name(each)].faster:,.0f}" for each in left)
    why = (
        "no other is clearly faster"
        if chosen == left[0]
        else f"clearly faster than {_name(left[0])}"
    )
    return chosen, f"{why}; images/s: {figures}"


def formats(device: torch.device) -> list[Formats]:
    """The formats to choose from on a device, the usual ones first."""
    dtypes = ("bfloat16", "float32") if computes_bfloat16(device.type) else ("float32",)
    return [
        Formats(dtype, layout) for layout in ("channels_last", "contiguous") for dtype in dtypes
    ]


def _name(formats: Formats) -> str:
    return " ".join(formats)


def _rates(
    network: nn.Module, workload: Workload, device: torch.device, cache: Path
) -> dict[str, Rates]:
    """Of each format by its name, from the cache or measured now."""
    batch = images_of_a_step(workload.size, device.type)
    key = {
        **workload._asdict(),
        "batch": batch,
        "device": describe(device),
        "processor": processor(),
        "torch": torch.__version__,
        "formats": [_name(each) for each in formats(device)],
        # Older figures of GPUs are of other convolutions: TF32, and not the fastest algorithms.
        **({"tf32": False} if device.type == "cuda" else {}),
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache / "precision" / f"{workload.arch}-{workload.size}-{digest}.json"
    with ExitStack() as held:
        with suppress(OSError):  # a full disk is no reason to stop
            # Two at once would disturb each other's timing.
            held.enter_context(one_at_a_time(path.parent / ".lock"))
        rates = _read(path, key)
        if rates is None:
            with doing("timing number formats"):
                rates = _measure(network, workload, device, batch)
            if any(each.faster for each in rates.values()):
                _keep(path, key, rates)
    return rates


def _read(path: Path, key: dict[str, Any]) -> dict[str, Rates] | None:
    """The kept figures; None where there are none, or no whole ones."""
    if path in _unwritten:
        return _unwritten[path]
    try:
        kept = json.loads(path.read_text("utf-8"))["images_per_second"]
        return {name: Rates(*map(float, kept[name])) for name in key["formats"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(path: Path, key: dict[str, Any], rates: dict[str, Rates]) -> None:
    try:
        with replacing(path) as temporary:
            figures = {"key": key, "images_per_second": rates}
            temporary.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    except OSError:
        _unwritten[path] = rates


def images_of_a_step(size: int, kind: str) -> int:
    """How many images a timed step has on a kind of device, cpu or cuda."""
    return max(FEWEST[kind], MOST[kind] * SIDE**2 // max(SIDE, size) ** 2)


def _measure(
    network: nn.Module, workload: Workload, device: torch.device, batch: int
) -> dict[str, Rates]:
    """Of each format by its name; it may fail for want of an operation or of memory."""
    shape = (batch, workload.channels, workload.size, workload.size)
    images = torch.randn(shape, generator=generator_for(0, "precision"))
    rates: dict[str, Rates] = {}
    best = math.inf
    # float32 first: it is never slow out of all proportion, so what is can be given up.
    for each in sorted(formats(device), key=lambda f: f.precision, reverse=True):
        try:
            seconds = _seconds(network, images, each.compute(device), workload.training, best)
        except Exception:  # of many kinds, depending on network and device
            seconds = (math.inf, math.inf)
        best = min(best, *seconds)
        rates[_name(each)] = Rates(*(round(batch / taken, 1) for taken in sorted(seconds)))
    if device.type == "cuda":  # the run has all memory again, and a peak of its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return rates


def _seconds(
    network: nn.Module, images: torch.Tensor, compute: Compute, training: bool, best: float
) -> tuple[float, float]:
    """Seconds of two steps, after one to warm up; on a GPU after two, as cuDNN tries its algorithms.

    best: of the formats before. A hopeless format makes only its first step, which counts twice.
    """
    device, layout = compute.device, compute.memory_format
    copied = copy.deepcopy(network).train(training)
    copied.to(device, memory_format=layout)  # type: ignore[call-overload]
    x = images.to(device, compute.dtype).contiguous(memory_format=layout)

    def timed() -> float:
        synchronise(device)
        began = time.perf_counter()
        with torch.set_grad_enabled(training), compute.autocast():
            outputs = copied(x)
        if training:
            outputs.float().square().mean().backward()
            copied.zero_grad(set_to_none=True)
        synchronise(device)
        return time.perf_counter() - began

    with global_draws(generator_for(0, "precision dropout"), device):
        if device.type == "cuda":
            timed()
        first = timed()
        hopeless = first > max(GIVE_UP * best, PATIENCE)
        return (first, first) if hopeless else (timed(), timed())
