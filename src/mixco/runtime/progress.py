"""What a person sees while it runs: a bar in a terminal or a notebook, a line an epoch in a log file."""

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
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
from rich.text import Text

from mixco.runtime.files import shown

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
    def data_wait(self) -> float:
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
        disable=not redraws(),
    )


def redraws() -> bool:
    """Can what was shown be changed? In a terminal, and in a notebook with ipywidgets."""
    in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    return not console.quiet and (sys.stderr.isatty() or in_notebook)


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
    description: str,
    steps: int,
    records: Sequence[Mapping[str, float]] = (),
    done: int = 0,
) -> Iterator[Callable[[str, Mapping[str, float], Stopwatch], None]]:
    """Yields on_step(text, numbers, stopwatch of the epoch), to be called once a step.

    Shows two lines: how far it is and the time left, and below it the numbers, with the last kNN of
    the records. Where nothing can be redrawn, a line of long epochs every five minutes.
    """
    progress = _bar(TextColumn("{task.percentage:.0f}%"))
    task = progress.add_task(description, total=steps, completed=done)
    numbers_below = Text(no_wrap=True, overflow="ellipsis")
    told = 0

    def on_step(text: str, numbers: Mapping[str, float], watch: Stopwatch) -> None:
        nonlocal told
        progress.update(task, advance=1, description=f"{description}  {text}")
        checks = [record["knn"] for record in records if "knn" in record]
        speed = {"images_per_second": watch.rate, "data_wait": watch.data_wait}
        shown_now = {**numbers, **speed, **({"knn": checks[-1]} if checks else {})}
        if redraws():
            numbers_below.plain = f"  {in_words(shown_now)}"
        elif (now := int(watch.seconds // SILENT)) != told:
            told = now
            if now:
                left = progress.tasks[task].time_remaining
                say(f"{text}  {in_words(shown_now, left=left)}")

    if not redraws():
        yield on_step
        return
    with Live(console=console, get_renderable=lambda: Group(progress, numbers_below)):
        yield on_step


SILENT = 300  # seconds, the longest that a log file waits for a line

# What is shown of a record, in this order and width.
NUMBERS = {
    "loss": "loss {:6.3f}",
    "accuracy": "acc {:5.1f}%",
    "lr": "lr {:.1e}",
    "images_per_second": "{:,.0f} images/s",
    "data_wait": "waiting {:.0%}",
    "knn": "kNN {:.1f}%",
}


def in_words(
    record: Mapping[str, float],
    names: Collection[str] = NUMBERS.keys(),
    left: float | None = None,
) -> str:
    """The numbers of a record that have these names, in a line; left: seconds to the end."""
    words = [form.format(record[n]) for n, form in NUMBERS.items() if n in record and n in names]
    if left is not None:
        words.append(f"left {timedelta(seconds=round(left))}")
    return "  ".join(words)


@contextmanager
def doing(description: str) -> Iterator[None]:
    """Inside, a terminal shows what takes its time."""
    with console.status(description) if sys.stderr.isatty() else nullcontext():
        yield


def say(text: str) -> None:
    """A line for the person; above the bar where there is one. Of several processes only the first's."""
    console.print("\n".join(map(shown, text.split("\n"))), soft_wrap=True, markup=False)
