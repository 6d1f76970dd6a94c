"""What is learned does not depend on the number of processes."""

import math
from typing import Any

import pytest
import torch
from distributed_steps import SETTINGS, all_settings, split, statistics, synchronised
from several_processes import in_processes

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(1800)]


def equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def alone() -> Any:
    return all_settings()


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_gradients_weights_and_queues_equal_those_of_one_process(
    processes: int, alone: Any
) -> None:
    together = in_processes(processes, all_settings)
    assert all(found.keys() == set(SETTINGS) for found in together)
    for setting in SETTINGS:
        for found in together:
            for kind in ("losses", "gradients", "state"):
                equal(found[setting][kind], alone[setting][kind])
            assert all(map(math.isfinite, found[setting]["losses"][-1].values())), setting
        # Weights, momentum copies and queues are not only near: they cannot drift apart.
        first, *others = (found[setting]["state"] for found in together)
        for other in others:
            assert all(torch.equal(first[key], other[key]) for key in first), setting


def test_keys_are_encoded_by_other_processes_than_their_queries(alone: Any) -> None:
    together = in_processes(2, all_settings)
    for setting in SETTINGS:
        if setting[0] == "moco":
            parts = [found[setting]["seen"][0] for found in together]
            whole = torch.cat(parts)
            # The images of the key encoder are those of the whole batch, in the drawn order.
            equal(whole, alone[setting]["seen"][0])


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["none", "mixco"])
def test_synchronised_batch_norms_normalise_as_one_process_does(mix: str) -> None:
    alone = synchronised(mix)
    for found in in_processes(2, synchronised, mix):
        for kind in ("losses", "gradients", "state"):
            equal(found[kind], alone[kind])


def test_running_statistics_of_all_processes_become_the_first_ones() -> None:
    alone = statistics()
    for found in in_processes(2, statistics):
        equal(found, alone)


@pytest.mark.slow
def test_virtual_devices_are_as_many_and_as_large_on_two_processes() -> None:
    alone, together = split(), in_processes(2, split)
    sizes = [[len(images) for images in found["seen"]] for found in together]
    assert sizes == [[8, 8], [8, 8]]
    # Which images meet in a part differs, so the losses are near, not equal.
    for found in together:
        torch.testing.assert_close(
            found["losses"][0]["loss"], alone["losses"][0]["loss"], rtol=0.1, atol=0
        )
