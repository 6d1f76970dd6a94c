"""Progress for people: a bar in a terminal or a notebook, a line an epoch in a log file."""

import os
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

from mixco.runtime.streams import shown_lines, stderr_of_the_moment

T = TypeVar("T")

# Under torchrun only the first process prints, except in `speaking`.
console = Console(
    file=stderr_of_the_moment(), highlight=False, quiet=os.environ.get("RANK", "0") != "0"
)


class Stopwatch:
    """Images a second, and the part of the time spent waiting for data, since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.go_on(0.0, 0.0, 0)

    def go_on(self, seconds: float, waited: float, images: int) -> None:
        """Continue from the totals of an earlier part of the run."""
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
        """In [0, 1]: the part of the time spent waiting for data."""
        return self.waited / self.seconds


def waited(items: Iterator[T], *watches: Stopwatch) -> Iterator[T]:
    """The items; the time until each one comes counts as waiting."""
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
    """Can a shown line be redrawn? In a terminal, and in a notebook with ipywidgets."""
    in_notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    return not console.quiet and (console.file.isatty() or in_notebook)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields on_progress(done, total). The bar appears with the first call."""
    with _bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(description, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


@contextmanager
def downloading(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields on_progress(bytes, total bytes); shows the speed too."""
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

    Shows a bar with the time left, and below it the numbers and the last kNN of the records. Where
    lines cannot be redrawn, a long epoch prints one every five minutes.
    """
    progress = _bar(TextColumn("{task.percentage:.0f}%"))
    task = progress.add_task(description, total=steps, completed=done)
    numbers_below = Text(no_wrap=True, overflow="ellipsis")
    printed = 0

    def on_step(text: str, numbers: Mapping[str, float], watch: Stopwatch) -> None:
        nonlocal printed
        progress.update(task, advance=1, description=f"{description}  {text}")
        checks = [record["knn"] for record in records if "knn" in record]
        speed = {"images_per_second": watch.rate, "data_wait": watch.data_wait}
        shown_now = {**numbers, **speed, **({"knn": checks[-1]} if checks else {})}
        if redraws():
            numbers_below.plain = f"  {in_words(shown_now)}"
        elif (now := int(watch.seconds // SILENT)) != printed:
            printed = now
            if now:
                left = progress.tasks[task].time_remaining
                say(f"{text}  {in_words(shown_now, left=left)}")

    if not redraws():
        yield on_step
        return
    with Live(console=console, get_renderable=lambda: Group(progress, numbers_below)):
        yield on_step


SILENT = 300  # seconds between two lines of a log file, at most

# The entries of a record that are shown, in this order and width.
NUMBERS = {
    "loss": "loss {:6.3f}",
    "accuracy": "acc {:5.1f}%",
    "lr": "lr {:.1e}",
    "images_per_second": "{:,.0f} images/s",
    "data_wait": "data wait {:.0%}",
    "knn": "kNN {:.1f}%",
}


def in_words(
    record: Mapping[str, float],
    names: Collection[str] = NUMBERS.keys(),
    left: float | None = None,
) -> str:
    """The named numbers of a record as a line. left: seconds to the end."""
    words = [form.format(record[n]) for n, form in NUMBERS.items() if n in record and n in names]
    if left is not None:
        words.append(f"left {timedelta(seconds=round(left))}")
    return "  ".join(words)


@contextmanager
def doing(description: str) -> Iterator[None]:
    """Inside, a terminal shows the description and a spinner."""
    spinner = "dots" if console.encoding.startswith("utf") else "line"
    showing = console.status(description, spinner=spinner)
    with showing if console.file.isatty() else nullcontext():
        yield


def say(text: str) -> None:
    """Print a line, above the bar where there is one. Under torchrun only the first process prints."""
    console.print(shown_lines(text), soft_wrap=True, markup=False)


@contextmanager
def speaking(aloud: bool) -> Iterator[None]:
    """Inside, this process prints, or does not, whichever one it is under torchrun."""
    before, console.quiet = console.quiet, not aloud
    try:
        yield
    finally:
        console.quiet = before
