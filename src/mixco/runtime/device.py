"""Which device, and which number format is fast on it; its memory and its processors."""

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixco.runtime.errors import UserError


class Compute(NamedTuple):
    """Where a network runs, and in which number format."""

    device: torch.device
    dtype: torch.dtype
    """bfloat16 for autocast; float32 for none."""

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def pick_device(name: str, number: int = 0) -> torch.device:
    """ "auto": CUDA, else MPS, else the CPU.

    number: which of several GPUs is to be this process's; other kinds have one device.

    Raises UserError when the named one is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"--device {name}: this machine has none that torch can use; give cpu")
    if name == "cuda":
        if number >= torch.cuda.device_count():
            raise UserError(
                f"{number + 1} processes on this machine, which has {torch.cuda.device_count()} GPUs; "
                "give torchrun --nproc-per-node as many as there are, or --device cpu"
            )
        torch.cuda.set_device(number)
    return torch.device(name)


def pick_dtype(device: torch.device, precision: str) -> torch.dtype:
    """bfloat16 for autocast where the hardware computes in it, else float32 (no autocast)."""
    if precision != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def describe(device: torch.device) -> str:
    """The device in words, for the run folder."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, have the C library keep what is freed for the next step, instead of giving it back.

    A step of ResNet-18 with 256 images frees and asks for 1.5 GB in large pieces. Each would be mapped
    anew and filled with zeros by the system, page by page: an eighth of the time. The process then
    keeps its peak of memory until it ends. Only with the GNU C library, on Linux; elsewhere nothing is
    changed.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # of malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def device_memory(device: torch.device) -> int:
    """In bytes, all of it: a GPU's own, else the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes()


def peak_memory(device: torch.device) -> int | None:
    """What a GPU, or else this process, has held at most so far; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_bytes() -> int:
    """Of this machine, or what its container may use; 8 GiB where the system does not tell."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8 * 2**30
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, v2 and v1
        try:
            found.append(int(Path("/sys/fs/cgroup", limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found)


def processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for the work that it was given before.

    CUDA takes a copy of unpinned memory before the call returns. Apple's devices do not, so there the
    host waits.
    """
    return x.to(device, non_blocking=device.type != "mps")


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
