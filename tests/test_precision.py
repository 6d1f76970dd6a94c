"""The choice of number format and memory format: by measurement, kept, and the same for all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import in_processes
from torch import Tensor, nn

from mixco.runtime import precision
from mixco.runtime.precision import Formats, Rates, Workload, fastest, formats, images_of_a_step

CPU = torch.device("cpu")
ALL = [
    Formats(dtype, layout)
    for layout in ("channels_last", "contiguous")
    for dtype in ("bfloat16", "float32")
]
USUAL = ALL[0]


class Recorder(nn.Module):
    """A small network that remembers how it was called; some formats can be made to fail."""

    def __init__(self, fails: Formats | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.fails = fails
        self.calls: list[tuple[Any, ...]] = []

    def __deepcopy__(self, memo: Any) -> "Recorder":
        with torch.random.fork_rng([]):
            copied = Recorder(self.fails)
        copied.load_state_dict(self.state_dict())
        copied.calls = self.calls
        return copied

    def forward(self, x: Tensor) -> Tensor:
        dtype = str(x.dtype).removeprefix("torch.")
        last = x.is_contiguous(memory_format=torch.channels_last)
        called = Formats(dtype, "channels_last" if last else "contiguous")
        weight = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert weight == last, "weights and images have one memory format"
        assert torch.is_autocast_enabled("cpu") == (dtype == "bfloat16")
        self.calls.append((called, tuple(x.shape), self.training, torch.is_grad_enabled()))
        if called == self.fails:
            raise RuntimeError("not implemented")
        features: Tensor = self.drop(self.norm(self.conv(x))).mean((2, 3))
        return features


def workload(training: bool = True, size: int = 32) -> Workload:
    return Workload("recorder", "standard", size, 3, training)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes in bfloat16, whatever this one does."""
    monkeypatch.setattr(precision, "computes_bfloat16", lambda _: True)


def clock(monkeypatch: pytest.MonkeyPatch, network: Recorder, seconds: dict[Formats, Any]) -> None:
    """A clock by which a step takes so many seconds in each format; a list: of its steps."""
    now, steps = [0.0], dict.fromkeys(ALL, 0)

    def read() -> float:
        for called, *_ in network.calls[sum(steps.values()) :]:
            taken = seconds[called]
            now[0] += taken[steps[called]] if isinstance(taken, list) else taken
            steps[called] += 1
        return now[0]

    monkeypatch.setattr(precision.time, "perf_counter", read)  # type: ignore[attr-defined]


# Seconds of a step in the order of ALL, and the one that is chosen.
CHOICES = [
    ((1.0, 1.0, 1.0, 1.0), USUAL),
    ((1.0, 0.9, 0.9, 0.9), USUAL),  # not clearly faster
    ((1.0, 0.5, 1.0, 1.0), ALL[1]),
    ((1.0, 1.0, 0.5, 1.0), ALL[2]),
    ((1.0, 1.0, 1.0, 0.5), ALL[3]),
    ((1.0, 0.5, 1.0, 0.45), ALL[1]),  # no clear gain beyond the first change
    ((1.0, 0.5, 1.0, 0.3), ALL[3]),
]


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize(("seconds", "wanted"), CHOICES)
def test_the_usual_formats_stay_unless_others_are_clearly_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], wanted: Formats
) -> None:
    network = Recorder()
    clock(monkeypatch, network, dict(zip(ALL, seconds, strict=True)))
    chosen, why = fastest(network, workload(), CPU, tmp_path)
    assert chosen == wanted
    assert why.startswith("no other" if chosen == USUAL else "clearly faster than bfloat16")
    batch = images_of_a_step(32, "cpu")
    for each, taken in zip(ALL, seconds, strict=True):
        assert f"{' '.join(each)} {batch / taken:,.0f}" in why


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("training", [True, False])
def test_a_step_is_one_of_the_work(tmp_path: Path, training: bool) -> None:
    network = Recorder()
    fastest(network, workload(training), CPU, tmp_path)
    called = [call[0] for call in network.calls]
    assert {each: called.count(each) for each in ALL} == dict.fromkeys(ALL, 3)
    shape = (images_of_a_step(32, "cpu"), 3, 32, 32)
    assert {call[1:] for call in network.calls} == {(shape, training, training)}


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([9.0, 1.0, 1.5], ALL[1]),
        ([9.0, 1.5, 1.0], ALL[1]),
        ([0.1, 1.9, 1.0], USUAL),  # on a busy machine one step may be fast
    ],
)
def test_two_steps_count_after_one_to_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[float], wanted: Formats
) -> None:
    """Both must be clearly faster than the others' faster one; the faster one is said."""
    network = Recorder()
    clock(monkeypatch, network, {each: [0.1, 3.0, 2.0] for each in ALL} | {ALL[1]: steps})
    chosen, why = fastest(network, workload(), CPU, tmp_path)
    assert chosen == wanted
    assert "bfloat16 channels_last 8, float32 channels_last 16," in why


@pytest.mark.usefixtures("hardware")
def test_a_hopeless_format_makes_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Recorder()
    seconds = dict(zip(ALL, (40.0, 1.0, 40.0, 1.0), strict=True))
    clock(monkeypatch, network, seconds)
    assert fastest(network, workload(), CPU, tmp_path)[0] == ALL[1]
    called = [call[0] for call in network.calls]
    assert [called.count(each) for each in ALL] == [1, 3, 1, 3]


@pytest.mark.usefixtures("hardware")
def test_the_network_and_the_generators_stay_as_they_are(tmp_path: Path) -> None:
    network = Recorder().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    fastest(network, workload(), CPU, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training and network.conv.weight.grad is None
    assert network.conv.weight.is_contiguous()


@pytest.mark.usefixtures("hardware")
def test_the_figures_are_kept_for_the_next_run(tmp_path: Path) -> None:
    network = Recorder()
    first = fastest(network, workload(), CPU, tmp_path)
    network.calls.clear()
    assert fastest(network, workload(), CPU, tmp_path) == first
    assert not network.calls
    for other in (workload(training=False), workload(size=64)):
        fastest(network, other, CPU, tmp_path)
        assert network.calls
        network.calls.clear()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        fastest(network, workload(), CPU, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert network.calls


@pytest.mark.usefixtures("hardware")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"images_per_second": {}}'])
def test_damaged_figures_are_measured_again(tmp_path: Path, content: str) -> None:
    network = Recorder()
    fastest(network, workload(), CPU, tmp_path)
    (path,) = (tmp_path / "precision").glob("*.json")
    path.write_text(content, "utf-8")
    network.calls.clear()
    fastest(network, workload(), CPU, tmp_path)
    assert network.calls
    assert len(json.loads(path.read_text("utf-8"))["images_per_second"]) == 4


@pytest.mark.usefixtures("hardware")
def test_a_cache_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    """Nor is anything timed twice in a process."""
    (tmp_path / "file").touch()
    network = Recorder()
    first = fastest(network, workload(), CPU, tmp_path / "file")
    network.calls.clear()
    assert fastest(network, workload(), CPU, tmp_path / "file") == first
    assert not network.calls


@pytest.mark.usefixtures("hardware")
def test_a_format_that_fails_is_not_chosen(tmp_path: Path) -> None:
    chosen, why = fastest(Recorder(fails=USUAL), workload(), CPU, tmp_path)
    assert chosen != USUAL and "bfloat16 channels_last 0," in why


@pytest.mark.usefixtures("hardware")
def test_where_all_fail_the_usual_stays_and_nothing_is_kept(tmp_path: Path) -> None:
    class Broken(Recorder):
        def __deepcopy__(self, memo: Any) -> "Recorder":
            raise RuntimeError("no copy")

    assert fastest(Broken(), workload(), CPU, tmp_path)[0] == USUAL
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (("float32", "auto"), ("float32", "channels_last")),
        (("bfloat16", "auto"), ("bfloat16", "channels_last")),
        (("float32", "contiguous"), ("float32", "contiguous")),
    ],
)
def test_a_given_precision_is_taken_untimed(
    tmp_path: Path, given: tuple[str, str], wanted: tuple[str, str]
) -> None:
    network = Recorder()
    names = dict(zip(Formats._fields, given, strict=True))
    assert fastest(network, workload(), CPU, tmp_path, **names) == (wanted, "")
    assert not network.calls and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("hardware")
def test_a_given_memory_format_leaves_the_number_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Recorder()
    clock(monkeypatch, network, dict(zip(ALL, (0.1, 1.0, 1.0, 0.5), strict=True)))
    chosen, why = fastest(network, workload(), CPU, tmp_path, memory_format="contiguous")
    assert chosen == ALL[3] and "channels_last" not in why


def test_bfloat16_is_not_tried_where_the_hardware_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes_bfloat16", lambda _: False)
    network = Recorder()
    fastest(network, workload(), CPU, tmp_path)
    assert {call[0] for call in network.calls} == {ALL[1], ALL[3]}


def test_apples_devices_compute_in_float32(tmp_path: Path) -> None:
    chosen = fastest(Recorder(), workload(), torch.device("mps"), tmp_path)
    assert chosen == (("float32", "channels_last"), "")


def test_large_images_are_timed_in_smaller_batches() -> None:
    assert [images_of_a_step(size, "cpu") for size in (32, 64, 96, 128, 224)] == [16, 16, 7, 4, 4]
    assert [images_of_a_step(size, "cuda") for size in (32, 64, 128, 224)] == [512, 512, 128, 128]


def chosen_by_rank(cache: Path) -> list[str]:
    """On the first process bfloat16 is by far the fastest, on the others float32."""
    from mixco.runtime.distributed import rank

    best = ALL[2 + rank()]
    precision.computes_bfloat16 = lambda _: True  # type: ignore[attr-defined]
    fast, slow = Rates(10.0, 10.0), Rates(1.0, 1.0)
    precision._rates = lambda *_: {" ".join(f): fast if f == best else slow for f in formats(CPU)}
    return [*fastest(Recorder(), workload(), CPU, cache)[0]]


@pytest.mark.ddp
def test_the_first_of_several_processes_decides_for_all(tmp_path: Path) -> None:
    assert in_processes(2, chosen_by_rank, tmp_path) == [[*ALL[2]]] * 2
