"""Runs of several processes as users start them: torchrun, kills, hangs, another number of processes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from forked import mixco_command, python
from run_states import assert_equal, final_state
from sample_images import unpack_sample

from mixco.cli import read
from mixco.runtime.run_folder import read_json, read_metrics
from mixco.settings.config import PretrainConfig
from mixco.training.checkpoints import checkpoints
from mixco.training.pretrain import pretrain

# Each test may wait for several processes that start on a busy machine.
pytestmark = [pytest.mark.ddp, pytest.mark.slow, pytest.mark.timeout(1800)]

DEADLINE = 600.0  # seconds
EPOCHS = 12  # of three steps

STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def none_stays() -> Iterator[None]:
    """A test that fails half-way leaves no processes to the tests after it."""
    yield
    while STARTED:
        killed(STARTED.pop())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


def options(photos: Path, out: Path, epochs: int = EPOCHS) -> list[str]:
    places = ("--data", str(photos), "--out", str(out), "--cache", str(photos.parent / "cache"))
    small = f"--arch test_resnet --size 32 --epochs {epochs} --batch-size 16 --queue 20"
    # Given, since processes with another number of threads may find another one faster.
    method = "--method moco --mix mixco --device cpu --precision float32 --knn-every 6"
    return ["pretrain", *places, *small.split(), *method.split()]


def started(
    photos: Path,
    out: Path,
    processes: int,
    *more: str,
    restarts: int = 0,
    epochs: int = EPOCHS,
) -> subprocess.Popen[str]:
    launcher = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "mixco"),
            *(*options(photos, out, epochs), *more),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def ended(process: subprocess.Popen[str], seconds: float = DEADLINE) -> tuple[int, str]:
    """The exit code and all that was said; whatever happens, none of its processes stays."""
    try:
        text, _ = process.communicate(timeout=seconds)
        return process.returncode, text
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"still there after {seconds:g} s: {error.output!r}") from None
    finally:
        killed(process)


def killed(process: subprocess.Popen[str]) -> None:
    """Neither torchrun nor one that it started stays; each of them is in a session of its own."""
    for pid in workers(process):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    with process:  # closes what it wrote to, and waits for it
        process.kill()


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Those that torchrun has started, the first one first."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for torchrun to ask how it went."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def when(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return when the condition holds; fail when the process ends before, or much time has gone by."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(ended(process, seconds=1))


def saved(out: Path, step: int) -> bool:
    found = checkpoints(out) if (out / "checkpoints").is_dir() else []
    return bool(found) and int(found[-1].stem.split("-")[1]) >= step


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    code, text = ended(started(photos, out, 2))
    assert code == 0, text
    assert "2 processes, each cpu" in text
    assert len(re.findall(rf"epoch +1/{EPOCHS} ", text)) == 1  # one speaks for both
    return out


def test_a_run_of_two_processes_is_one_run(unbroken: Path, photos: Path, tmp_path: Path) -> None:
    done = mixco_command(*options(photos, tmp_path / "alone"))
    assert done.returncode == 0, done.stderr
    together, alone = (read_metrics(run) for run in (unbroken, tmp_path / "alone"))
    assert [record.keys() for record in together] == [record.keys() for record in alone]
    # The norms' parts hold other images, so the losses are near, not equal.
    assert len(together) == EPOCHS
    for ours, theirs in zip(together[:3], alone[:3], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
    assert (unbroken / "encoder.safetensors").exists()
    assert read_json(unbroken / "results.json")["pretrain"]["images"] == 48


def test_a_killed_worker_brings_the_group_back(
    unbroken: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = started(photos, out, 2, "--checkpoint-steps", "1", restarts=2)
    when(lambda: saved(out, 4), process)
    os.kill(workers(process)[1], signal.SIGKILL)
    code, text = ended(process)
    assert code == 0, text
    assert "going on after step" in text
    assert_equal(final_state(out), final_state(unbroken))


def test_going_on_with_another_number_of_processes(
    unbroken: Path, photos: Path, tmp_path: Path
) -> None:
    """One process leaves the run in the middle of an epoch, and three go on."""
    out = tmp_path / "run"
    _, *arguments = options(photos, out)
    pretrain(read("pretrain", PretrainConfig, arguments), stop_after=5)
    code, text = ended(started(photos, out, 3))
    assert code == 0, text
    assert "going on after step 5" in text
    now, before = final_state(out), final_state(unbroken)
    assert now["step"] == before["step"]
    assert torch.equal(now["method"]["queue.pointer"], before["method"]["queue.pointer"])
    assert len(now["records"]) == EPOCHS
    for mine, theirs in zip(now["records"][:3], before["records"][:3], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.1)


def test_sigterm_to_one_process_saves_and_ends_all(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(photos, out, 2, "--checkpoint-steps", "1", epochs=2000)
    when(lambda: saved(out, 1), process)  # all processes are in the steps
    os.kill(workers(process)[1], signal.SIGTERM)
    code, text = ended(process)
    assert code != 0
    step = int(checkpoints(out)[-1].stem.split("-")[1])
    assert f"stopped after step {step:,}" in text


def test_a_process_that_hangs_ends_the_run_with_the_reason(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # Long enough for a busy machine: only the process that is stopped may seem to hang.
    settings = ("--timeout-minutes", "0.5", "--checkpoint-steps", "1")
    process = started(photos, out, 2, *settings, epochs=2000)
    when(lambda: saved(out, 1), process)
    first, hanging = workers(process)
    os.kill(hanging, signal.SIGSTOP)
    when(lambda: has_ended(first), process)
    with suppress(ProcessLookupError):
        os.kill(hanging, signal.SIGKILL)  # torchrun would wait for half a minute
    code, text = ended(process)
    assert code != 0
    # Either process may be the one to say it.
    assert re.search(r"process [01] of 2 has lost another one.* 0\.5 minutes", text), text
    assert "--timeout-minutes" in text


def test_a_mistake_ends_all_processes_with_its_sentence(photos: Path, tmp_path: Path) -> None:
    code, text = ended(started(photos, tmp_path / "run", 2, "--bn-over", "all"))
    assert code != 0
    assert "--bn-over all" in text
    assert "--bn-splits 1" in text, "the remedy"
    assert "mixco/training" not in text  # torchrun's own account has a traceback, ours has none


def test_evaluation_is_shared_out(unbroken: Path, photos: Path) -> None:
    """Two processes find what one finds, and say and write it once."""
    results = []
    for launcher in ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")):
        # Not --run: torchrun takes it for an abbreviation of its own --run-path.
        encoder = ("--checkpoint", unbroken / "encoder.safetensors", "--data", photos)
        where = ("--out", unbroken, "--cache", photos.parent / "cache", "--precision", "float32")
        done = python(*launcher, "-m", "mixco", "knn", *encoder, *where)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("kNN: top-1") == 1
        results.append(read_json(unbroken / "results.json").popitem()[1])
    assert results[0] == results[1]
