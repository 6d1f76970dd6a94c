"""What is learned does not depend on the number of processes."""

import math
from typing import Any

import pytest
import torch
from distributed_steps import SETTINGS, all_settings, everything
from several_processes import in_processes

pytestmark = [pytest.mark.ddp, pytest.mark.timeout(1800)]


def equal(actual: Any, expected: Any) -> None:
    # Barlow's last bias has no gradient, but what rounding leaves of large numbers.
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def alone() -> Any:
    return everything()


@pytest.fixture(scope="module")
def of_two() -> list[Any]:
    """The same of each of two processes."""
    return in_processes(2, everything)


def equal_settings(together: list[Any], alone: Any) -> None:
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


def test_losses_gradients_weights_and_queues_equal_those_of_one_process(
    of_two: list[Any], alone: Any
) -> None:
    equal_settings([found["settings"] for found in of_two], alone["settings"])


@pytest.mark.slow
def test_four_processes_equal_one(alone: Any) -> None:
    equal_settings(in_processes(4, all_settings), alone["settings"])


def test_keys_are_encoded_by_other_processes_than_their_queries(
    of_two: list[Any], alone: Any
) -> None:
    for setting in SETTINGS:
        if setting[0] == "moco":
            parts = [found["settings"][setting]["seen"][0] for found in of_two]
            # The images of the key encoder are those of the whole batch, in the drawn order.
            equal(torch.cat(parts), alone["settings"][setting]["seen"][0])


@pytest.mark.parametrize(
    "setting", ["none", "mixco", "byol", "simsiam", "barlow", "frozen moco", "frozen simclr"]
)
def test_synchronised_and_frozen_batch_norms_normalise_as_one_process_does(
    setting: str, of_two: list[Any], alone: Any
) -> None:
    for found in of_two:
        for kind in ("losses", "gradients", "state"):
            equal(found[setting][kind], alone[setting][kind])


def test_running_statistics_of_all_processes_become_the_first_ones(
    of_two: list[Any], alone: Any
) -> None:
    for found in of_two:
        equal(found["statistics"], alone["statistics"])


def test_virtual_devices_are_as_many_and_as_large_on_two_processes(
    of_two: list[Any], alone: Any
) -> None:
    sizes = [[len(images) for images in found["split"]["seen"]] for found in of_two]
    assert sizes == [[8], [8]]
    # Which images meet in a part differs, so the losses are near, not equal.
    for found in of_two:
        expected = alone["split"]["losses"][0]["loss"]
        torch.testing.assert_close(found["split"]["losses"][0]["loss"], expected, rtol=0.1, atol=0)
