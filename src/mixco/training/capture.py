"""A step as CUDA graphs: recorded once, then replayed, without Python and launch by launch.

For small images and networks the host needs longer to launch the kernels of a step than the GPU to run
them. A CUDA graph launches them all at once. What it may not do: wait for the device, allocate, or take
another path. So everything that is drawn comes in as tensors (`StaticInputs`), the views are dense
(views/dense.py), and the learning rate is a scalar on the device.

The eager step (step.py) is the reference, and what runs where a step cannot be captured.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mixco.data.images import Drawn
from mixco.models.encoder import drops_at_random
from mixco.models.families import first_line
from mixco.models.split_batchnorm import normalise_in_one_pass, one_pass
from mixco.runtime.distributed import world
from mixco.runtime.progress import say
from mixco.runtime.seeding import generator_for
from mixco.runtime.static_inputs import StaticInputs
from mixco.training.setup import Setup
from mixco.training.step import Step, eager_step, forward_backward, update
from mixco.views.dense import dense_views

WARM_UP = 3  # steps before a capture, in which libraries choose kernels and allocate
# Compiling takes up to 100 seconds of one processor, less on many; a captured step is expected to save
# some 10 ms of an eager one.
FEWEST_STEPS = 3000
RECOMPILED = 64  # at most, for other shapes; torch's 8 do not suffice for every network


def build_step(
    setup: Setup,
    method: nn.Module,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
) -> Step:
    """The step of a run, captured where --execution asks for it and it can be, else eager.

    method: in training mode. trained: the same, wrapped by `distributed.ddp`. steps: left in the run.
    """
    eager = eager_step(setup, trained, optimizer)
    asked = setup.settings.run.execution
    if asked == "eager" or (asked == "auto" and not _worth_it(setup, steps)):
        return eager
    if reason := obstacle(setup, method):
        if asked != "auto":
            say(f"--execution {asked}: {reason}; the step runs operation by operation")
        return eager
    return _captured_or(eager, setup, method, optimizer, compiled=asked == "compiled")


def _worth_it(setup: Setup, steps: int) -> bool:
    return setup.compute.device.type == "cuda" and steps >= FEWEST_STEPS


def obstacle(setup: Setup, method: nn.Module) -> str | None:
    """Why the step of a run cannot be captured; None if it can, as far as is known before."""
    if world() > 1:
        return "several processes exchange rows of the batch"
    if setup.settings.optimisation.micro_batches > 1:
        return "micro-batches repeat parts of the forward pass"
    if drops_at_random(method):
        return "the network has layers that drop at random"
    if not hasattr(method, "draw"):
        return f"{type(method).__name__} has no `draw`, which draws for a step in advance"
    return None


def _captured_or(
    eager: Step,
    setup: Setup,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    compiled: bool,
) -> Step:
    """Captured at the first step, and again when a weight has moved; eager where that fails."""
    step: Step | None = None
    numbers, tensors = _numbers(method), [*method.parameters(), *method.buffers()]
    places: list[int] = []

    def losses(drawn: Drawn, number: int) -> dict[str, Tensor]:
        nonlocal step, places
        if step is not eager and _numbers(method) != numbers:
            say("the method changes its numbers from step to step, and a captured step keeps them")
            step = _told(eager)
        if step is None or (step is not eager and _places(tensors) != places):
            try:
                say("compiling and recording a step, which takes a minute or two the first time")
                step = capture(setup, method, optimizer, drawn, compiled=compiled)
                places = _places(tensors)
            except Exception as error:  # of compilers, drivers and memory
                say(f"the step cannot be captured: {first_line(error) or type(error).__name__}")
                normalise_in_one_pass(method, None)
                step = _told(eager)
        return step.losses(drawn, number)

    return Step(losses, lambda lr: cast(Step, step).update(lr))


def _told(eager: Step) -> Step:
    say("it runs operation by operation, which is slower on a GPU (--execution eager)")
    return eager


def _numbers(method: nn.Module) -> dict[str, Any]:
    """The numbers that a method holds itself, such as a temperature: they are recorded as they are."""
    return {name: value for name, value in vars(method).items() if isinstance(value, (int, float))}


def _places(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


class PureStep(NamedTuple):
    """A step as two functions of tensors that stay where they are: what is drawn, and the rate."""

    draw: Callable[[Drawn, int], None]
    """Draw the rest of a step, by its number, and send everything to the device."""
    losses: Callable[[], dict[str, Tensor]]
    lr: Tensor
    """The learning rate, a scalar."""
    update: Callable[[], None]


def pure_step(
    setup: Setup,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    drawn: Drawn,
    *,
    compile_views: bool = True,
    compile_method: bool = False,
) -> PureStep:
    """The step of a run on one device, without a round trip to the host.

    method: in training mode, with a `draw`. drawn: of any step; those of all steps have its shapes.
    compile_views: and the split batch norms. compile_method: encoder and losses.
    """
    compute, seed = setup.compute, setup.settings.run.seed
    batch = setup.settings.optimisation.batch_size

    def draws(number: int) -> Any:
        generator = generator_for(seed, "method", step=number)
        return cast(Any, method).draw(batch, generator)

    inputs = StaticInputs((drawn, draws(0)), compute.device)
    lr = torch.zeros((), device=compute.device)
    functions = dense_views(compiled=compile_views)
    alone = compile_views and not compile_method  # else they are compiled with the method
    normalise_in_one_pass(method, _compiled(one_pass, dynamic=True) if alone else one_pass)
    trained = _compiled(method, dynamic=False) if compile_method else method

    def losses() -> dict[str, Tensor]:
        of_views, of_method = inputs.tree
        views = setup.make_views(of_views, functions)
        return forward_backward(trained, views, of_method, compute=compute, batch=batch)

    return PureStep(
        lambda drawn, number: inputs.fill((drawn, draws(number))),
        losses,
        lr,
        lambda: update(optimizer, lr),
    )


def capture(
    setup: Setup,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    drawn: Drawn,
    *,
    compiled: bool = False,
) -> Step:
    """Record a step on one CUDA device. Nothing is trained meanwhile.

    method, drawn: as for `pure_step`. compiled: encoder and losses are compiled too.
    """
    pure = pure_step(setup, method, optimizer, drawn, compile_method=compiled)
    pure.draw(drawn, 0)
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with (
        _rates_kept(optimizer),
        torch._dynamo.config.patch(recompile_limit=RECOMPILED),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the compiler's advice, such as to take TF32
        with _untrained(method, optimizer), _side_stream(setup.compute.device):
            for _ in range(WARM_UP):
                pure.losses()
                pure.update()
        torch.cuda.empty_cache()  # a graph has memory of its own
        # Other threads, which pin what workers have decoded, are not kept from their calls.
        with torch.cuda.graph(first, capture_error_mode="thread_local"):
            losses = pure.losses()
        # It reads the gradients, which lie in the memory of the first.
        with torch.cuda.graph(second, pool=first.pool(), capture_error_mode="thread_local"):
            pure.update()

    def replay() -> dict[str, Tensor]:
        first.replay()
        return losses

    return as_step(pure._replace(losses=replay, update=second.replay))


def as_step(pure: PureStep) -> Step:
    """The step of a run that sends what is drawn, and calls the functions."""

    def losses(drawn: Drawn, number: int) -> dict[str, Tensor]:
        pure.draw(drawn, number)
        return pure.losses()

    def update(lr: float) -> None:
        pure.lr.fill_(lr)
        pure.update()

    return Step(losses, update)


def _compiled(function: Any, *, dynamic: bool) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=dynamic)


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Inside, work goes to a stream of its own, as it must before a capture."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    usual = torch.cuda.current_stream(device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield
    usual.wait_stream(stream)


@contextmanager
def _rates_kept(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the optimiser may be captured; afterwards its settings are as before, for checkpoints."""
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, kept in zip(optimizer.param_groups, before, strict=True):
            group |= {"lr": kept["lr"]} | {k: kept[k] for k in ("capturable",) if k in kept}


@contextmanager
@torch.no_grad()
def _untrained(method: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Afterwards weights, buffers and the optimiser are as before, in the same places of memory.

    What the optimiser has made inside becomes zeros, with which it would begin.
    """
    weights = [(tensor, tensor.clone()) for tensor in method.state_dict().values()]
    states = {p: {k: _copy(v) for k, v in state.items()} for p, state in optimizer.state.items()}
    try:
        with torch.enable_grad():
            yield
    finally:
        for tensor, before in weights:
            tensor.copy_(before)
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                before = states.get(parameter, {}).get(key)
                if isinstance(value, Tensor):
                    value.zero_() if before is None else value.copy_(before)
        optimizer.zero_grad(set_to_none=True)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
