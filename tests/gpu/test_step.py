"""A step on CUDA: eager as on the CPU, and captured as it is eager."""

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import pretrain_config
from no_waits import refused_to_wait
from sample_images import sample_images
from torch import Tensor, nn

import mixco
from mixco.models.split_batchnorm import one_pass, split_batch_norms
from mixco.runtime.errors import UserError, explain_machine_failures
from mixco.runtime.run_folder import read_metrics
from mixco.training import capture
from mixco.training.build import build
from mixco.training.optimisers import build_optimizer
from mixco.training.pretrain import pretrain
from mixco.training.setup import Setup, prepare
from mixco.training.step import Step, eager_step
from mixco.views.augment import ViewParameters, apply_view, sample_view
from mixco.views.augmentation import AUGMENTATIONS, Input
from mixco.views.dense import dense_views

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:TensorFloat32")]
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CUDA = torch.device("cuda")
SETTINGS = [
    *((method, mix) for method in ("moco", "simclr") for mix in ("none", "mixco")),
    *(("byol", "myol"), ("simsiam", "imix"), ("barlow", "mixbt")),
]


@pytest.fixture(autouse=True)
def _many_shapes() -> Iterator[None]:
    """One process compiles the same functions for many sizes."""
    with torch._dynamo.config.patch(recompile_limit=64):
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(cache: Path, **settings: Any) -> Any:
    usual: dict[str, Any] = {"arch": "resnet18", "size": 32, "batch_size": 64, "epochs": 2}
    usual |= {"precision": "float32", "device": "cuda", "cache": cache, "knn_every": 0}
    if settings.get("method", "moco") == "moco":
        usual |= {"queue": 512}
    return pretrain_config(**{**usual, **settings})


@pytest.fixture
def prepared(cache: Path) -> Iterator[Callable[..., Setup]]:
    with ExitStack() as stack:
        yield lambda **settings: prepare(config(cache, **settings), stack)


def parts_of(setup: Setup) -> tuple[nn.Module, torch.optim.Optimizer]:
    optimisation = setup.settings.optimisation
    method = build(setup).train()
    return method, build_optimizer(
        method, optimisation.optimizer, optimisation.weight_decay, optimisation.lr
    )


def losses_of(setup: Setup, step: Step, steps: int, first: int = 0) -> list[float]:
    found = []
    with closing(setup.batches(print, start=first)) as batches:
        for number, drawn in enumerate(itertools.islice(batches, steps), first):
            found.append(step.losses(drawn, number)["loss"].clone())
            step.update(1e-3)
    return torch.stack(found).tolist()


def equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    largest = expected.double().abs().max().clamp(min=1e-3)
    difference = (found.double() - expected.double().to(found.device)).abs().max()
    assert difference <= tolerance * largest, f"{difference / largest:.2g} of the largest"


@pytest.mark.parametrize(
    ("name", "size"), [("moco-v1", 32), ("moco-v2", 224), ("simclr", 64), ("aerial", 32)]
)
def test_views_are_those_of_a_cpu(name: str, size: int) -> None:
    """Grouped, dense and dense compiled, to a hundredth of an 8-bit level."""
    a = AUGMENTATIONS[name](Input(size))
    images = sample_images(32)
    p = sample_view(torch.full((32, 2), 64), a, torch.Generator().manual_seed(1))
    expected = apply_view(images, p, a)
    there = images.to(CUDA)
    sent = ViewParameters(*(each.to(CUDA) for each in p))
    for found in (
        apply_view(there, p, a),
        dense_views().apply(there, sent, a),
        dense_views(compiled=True).apply(there, sent, a),
    ):
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("method", "mix"), SETTINGS)
def test_losses_and_gradients_are_those_of_a_cpu(
    prepared: Callable[..., Setup], method: str, mix: str
) -> None:
    setup = prepared(method=method, mix=mix)
    with closing(setup.batches(print)) as batches:
        views = setup.make_views(next(batches))
    on_gpu = build(setup).train().double()
    on_cpu = copy.deepcopy(on_gpu).cpu()
    for built, where in ((on_gpu, CUDA), (on_cpu, torch.device("cpu"))):
        draws = torch.Generator().manual_seed(0)
        built([view.to(where, torch.float64) for view in views], draws)["loss"].backward()
    for (name, ours), theirs in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None, name
            equal(ours.grad, theirs.grad, 1e-9)
    for ours, theirs in zip(on_gpu.buffers(), on_cpu.buffers(), strict=True):
        equal(ours, theirs, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_norms_at_once_are_the_norms_of_the_parts(dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    x = sample_images(64)[:, :, ::2, ::2].to(CUDA, dtype, memory_format=torch.channels_last)
    slope = torch.linspace(-1, 1, x.numel(), device=CUDA).view_as(x)
    found = []
    for function in (None, one_pass, torch.compile(one_pass, fullgraph=True, dynamic=True)):
        norm = split_batch_norms(nn.BatchNorm2d(3), 8).to(CUDA)
        capture.normalise_in_one_pass(norm, function)
        given = x.clone().requires_grad_()
        out = norm(given)
        (out.float() * slope).sum().backward()
        gradients = [p.grad for p in norm.parameters()]
        found.append([out, given.grad, *gradients, *norm.buffers()])
    for others in found[1:]:
        for ours, reference in zip(others, found[0], strict=True):
            equal(ours, reference, tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("method", "mix"), SETTINGS)
def test_captured_steps_are_the_steps(
    prepared: Callable[..., Setup],
    method: str,
    mix: str,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 steps, half of them before the capture: losses, weights, statistics, queue, momentum copy."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    setup = prepared(method=method, mix=mix, optimizer=optimizer, arch="test_resnet")
    ended = []
    for captured in (False, True):
        built, stepper = parts_of(setup)
        losses = losses_of(setup, eager_step(setup, built, stepper), 10)
        with closing(setup.batches(print)) as batches:
            drawn = next(batches)
        if captured:
            step = capture.capture(setup, built, stepper, drawn)
            rates = [group["lr"] for group in stepper.param_groups]
            assert all(isinstance(rate, float) for rate in rates), "as checkpoints have them"
        else:
            step = capture.as_step(capture.pure_step(setup, built, stepper, drawn))
        losses += losses_of(setup, step, 10, first=10)
        ended.append((losses, built.state_dict()))
    (expected, weights), (losses, state) = ended
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("method", "mix"), SETTINGS)
def test_captured_steps_begin_as_eager_ones(
    prepared: Callable[..., Setup], method: str, mix: str
) -> None:
    """Three steps: rounding grows tenfold with each (see the CPU's test in float64)."""
    setup = prepared(method=method, mix=mix)
    found = []
    for captured in (False, True):
        built, stepper = parts_of(setup)
        step = eager_step(setup, built, stepper)
        if captured:
            with closing(setup.batches(print)) as batches:
                step = capture.capture(setup, built, stepper, next(batches))
        found.append(losses_of(setup, step, 3))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "mix"),
    [("moco", "mixco"), ("simclr", "mixco"), ("moco", "unmix"), ("simclr", "imix")],
)
def test_a_captured_step_never_waits(prepared: Callable[..., Setup], method: str, mix: str) -> None:
    setup = prepared(method=method, mix=mix, precision="bfloat16")
    built, stepper = parts_of(setup)
    with closing(setup.batches(print)) as batches:
        drawn = next(batches)
        assert drawn.pixels.ndim == 1, "the images are on the GPU already"
        step = capture.capture(setup, built, stepper, drawn)
        with refused_to_wait():
            for number in range(3):
                losses = step.losses(next(batches), number)
                step.update(0.01)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.slow
def test_compiled_whole_it_is_the_same(prepared: Callable[..., Setup]) -> None:
    setup = prepared(method="moco", mix="mixco", arch="test_resnet")
    found = []
    for compiled in (False, True):
        built, stepper = parts_of(setup)
        with closing(setup.batches(print)) as batches:
            step = capture.capture(setup, built, stepper, next(batches), compiled=compiled)
        found.append(losses_of(setup, step, 3))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("loading", ["packed", "streamed"])
def test_a_captured_run_stops_resumes_and_checks(
    cache: Path, tmp_path: Path, loading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"execution": "captured", "knn_every": 1, "arch": "test_resnet", "loading": loading}
    whole = pretrain(config(cache, out=tmp_path / "whole", **settings))
    stopped = config(cache, out=tmp_path / "stopped", **settings)
    for steps in (3, 30):
        pretrain(stopped, stop_after=steps)
    run = pretrain(stopped)
    assert "cannot be captured" not in capsys.readouterr().err
    for ours, theirs in zip(read_metrics(run), read_metrics(whole), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert ours["knn"] == pytest.approx(theirs["knn"], abs=10)
    mixco.load_encoder(run / "encoder.safetensors")


def test_a_captured_run_that_diverges_is_stopped(cache: Path, tmp_path: Path) -> None:
    settings = {"execution": "captured", "arch": "test_resnet", "lr": 1e30, "optimizer": "sgd"}
    with pytest.raises(UserError, match="not finite"):
        pretrain(config(cache, out=tmp_path / "run", warmup=0.0, **settings))


def test_memory_that_does_not_suffice_is_told(cache: Path, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    held = torch.cuda.memory_reserved(CUDA)
    torch.cuda.set_per_process_memory_fraction((held + 300 * 2**20) / total)
    try:
        with (
            pytest.raises(UserError, match=r"memory.*lower --batch-size"),
            explain_machine_failures("lower --batch-size"),
        ):
            pretrain(config(cache, size=64, batch_size=512, out=tmp_path / "run"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
