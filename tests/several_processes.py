"""A function in several processes that know each other, as torchrun would start them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the function returns in each of `count` processes, the first one's first.

    function: of a module that a new process can import. What it returns goes through torch.save.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = (count, Path(folder), function, arguments)
        mp.start_processes(_process, given, count, start_method="forkserver")
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]


def _process(
    rank: int, count: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
    )
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
