"""Shared by all tests."""

import os

import pytest
import torch
from forked import start_server

# Small tensors: more threads only get in each other's way. On a busy machine even two wait for each
# other most of the time; OMP_NUM_THREADS=1 says so.
torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", 2))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: else one worker is busy with the last of them while others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _forked_processes() -> None:
    start_server()
