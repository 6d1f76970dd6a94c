"""Base methods that send their own process a signal during a step, as a user or a cluster may."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from torch import nn

from mixco.methods import METHODS, moco, simclr

_waiting: list[tuple[int, int]] = []
"""The step, counted from when the process began or resumed the run, and the signal."""


def send_signal_in(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Have the next run get the signal while it computes the given step; runs after it get none."""
    _waiting[:] = [(step, number)]
    for name in ("moco", "simclr"):
        entry = METHODS[name]._replace(build=f"signalling:build_{name}")
        monkeypatch.setitem(METHODS, name, entry)


@contextmanager
def acting(number: int) -> Iterator[None]:
    """Inside, the signal acts as usual, also where the tests were started with it ignored (nohup)."""
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)
    try:
        yield
    finally:
        signal.signal(number, before)


def build_moco(*arguments: Any, **options: Any) -> nn.Module:
    return _signalling(moco.build(*arguments, **options))


def build_simclr(*arguments: Any, **options: Any) -> nn.Module:
    return _signalling(simclr.build(*arguments, **options))


def _signalling(method: nn.Module) -> nn.Module:
    steps = count()

    def before(*_: object) -> None:
        step = next(steps)
        if _waiting and step == _waiting[0][0]:
            signal.raise_signal(_waiting.pop()[1])

    method.register_forward_pre_hook(before)
    return method
