"""What a person sees while it runs: a bar in a terminal or a notebook, a line an epoch in a log file."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mixco.files import shown

T = TypeVar("T")

# Of the processes that torchrun starts the first one speaks for all.
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")


class Stopwatch:
    """Images a second and the share of time spent waiting for data, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.go_on(0.0, 0.0, 0)

    def go_on(self, seconds: float, waited: float, images: int) -> None:
        """From what an earlier part of the run came to."""
        self.started = time.perf_counter() - seconds
        self.waited = waited
        self.images = images

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def rate(self) -> float:
        return self.images / self.seconds

    @property
    def waiting_share(self) -> float:
        return self.waited / self.seconds


def waited(items: Iterator[T], *watches: Stopwatch) -> Iterator[T]:
    """The items; what the next one takes to come counts as waiting."""
    while True:
        with ExitStack() as stack:
            for watch in watches:
                stack.enter_context(watch.waiting())
            item = next(items, None)
        if item is None:
            return
        yield item


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        disable=not (sys.stderr.isatty() or _in_notebook()),
    )


def _in_notebook() -> bool:
    """In one that can change what it has shown; without ipywidgets lines must do."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields on_progress(done, total) for something that is counted; no bar if it never is."""
    with _bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(description, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextmanager
def downloading(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields on_progress(bytes, of bytes); shows the speed too."""
    with _bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def training(
    description: str, steps: int, done: int = 0
) -> Iterator[Callable[[str, Stopwatch], None]]:
    """Yields on_step(text, stopwatch), to be called once a step; shows rate, wait and time left."""
    with _bar(TextColumn("{task.fields[state]}", markup=False)) as progress:
        task = progress.add_task(description, total=steps, completed=done, state="")

        def on_step(text: str, watch: Stopwatch) -> None:
            state = f"{text}  {watch.rate:,.0f} images/s  data {watch.waiting_share:.0%}"
            progress.update(task, advance=1, state=state)

        yield on_step


@contextmanager
def doing(description: str) -> Iterator[None]:
    """Inside, a terminal shows what takes its time."""
    with console.status(description) if sys.stderr.isatty() else nullcontext():
        yield


def say(text: str) -> None:
    """A line for the person; above the bar where there is one. Of several processes only the first's."""
    console.print("\n".join(map(shown, text.split("\n"))), soft_wrap=True, markup=False)
