"""Several processes, one for each device, as torchrun starts them. One process alone never communicates.

"The batch" is that of all processes together. `parts` says how it is dealt: for each process, the rows
of the batch that it holds, int64 on the CPU. Every process knows all parts, so none has to ask.
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
    """What torchrun tells a process in its environment."""

    rank: int
    processes: int
    local_rank: int
    """Its number among the processes of this machine, and the number of its GPU."""
    local_processes: int


def launch_env() -> LaunchEnv:
    """What torchrun told this process; without torchrun it is the only one.

    Raises UserError when RANK is no number below WORLD_SIZE: `mixco embed` may be given both by hand.
    """
    given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    found = {name: os.environ.get(name, default) for name, default in given.items()}
    if not all(number.isdecimal() for number in found.values()):
        raise UserError(f"the environment has {found}; each must be a whole number, from 0")
    here = LaunchEnv(*map(int, found.values()))
    if here.rank >= here.processes:
        raise UserError(
            f"the environment has RANK={here.rank} and WORLD_SIZE={here.processes}; give WORLD_SIZE, "
            "the number of processes, and RANK, from 0 to one less; or unset both"
        )
    return here


@contextmanager
def process_group(device: torch.device, minutes: float) -> Iterator[None]:
    """Inside, this process can communicate with the others that torchrun started.

    Does nothing without torchrun, or where the group exists already.
    minutes: how long an exchange waits for another process.

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
            # A launcher that restarts its processes keeps their store, with the addresses of the dead
            # ones in it. (On several machines the counts of restarts may differ: docs/scaling.md.)
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(f"attempt-{attempt}", store)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=count)
        yield
        # Not after an error: the other processes may never arrive here.
        dist.destroy_process_group()
    except RuntimeError as error:
        if not _lost_contact(error):
            raise
        raise UserError(
            f"process {here.rank} of {here.processes} has lost another one, which ended or did not "
            f"answer for {minutes:g} minutes (--timeout-minutes); look above for the reason. The same "
            "command resumes from the last checkpoint; torchrun --max-restarts 3 does so by itself "
            f"({str(error).splitlines()[0]})"
        ) from error


def _lost_contact(error: RuntimeError) -> bool:
    of_gloo = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(words in str(error) for words in of_gloo)


def ddp(method: nn.Module) -> nn.Module:
    """Wrap a method so that its gradients become the means over all processes.

    Buffers are equal at the start and not synchronised later. Queues stay equal, because all processes
    push the same keys. Each process keeps its own batch norm statistics until `broadcast_buffers`.

    Returns the method itself with one process.
    """
    if world() == 1:
        return method
    names = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(method, **options)


def split_batch(batch: int, processes: int) -> Parts:
    """Deal the rows of a batch to the processes, in order, and as equally as possible."""
    return torch.arange(batch).tensor_split(processes)


def local_rows(batch: int, device: torch.device) -> Tensor:
    """The rows of a batch that this process holds: split_batch(batch, world())[rank()].

    Made on the device, which waits for nothing.
    """
    count, rest = divmod(batch, world())
    start = rank() * count + min(rank(), rest)
    return torch.arange(start, start + count + (rank() < rest), device=device)


def gather(x: Tensor, parts: Parts) -> Tensor:
    """All rows of a batch, in its order, on every process: [b, ...] -> [B, ...].

    x: the rows that this process holds, parts[rank()]. The gradient of a row is summed over all
    processes and goes back to the process that holds the row.
    """
    if world() == 1:
        (order,) = parts
        return torch.empty_like(x).index_copy(0, send(order, x.device), x)
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
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[send(ctx.here, gradient.device)], None


def _all_rows(x: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes, in the order of the processes; sizes: how many each has."""
    most = max(sizes)  # all_gather needs equally many of each: pad with zeros, then cut
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
    """Exchange rows of a batch, so that each process gets those that it wants: [b, ...] -> [b', ...].

    x: the rows have[rank()], with one process all of them in order; each row of the batch is held once.
    Returns the rows want[rank()], in that order; a row may be wanted by several processes, and more than
    once. Each row is sent only where it is wanted. No gradient.

    With one process, `want` may be on x's device.
    """
    if world() == 1:
        return _take(x, want[0])
    here, count = rank(), sum(map(len, have))
    owner = torch.empty(count, dtype=torch.int64)
    place = torch.empty(count, dtype=torch.int64)  # of a row, among the rows of its owner
    for process, rows in enumerate(have):
        owner[rows] = process
        place[rows] = torch.arange(len(rows))
    outgoing = [place[rows[owner[rows] == here]] for rows in want]
    leaving = _take(x, torch.cat(outgoing))
    # Rows arrive in the order of their senders.
    arriving = [(owner[want[here]] == process).nonzero()[:, 0] for process in range(world())]
    arrived = x.new_empty(len(want[here]), *x.shape[1:])
    dist.all_to_all_single(
        arrived, leaving.contiguous(), [len(p) for p in arriving], [len(p) for p in outgoing]
    )
    return torch.empty_like(arrived).index_copy_(0, send(torch.cat(arriving), x.device), arrived)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows]; rows: int64. Consecutive rows are not copied, where the host knows that they are."""
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return x[rows]
    count, first = len(rows), int(rows[0]) if len(rows) else 0
    if torch.equal(rows, torch.arange(first, first + count)):
        return x[first : first + count]
    return x[send(rows, x.device)]


def gather_all(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of the processes, which may have different numbers."""
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
    """The means of scalars over all processes, without gradient."""
    means = torch.stack([value.detach() for value in values.values()])
    if world() == 1:
        return dict(zip(values, means, strict=True))
    dist.all_reduce(means)
    return dict(zip(values, means / world(), strict=True))


def all_reduce_max(value: int, device: torch.device) -> int:
    """The largest of the processes' numbers. Waits for the device."""
    if world() == 1:
        return value
    most = torch.tensor(value, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def broadcast_object(value: T) -> T:
    """The first process's value, on all processes; it must be picklable."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the first process's buffers, such as running statistics, to all processes, in place."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
