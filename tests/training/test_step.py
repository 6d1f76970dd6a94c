"""The parts of a step: losses and gradients, the update, the sums of an epoch."""

import copy
import math

import pytest
import torch
from distributed_steps import CPU, build, plain_encoder, views_of_steps
from torch import Tensor, nn

from mixco.runtime.device import Compute
from mixco.runtime.seeding import generator_for
from mixco.training.state import TrainState, restored
from mixco.training.step import forward_backward, update


def test_losses_come_without_gradient_and_the_weights_get_theirs() -> None:
    method, views = build("simclr", "mixco", plain_encoder()), list(views_of_steps(8, 1)[0])
    losses = forward_backward(method, views, generator_for(0, "method"), compute=CPU)
    assert losses.keys() == {"loss", "clean", "mixed", "accuracy"}
    assert not any(loss.requires_grad for loss in losses.values())
    other = build("simclr", "mixco", plain_encoder())
    other(views, generator_for(0, "method"))["loss"].backward()
    for weight, theirs in zip(method.parameters(), other.parameters(), strict=True):
        assert weight.grad is not None and theirs.grad is not None
        assert torch.equal(weight.grad, theirs.grad)


class Dropped(nn.Module):
    """A method whose loss tells what dropout drew, and in which number format it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.formats: list[torch.dtype] = []

    def forward(
        self, views: list[Tensor], _draws: torch.Generator, _batch: int | None
    ) -> dict[str, Tensor]:
        outputs = self.layer(views[0])
        self.formats.append(outputs.dtype)
        return {"loss": nn.functional.dropout(outputs.float(), 0.5).square().mean()}


def test_dropout_draws_from_its_generator_and_leaves_the_global_one_alone() -> None:
    method, views = Dropped(), [torch.ones(4, 64)]
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(losses))
        before = torch.get_rng_state()
        found = forward_backward(
            method, views, torch.Generator(), compute=CPU, dropout=generator_for(seed, "dropout")
        )
        losses.append(found["loss"].item())
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_pass_is_in_the_asked_number_format(dtype: torch.dtype) -> None:
    method = Dropped()
    compute = Compute(torch.device("cpu"), dtype)
    losses = forward_backward(method, [torch.ones(4, 64)], torch.Generator(), compute=compute)
    assert method.formats == [dtype]
    assert losses["loss"].dtype == torch.float32
    assert method.layer.weight.grad is not None
    assert method.layer.weight.grad.dtype == torch.float32


def test_an_update_has_its_rate_and_drops_gradients() -> None:
    layers = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    groups = [{"params": layer.parameters()} for layer in layers]
    optimizer = torch.optim.SGD(groups, lr=100.0)
    for rates in (0.5, [0.25, 0.0]):
        before = [layer.weight.detach().clone() for layer in layers]
        sum(layer.weight.sum() for layer in layers).backward()  # type: ignore[union-attr]
        update(optimizer, rates)
        for layer, old, rate in zip(
            layers, before, rates if isinstance(rates, list) else [rates] * 2, strict=True
        ):
            torch.testing.assert_close(layer.weight.detach(), old - rate)
            assert layer.weight.grad is None
    with pytest.raises(ValueError):
        update(optimizer, [0.1])


def test_an_epoch_is_the_mean_of_its_steps() -> None:
    state = TrainState()
    for step, loss in enumerate((1.0, 2.0, 6.0)):
        state.add({"loss": torch.tensor(loss), "accuracy": torch.tensor(10 * loss)}, lr=0.1 * step)
        assert state.look(step + 1)
        state.count(images=8)
    record = state.end_epoch()
    assert (record["epoch"], record["loss"], record["accuracy"]) == (1, 3.0, 30.0)
    assert record["lr"] == 0.2
    assert state.records == [record]
    assert (state.step, state.whole.images, state.sums) == (3, 24, {})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_seen(loss: float) -> None:
    state = TrainState()
    state.add({"loss": torch.tensor(1.0)}, lr=0.1)
    assert state.look(1)
    state.add({"loss": torch.tensor(loss)}, lr=0.1)
    assert not state.look(2)


def test_a_state_comes_back_from_what_is_saved() -> None:
    """Also in the middle of an epoch: its sums go on, to the bit."""
    whole = TrainState()
    losses = [{"loss": torch.tensor(value)} for value in (0.1, 0.2, 0.7, 0.4)]
    for count, step in enumerate(losses):
        whole.add(step, lr=0.1)
        whole.look(count % 3 + 1)
        whole.count(images=4)
        if count == 2:
            whole.end_epoch()
        if count == 1:
            again = restored(copy.deepcopy(whole.saved()), torch.device("cpu"))
    assert (again.step, again.records, again.whole.images) == (2, [], 8)
    for step, count in zip(losses[2:], (3, 1), strict=True):
        again.add(step, lr=0.1)
        again.look(count)
        again.count(images=4)
        if count == 3:
            again.end_epoch()
    assert (again.step, again.whole.images, again.means) == (4, 16, whole.means)
    assert again.records[0]["loss"] == whole.records[0]["loss"]
    assert torch.equal(again.sums["loss"], whole.sums["loss"])
