"""Several processes, one a device, as torchrun starts them. With one process nothing here communicates.

A batch is that of all processes together. `parts` says how it lies on them: of each process the rows of
the batch that it holds, int64 on the CPU. All processes know all parts, so none has to ask.
"""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mixco.runtime.device import send
from mixco.runtime.errors import UserError

T = TypeVar("T")

Parts = tuple[Tensor, ...]


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _joined() else 0


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


class LaunchEnv(NamedTuple):
    """What torchrun says of a process, before it has joined the others."""

    rank: int
    processes: int
    local_rank: int
    """Its number among those of this machine; it is given the GPU of this number."""
    local_processes: int


def launch_env() -> LaunchEnv:
    """Of this process; the only one where torchrun did not start it."""
    given = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    return LaunchEnv(*(int(os.environ.get(name, default)) for name, default in given.items()))


@contextmanager
def process_group(device: torch.device, minutes: float) -> Iterator[None]:
    """Inside, this process is one of those that torchrun started; nothing happens where it did not.

    minutes: after which an exchange that another process does not come to is given up.

    Raises UserError when another process has ended or does not answer.
    """
    here = launch_env()
    if here.processes == 1 or _joined():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        timeout = timedelta(minutes=minutes)
        store, rank, count = next(rendezvous("env://", timeout=timeout))
        if here.local_processes == here.processes:
            # A launcher that starts its processes anew keeps their store, with the addresses of the
            # dead in it. (Those of several machines do not count alike: docs/scaling.md.)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(f"attempt-{attempt}", store)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=count)
        yield
        # Only where all went well: after an error the others may never come to take their leave.
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _is_of_contact(error):
            raise
        raise UserError(
            f"process {here.rank} of {here.processes} has lost another one, which ended or did not "
            f"answer for {minutes:g} minutes (--timeout-minutes); look above for why. The same command "
            "goes on from the last checkpoint, and torchrun --max-restarts 3 starts it by itself "
            f"({str(error).splitlines()[0]})"
        ) from error


def _is_of_contact(error: RuntimeError) -> bool:
    of_gloo = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(words in str(error) for words in of_gloo)


def ddp(method: nn.Module) -> nn.Module:
    """The method, to be called for a step: its gradients become the means over all processes.

    Buffers are equal at the start and then left alone: queues stay equal, for all processes push the
    same keys, and the statistics of batch norms are each process's own, until evaluation asks for them
    (`broadcast_buffers`). With one process the method.
    """
    if world() == 1:
        return method
    names = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(method, **options)


def split_batch(batch: int, processes: int) -> Parts:
    """Deal the rows of a batch to the processes, in order and as equally as can be."""
    return torch.arange(batch).tensor_split(processes)


def gather(x: Tensor, parts: Parts) -> Tensor:
    """All rows of a batch, in its order, on every process: [b, ...] -> [B, ...].

    x: the rows that this process holds, parts[rank()]. Gradients go back to the process that a row
    came from, the sum of those of all processes.
    """
    order = torch.cat(parts)
    if world() == 1 and torch.equal(order, torch.arange(len(order))):
        return x
    gathered: Tensor = _Gather.apply(x, parts)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Parts) -> Tensor:
        ctx.here = parts[rank()]
        order = send(torch.cat(parts), x.device)
        rows = _all_rows(x.contiguous(), [len(part) for part in parts])
        return torch.empty_like(rows).index_copy_(0, order, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if world() > 1:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(gradient)
        return gradient[send(ctx.here, gradient.device)], None


def _all_rows(x: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes, one process after the other; sizes: how many each has."""
    if world() == 1:
        return x
    most = max(sizes)  # all give equally many; the rest is filled up and left out again
    mine = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])]) if len(x) < most else x
    rows = x.new_empty(len(sizes) * most, *x.shape[1:])
    dist.all_gather(list(torch.split(rows, most)), mine)
    if min(sizes) == most:
        return rows
    return torch.cat(
        [some[:size] for some, size in zip(torch.split(rows, most), sizes, strict=True)]
    )


@torch.no_grad()
def all_to_all_rows(x: Tensor, have: Parts, want: Parts) -> Tensor:
    """Hand rows of a batch over, so that each process holds others: [b, ...] -> [b', ...].

    x: the rows have[rank()]. Returns the rows want[rank()], in that order. Each row goes only where it
    is wanted. No gradient.
    """
    here, count = rank(), sum(map(len, have))
    owner = torch.empty(count, dtype=torch.int64)
    place = torch.empty(count, dtype=torch.int64)  # of each row, among its owner's
    for process, rows in enumerate(have):
        owner[rows] = process
        place[rows] = torch.arange(len(rows))
    outgoing = [place[rows[owner[rows] == here]] for rows in want]
    leaving = _take(x, torch.cat(outgoing))
    if world() == 1:
        return leaving
    # What arrives lies in the order of who sent it.
    arriving = [(owner[want[here]] == process).nonzero()[:, 0] for process in range(world())]
    arrived = x.new_empty(len(want[here]), *x.shape[1:])
    dist.all_to_all_single(
        arrived, leaving.contiguous(), [len(p) for p in arriving], [len(p) for p in outgoing]
    )
    return torch.empty_like(arrived).index_copy_(0, send(torch.cat(arriving), x.device), arrived)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]; rows: int64 on the CPU. Rows in a row are not copied."""
    count, first = len(rows), int(rows[0]) if len(rows) else 0
    if torch.equal(rows, torch.arange(first, first + count)):
        return x[first : first + count]
    return x[send(rows, x.device)]


def gather_all(x: Tensor) -> Tensor:
    """The rows of all processes, one process after the other; each may have another number of them."""
    if world() == 1:
        return x
    counts = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor(len(x), device=x.device))
    return _all_rows(x.contiguous(), [int(count) for count in counts])


def scale_local_mean(loss: Tensor, rows: int, of_all: int) -> Tensor:
    """Scale a mean over this process's rows, so that the mean over the processes is that over all rows.

    loss: a scalar; unchanged where all processes have equally many rows. rows: of this process; without
    any it adds zero. of_all: rows of all processes.
    """
    if rows == 0:
        return loss.nan_to_num(0.0)  # the mean of nothing is NaN; its gradient is zero
    share = rows * world() / of_all
    return loss if share == 1 else loss * share


def all_reduce_mean(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The means over all processes of some scalars that each has; without gradient."""
    means = torch.stack([value.detach() for value in values.values()])
    if world() == 1:
        return dict(zip(values, means, strict=True))
    dist.all_reduce(means)
    return dict(zip(values, means / world(), strict=True))


def all_reduce_max(value: int, device: torch.device) -> int:
    """The largest of the numbers that the processes have; waits for the device."""
    if world() == 1:
        return value
    most = torch.tensor(value, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def broadcast_object(value: T) -> T:
    """What the first process has, a picklable value, on all of them."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Have the first process's buffers, such as running statistics, on all of them; in place."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
