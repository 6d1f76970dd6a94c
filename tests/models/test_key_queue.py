import pytest
import torch

from mixco.models.key_queue import KeyQueue


@pytest.mark.parametrize("size", [1, 5, 8, 13])
@pytest.mark.parametrize("batches", [(3, 3, 3), (8, 1, 4), (20, 2), (5, 5)])
def test_the_newest_keys_stay_whatever_the_sizes(size: int, batches: tuple[int, ...]) -> None:
    queue = KeyQueue(size, 2, torch.Generator().manual_seed(0))
    pushed = list(queue.keys.clone())
    number = 0.0
    for batch in batches:
        keys = torch.stack([torch.tensor([number + i, 0.0]) for i in range(batch)])
        number += batch
        queue.push(keys)
        pushed += list(keys)
    newest = {tuple(key.tolist()) for key in pushed[-size:]}
    assert {tuple(key.tolist()) for key in queue.keys} == newest
    assert queue.pointer.item() == sum(batches) % size


def test_the_queue_is_saved_with_the_model() -> None:
    queue = KeyQueue(4, 2, torch.Generator().manual_seed(0))
    queue.push(torch.ones(3, 2))
    other = KeyQueue(4, 2, torch.Generator().manual_seed(1))
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert other.pointer == 3


def test_an_empty_queue_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        KeyQueue(0, 2, torch.Generator())
