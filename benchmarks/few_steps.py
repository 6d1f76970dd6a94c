"""The first steps of a real pretraining run, and no more.

    python benchmarks/few_steps.py pretrain [the options of `mixco pretrain`]

runs the command until its first step has ended, and says `stepped`. The loop is the product's own, with
its loading, losses, optimiser and logging: only what it calls once a step to move its progress bar is
replaced, and ends the run. So the product needs no option for it.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import mixco.cli
import mixco.training.pretrain as loop
from mixco.runtime.progress import Stopwatch, waited


class Enough(Exception):
    """The steps that were asked for are done."""


def few_steps(
    run: Callable[[], object], *, untimed: int = 0, seconds: float = 0, least: int = 1
) -> dict[str, float]:
    """Have `run` pretrain: some steps that are not timed, then `seconds` of steps, `least` or more.

    Returns images_per_second, waiting_share, steps and seconds of the timed ones. Only once in a
    process, since the loop is not put back as it was.
    """
    watch, stepped = Stopwatch(), 0

    def watched(items: Iterator[Any], *watches: Stopwatch) -> Iterator[Any]:
        for item in waited(items, watch, *watches):
            watch.images += len(item[0])
            yield item

    @contextmanager
    def training(
        _name: str, _steps: int, _records: object = (), done: int = 0
    ) -> Generator[Callable[[str, object, Stopwatch], None]]:
        def on_step(_text: str, _numbers: object, _epoch: Stopwatch) -> None:
            nonlocal stepped
            stepped += 1
            if stepped == untimed:
                finish_device()
                watch.reset()
            elif stepped >= untimed + least and watch.seconds >= seconds:
                finish_device()
                raise Enough

        assert done == 0, "a new run"
        yield on_step

    loop.waited, loop.training = watched, training  # type: ignore[assignment]
    try:
        run()
    except Enough:
        return {
            "images_per_second": watch.rate,
            "waiting_share": watch.data_wait,
            "steps": stepped - untimed,
            "seconds": watch.seconds,
        }
    raise RuntimeError(
        f"the run ended after {stepped} steps, before it was timed; give more epochs"
    )


def finish_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    few_steps(lambda: mixco.cli.main(sys.argv[1:]))
    print("stepped", flush=True)
