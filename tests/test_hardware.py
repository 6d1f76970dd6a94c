"""The device, its number format, and its memory."""

import subprocess
import sys

import pytest
import torch

from mixco.runtime.device import (
    AVAILABLE,
    computes_bfloat16,
    describe,
    memory_bytes,
    pick_device,
    pick_dtype,
    pick_memory_format,
    processor,
    processors,
)
from mixco.runtime.errors import UserError

CPU = torch.device("cpu")


def test_the_device_is_the_named_one_or_an_error() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"--device cuda.*--device cpu"):
            pick_device("cuda")


def test_cuda_computes_float32_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AVAILABLE, "cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with torch.backends.cudnn.flags(enabled=True):  # puts them back as they were
        assert pick_device("cuda") == torch.device("cuda")
        assert torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


def test_the_number_format_is_the_named_one() -> None:
    assert pick_dtype(CPU, "float32") == torch.float32
    assert pick_dtype(CPU, "bfloat16") == torch.bfloat16
    usual = torch.bfloat16 if computes_bfloat16("cpu") else torch.float32
    assert pick_dtype(CPU, "auto") == usual


def test_the_memory_format_is_the_named_one() -> None:
    assert pick_memory_format("contiguous") == torch.contiguous_format
    assert pick_memory_format("channels_last") == torch.channels_last
    assert pick_memory_format("auto") == torch.channels_last


def test_the_machine_is_described() -> None:
    assert describe(CPU).startswith("cpu, ")
    assert memory_bytes() > 2**28
    assert processors() >= 1
    assert processor() == processor() != ""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Counted in pages that the system had to map: 256 MiB, ten times, after some to begin with."""
    code = """if True:
        import resource, sys, torch
        from mixco.runtime.device import keep_freed_memory
        if sys.argv[1] == "keep":
            keep_freed_memory(torch.device("cpu"))
        for _ in range(5):
            torch.ones(2**26)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(2**26)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", code, mode]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert faults("keep") < faults("give back") / 2
