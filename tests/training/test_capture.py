"""What a captured step needs, as far as a machine without a GPU shows it; the rest is in tests/gpu."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import pretrain_config, small_head
from distributed_steps import build as build_method
from distributed_steps import resnet, views_of_steps
from torch import nn

from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.seeding import generator_for
from mixco.runtime.static_inputs import LARGE, StaticInputs
from mixco.training import capture
from mixco.training.build import build
from mixco.training.optimisers import build_optimizer
from mixco.training.setup import Setup, prepare
from mixco.training.step import Step, forward_backward, update

CPU = Compute(torch.device("cpu"), torch.float32)
METHODS = [
    *((m, x) for m in ("moco", "simclr", "distil") for x in ("none", "mixco", "imix", "unmix")),
    *(("byol", "myol"), ("byol", "imix"), ("simsiam", "unmix"), ("barlow", "mixbt")),
]


def method_and_views(method: str, mix: str) -> tuple[Any, list[torch.Tensor]]:
    more: dict[str, Any] = {"bn_splits": 2} if method == "moco" else {}
    views = list(views_of_steps(8, 1)[0])[: 1 if method == "distil" else 2]
    return build_method(method, mix, resnet(), **more).train(), views


def gradients_of(method: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in method.parameters() if p.grad is not None]


@pytest.mark.parametrize(("method", "mix"), METHODS)
def test_draws_that_come_first_are_the_draws(method: str, mix: str) -> None:
    found = []
    for first in (False, True):
        built, views = method_and_views(method, mix)
        draws: Any = generator_for(0, "method")
        losses = built(views, built.draw(8, draws) if first else draws)
        losses["loss"].backward()
        found.append([*losses.values(), *gradients_of(built), *built.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("method", "mix"),
    [
        *(("moco", "unmix"), ("simclr", "cutmix"), ("distil", "mixco")),
        *(("byol", "myol"), ("simsiam", "imix"), ("barlow", "mixbt")),
    ],
)
def test_a_compiler_takes_a_method_whole(method: str, mix: str) -> None:
    """Losses, gradients, queue and momentum copy, without a break of the graph."""
    found = []
    for compiled in (False, True):
        built, views = method_and_views(method, mix)
        capture.normalise_in_one_pass(built, capture.one_pass)
        draws = built.draw(8, generator_for(0, "method"))
        forward: Any = built
        if compiled:
            forward = torch.compile(built, fullgraph=True, dynamic=False, backend="aot_eager")
        losses = forward(views, draws)
        losses["loss"].backward()
        found.append([*losses.values(), *gradients_of(built), *built.buffers()])
    for eager, whole in zip(*found, strict=True):
        torch.testing.assert_close(whole, eager, rtol=1e-9, atol=1e-11)


def test_static_inputs_take_new_values_and_keep_their_places() -> None:
    pairs = build_method("moco", "mixco", resnet()).draw(8, torch.Generator())
    large = torch.arange(LARGE, dtype=torch.uint8)
    first = (pairs, (large, torch.empty(3, 0)), None)
    inputs = StaticInputs(first, CPU.device)
    assert type(inputs.tree[0]) is type(pairs) and inputs.tree[2] is None
    places = inputs.tree[0].order.data_ptr(), inputs.tree[1][0].data_ptr()
    for seed in range(2):
        draws = build_method("moco", "mixco", resnet()).draw(8, torch.Generator().manual_seed(seed))
        inputs.fill((draws, (large + seed, torch.empty(3, 0)), None))
        found, (others, empty), _ = inputs.tree
        assert torch.equal(found.order, draws.order)
        assert torch.equal(found.pairs.lam, draws.pairs.lam)
        assert torch.equal(others, large + seed) and empty.shape == (3, 0)
        assert (found.order.data_ptr(), others.data_ptr()) == places
    with pytest.raises(ValueError):
        inputs.fill((draws, (large[1:], torch.empty(3, 0)), None))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("before", [0, 2])
def test_steps_to_warm_up_leave_no_trace(optimizer: str, before: int) -> None:
    """Not in weights, statistics, queue, momentum copy or optimiser: the next steps are the same."""
    ended, views = [], views_of_steps(8, 4)
    for warms_up in (False, True):
        method = build_method("moco", "mixco", resnet(), bn_splits=2).train()
        stepper = build_optimizer(method, optimizer, 0.01)

        def steps(
            first: int, last: int, method: nn.Module = method, stepper: Any = stepper
        ) -> None:
            for step in range(first, last):
                draws = generator_for(0, "method", step=step)
                forward_backward(method, list(views[step]), draws, compute=CPU)
                update(stepper, 0.1)

        steps(0, before)
        if warms_up:
            places = [value.data_ptr() for value in method.state_dict().values()]
            rates = [group["lr"] for group in stepper.param_groups]
            with capture._rates_kept(stepper), capture._untrained(method, stepper):
                steps(2, 4)
                update(stepper, torch.tensor(0.5))
            assert [value.data_ptr() for value in method.state_dict().values()] == places
            assert [group["lr"] for group in stepper.param_groups] == rates
            assert all(p.grad is None for p in method.parameters())
        steps(before, before + 2)
        ended.append(copy.deepcopy(method.state_dict()))
    for name, value in ended[0].items():
        assert torch.equal(ended[1][name], value), name


@pytest.mark.parametrize(
    ("method", "mix", "optimizer"),
    [
        ("moco", "none", "adamw"),
        ("moco", "mixco", "sgd"),
        ("moco", "unmix", "adamw"),
        ("simclr", "mixco", "adamw"),
        ("simclr", "imix", "sgd"),
        ("byol", "myol", "adamw"),
        ("simsiam", "mixco", "adamw"),
        ("barlow", "mixbt", "sgd"),
    ],
)
def test_steps_of_tensors_alone_are_the_steps(
    tmp_path: Path, method: str, mix: str, optimizer: str
) -> None:
    """8 steps in float64: draws first, dense views, split norms at once, the rate as a tensor.

    In float32 a change of 1e-6 in the weights changes the loss by 1 % within 20 steps. Without blur,
    so that the views are equal to the bit.
    """
    ended = []
    for pure in (False, True):
        with ExitStack() as stack:
            own: dict[str, Any] = {"queue": 64} if method == "moco" else {}
            own |= {"augmentation": "moco-v1", "arch": "test_resnet", "size": 32, "batch_size": 32}
            own |= {"method": method, "mix": mix, "optimizer": optimizer, "epochs": 1}
            own |= small_head(method)
            given = prepare(pretrain_config(cache=tmp_path, precision="float32", **own), stack)
            compute = given.compute._replace(dtype=torch.float64)
            given = dataclasses.replace(given, compute=compute)
            model, stepper = built(given)
            model.double()
            batches = stack.enter_context(closing(given.batches(print)))
            drawn = next(batches)
            step = capture.eager_step(given, model, stepper)
            if pure:
                tensors = capture.pure_step(given, model, stepper, drawn, compile_views=False)
                step = capture.as_step(tensors)
            losses = []
            for number in range(8):
                losses.append(step.losses(drawn, number)["loss"].item())
                step.update(2**-10)  # the same number in float32
                drawn = next(batches)
            ended.append((losses, model.state_dict()))
    (losses, state), (same_losses, same_state) = ended
    assert same_losses == pytest.approx(losses, rel=1e-8)
    for name, value in state.items():
        torch.testing.assert_close(same_state[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    config = pretrain_config(
        arch="test_resnet", size=32, batch_size=16, epochs=1, cache=tmp_path, knn_every=0
    )
    with ExitStack() as stack:
        yield prepare(config, stack)


def with_execution(setup: Setup, execution: str, **optimisation: Any) -> Setup:
    settings = setup.settings
    run = dataclasses.replace(settings.run, execution=execution)
    rest = dataclasses.replace(settings.optimisation, **optimisation)
    settings = dataclasses.replace(settings, run=run, optimisation=rest)
    return dataclasses.replace(setup, settings=settings)


def first_steps(setup: Setup, step: Step) -> list[float]:
    found = []
    batches = setup.batches(print)
    for number in range(3):
        found.append(step.losses(next(batches), number)["loss"].item())
        step.update(0.1)
    batches.close()
    return found


def built(setup: Setup) -> tuple[nn.Module, torch.optim.Optimizer]:
    method = build(setup).train()
    optimisation = setup.settings.optimisation
    return method, build_optimizer(
        method, optimisation.optimizer, optimisation.weight_decay, optimisation.lr
    )


def test_a_step_that_cannot_be_captured_runs_eagerly_and_says_why(
    setup: Setup, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, optimizer = built(setup)
    expected = first_steps(setup, capture.build_step(setup, method, method, optimizer, 10))
    assert capsys.readouterr().err == ""

    def failing(*_: Any, **__: Any) -> Step:
        raise RuntimeError("no compiler was found\nmore of it")

    monkeypatch.setattr(capture, "capture", failing)
    asked = with_execution(setup, "captured")
    method, optimizer = built(setup)
    step = capture.build_step(asked, method, method, optimizer, 10)
    assert first_steps(asked, step) == expected
    printed = capsys.readouterr().err
    assert "no compiler was found" in printed and "more of it" not in printed
    assert printed.count("--execution eager") == 1

    micro = with_execution(setup, "captured", micro_batches=2)
    capture.build_step(micro, method, method, optimizer, 10)
    assert "micro-batches" in capsys.readouterr().err


def test_a_method_whose_numbers_change_is_not_replayed(
    setup: Setup, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph would keep the first momentum, temperature or whatever it is."""
    method, optimizer = built(setup)
    eager = capture.eager_step(setup, method, optimizer)
    replayed = Step(lambda *_: {"loss": torch.zeros(())}, lambda _: None)
    monkeypatch.setattr(capture, "capture", lambda *_, **__: replayed)
    asked = with_execution(setup, "captured")
    step = capture.build_step(asked, method, method, optimizer, 10)
    batches = setup.batches(print)
    drawn = next(batches)
    assert step.losses(drawn, 0)["loss"] == 0
    method.temperature = 0.3  # type: ignore[assignment]
    expected = eager.losses(drawn, 1)["loss"]
    optimizer.zero_grad()
    assert step.losses(drawn, 1)["loss"] == expected != 0
    assert "changes its numbers" in capsys.readouterr().err
    batches.close()


def test_moved_weights_are_captured_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    method, optimizer = built(setup)
    captured = []

    def counting(*_: Any, **__: Any) -> Step:
        captured.append(1)
        return Step(lambda *_: {}, lambda _: None)

    monkeypatch.setattr(capture, "capture", counting)
    asked = with_execution(setup, "captured")
    step = capture.build_step(asked, method, method, optimizer, 10)
    batches = setup.batches(print)
    drawn = next(batches)
    for _ in range(2):
        step.losses(drawn, 0)
    assert len(captured) == 1
    weight = next(method.parameters())
    weight.data = weight.data.clone()
    for _ in range(2):
        step.losses(drawn, 0)
    assert len(captured) == 2
    batches.close()


def test_what_needs_a_gpu_is_refused_without_one(tmp_path: Path) -> None:
    config = pretrain_config(execution="captured", cache=tmp_path, size=32, arch="test_resnet")
    with ExitStack() as stack, pytest.raises(UserError, match="--execution captured"):
        prepare(config, stack)
