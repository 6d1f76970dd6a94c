"""All that a run of pretraining ends with, to be compared with another's bit for bit."""

from pathlib import Path
from typing import Any

import torch

from mixco.runtime.run_folder import read_metrics
from mixco.training.checkpoints import checkpoints

TIMED = {"images_per_second", "waiting_share", "data_wait"}  # the last has had two names


def final_state(run: Path) -> dict[str, Any]:
    """All that a run ends with, without what a clock has put there."""
    state = torch.load(checkpoints(run)[-1], weights_only=True)
    del state["time"], state["config"]
    for record in state["records"]:
        assert len(record.keys() & TIMED) == 2
    state["records"] = without_times(state["records"])
    assert without_times(read_metrics(run)) == state["records"]
    return dict(state)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMED} for record in records]


def assert_equal(a: Any, b: Any, place: str = "") -> None:
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_equal(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), place
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}/{number}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place
