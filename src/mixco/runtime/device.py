"""The device, the number format, the memory format; memory and processors of the machine."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixco.runtime.errors import UserError

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class Compute(NamedTuple):
    """Where a network runs, and in which number format and memory format."""

    device: torch.device
    dtype: torch.dtype
    """bfloat16: with autocast. Others: without."""
    memory_format: torch.memory_format = torch.channels_last
    """Of its weights and its images."""

    @property
    def formats(self) -> tuple[torch.dtype, torch.memory_format]:
        """Of the images that it takes."""
        return self.dtype, self.memory_format

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype == torch.bfloat16)


AVAILABLE: dict[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_available(),
    "mps": lambda: torch.backends.mps.is_available(),
    "cpu": lambda: True,
}


def device_kind(name: str) -> str:
    """cuda, mps or cpu: the kind itself, or for "auto" the first of them that the machine has."""
    return next(kind for kind, there in AVAILABLE.items() if there()) if name == "auto" else name


def pick_device(name: str, number: int = 0) -> torch.device:
    """The device by its name; "auto" is CUDA, else MPS, else the CPU.

    number: of this process's GPU, from 0; other kinds have one device.

    CUDA then computes float32 in float32: torch's default would round the factors of convolutions to
    TF32, of 10 bits, but not those of matrix products. And cuDNN tries its algorithms once for each
    shape of a convolution, and takes the fastest.

    Raises UserError when the machine has no such device.
    """
    name = device_kind(name)
    if not AVAILABLE[name]():
        raise UserError(f"--device {name}: torch finds no such device; give --device cpu")
    if name == "cuda":
        if number >= torch.cuda.device_count():
            raise UserError(
                f"{number + 1} processes but only {torch.cuda.device_count()} GPUs on this machine; "
                f"give torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu"
            )
        torch.cuda.set_device(number)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return torch.device(name)


def pick_dtype(device: torch.device, precision: str) -> torch.dtype:
    """The number format by its name; "auto": bfloat16 if the hardware computes in it, else float32.

    Which of them is faster depends on the network: see precision.py.
    """
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16(device.type) else "float32"
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]


def pick_memory_format(name: str) -> torch.memory_format:
    """The memory format by its name; "auto": channels_last."""
    return MEMORY_FORMATS["channels_last" if name == "auto" else name]


def computes_bfloat16(kind: str) -> bool:
    """Does this machine's device of a kind (cpu, cuda, mps) compute in bfloat16 itself?"""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def describe(device: torch.device) -> str:
    """The device in words, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, let the C library keep freed memory for the next step instead of returning it.

    A step of ResNet-18 with 256 images frees and allocates 1.5 GB in large blocks. Otherwise the system
    would map each block again and fill it with zeros, page by page, which takes an eighth of the time.
    The price: the process keeps its peak of memory until it ends. Works with the GNU C library on Linux;
    elsewhere it does nothing.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4  # as in malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def device_memory(device: torch.device) -> int:
    """Total memory in bytes: the GPU's, or the machine's (`memory_bytes`)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory_bytes()


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process can still take; torch's own unused blocks are among them."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def keeper(device: torch.device, nbytes: int) -> torch.device:
    """The device that keeps a result of `nbytes` bytes: the GPU that computes it, or the CPU.

    On CUDA it stays if it takes at most a quarter of the free memory, since what works with it may need
    as much again for a copy, and once more for a second result. From other devices it goes to the CPU.
    """
    stays = device.type == "cuda" and nbytes <= free_memory(device) // 4
    return device if stays else torch.device("cpu")


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes so far, of the GPU or of this process; None where the system does not tell.

    On Apple's devices the memory held now.
    """
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
    """Memory in bytes of this machine or its container; 8 GiB where the system does not tell."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8 * 2**30
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, v2 and v1
        try:
            found.append(int(Path("/sys/fs/cgroup", limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found)


def processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The model of the processor, and the instructions that torch uses of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):  # no Linux, or a processor that says none
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for its earlier work.

    CUDA copies from pinned memory, which torch keeps until it is read: the driver may wait where memory
    is not pinned. Apple's devices cannot copy behind the host's back, so there the host waits.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type != "mps")


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
