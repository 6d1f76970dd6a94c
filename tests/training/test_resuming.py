"""A run that was stopped, at whatever moment, ends as one that never was: bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import pretrain_config, small_head
from forked import Python
from run_states import assert_equal, final_state
from sample_images import unpack_sample
from signalling import acting, send_signal_in

from mixco.cli import main
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.settings.config import PretrainConfig
from mixco.training.checkpoints import checkpoints, save_step, signals_noticed
from mixco.training.pretrain import pretrain

EPOCHS, STEPS_PER_EPOCH = 3, 3


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Of Ctrl-C; where the tests run in the background, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


def config(photos: Path, out: Path, **settings: Any) -> PretrainConfig:
    usual: dict[str, Any] = {
        "method": "moco",
        "arch": "test_resnet",
        "size": 32,
        "epochs": EPOCHS,
        "batch_size": 16,
        "knn_every": 1,
        "loading": "packed",
        "workers": 1,
        # Given, since processes with another number of threads may find another one faster.
        "precision": "float32",
    }
    if settings.get("arch") == "resnet18":  # its steps take long enough to kill the process
        usual["stem"] = "conv3s2"
    if settings.get("method", "moco") == "moco":
        usual["queue"] = 20
    places = {"data": str(photos), "cache": photos.parent / "cache", "out": out}
    heads = small_head(settings.get("method", "moco"))
    return pretrain_config(**{**usual, **heads, **places, **settings})


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run of these settings that was never stopped; each is run once."""
    runs: dict[str, Path] = {}

    def run_of(**settings: Any) -> Path:
        key = str(sorted({"method": "moco", "mix": "mixco", **settings}.items()))
        if key not in runs:
            out = tmp_path_factory.mktemp("whole") / "run"
            runs[key] = pretrain(config(photos, out, **settings))
        return runs[key]

    return run_of


@pytest.mark.parametrize(
    ("method", "mix", "loading"),
    [
        ("moco", "none", "packed"),
        ("simclr", "none", "packed"),
        ("moco", "mixco", "packed"),
        ("simclr", "mixco", "packed"),
        ("moco", "mixco", "streamed"),
        ("simclr", "imix", "packed"),
        ("moco", "unmix", "packed"),
        ("byol", "myol", "packed"),
        ("simsiam", "icutmix", "packed"),
        ("barlow", "mixbt", "packed"),
    ],
)
def test_stopped_after_some_steps(
    whole: Callable[..., Path], photos: Path, tmp_path: Path, method: str, mix: str, loading: str
) -> None:
    settings = {"arch": "test_resnet", "method": method, "mix": mix, "loading": loading}
    stopped = config(photos, tmp_path / "stopped", **settings)
    for steps in (2, 3, 7):  # within an epoch, at the end of one, and in another one
        run = pretrain(stopped, stop_after=steps)
        assert torch.load(checkpoints(run)[-1], weights_only=True)["step"] == steps
        assert not (run / "encoder.safetensors").exists()
    assert pretrain(stopped) == run
    assert_equal(final_state(run), final_state(whole(**settings)))


@pytest.mark.parametrize(
    ("settings", "step", "number"),
    [
        ({"method": "moco", "mix": "mixco"}, 1, signal.SIGTERM),
        ({"method": "moco", "mix": "mixco"}, 1, signal.SIGINT),
        ({"method": "moco", "mix": "mixco"}, 1, signal.SIGHUP),  # the terminal is closed
        # The last step of an epoch: its end is reached first.
        ({"method": "moco", "mix": "none"}, 2, signal.SIGTERM),
        ({"method": "simclr", "mix": "mixco"}, 3, signal.SIGTERM),  # the first of one
        ({"method": "moco", "loading": "streamed"}, 4, signal.SIGTERM),
        ({"method": "simclr", "arch": "mobilenetv3_small_050"}, 4, signal.SIGTERM),  # draws dropout
        ({"method": "moco"}, 8, signal.SIGTERM),  # the last of all: nothing is left to stop
    ],
)
def test_stopped_by_a_signal(
    whole: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    step: int,
    number: int,
) -> None:
    never_stopped = whole(**settings)
    stopped = config(photos, tmp_path / "stopped", **settings)
    send_signal_in(monkeypatch, step, number)
    if step < EPOCHS * STEPS_PER_EPOCH - 1:
        ends = KeyboardInterrupt if number == signal.SIGINT else SystemExit
        with acting(number), pytest.raises(ends) as left:
            pretrain(stopped)
        if number != signal.SIGINT:
            assert left.value.code == 128 + number  # type: ignore[union-attr]
        assert not (tmp_path / "stopped" / "encoder.safetensors").exists()
        state = torch.load(checkpoints(tmp_path / "stopped")[-1], weights_only=True)
        assert state["step"] == step + 1
    run = pretrain(stopped)
    assert_equal(final_state(run), final_state(never_stopped))
    assert (run / "encoder.safetensors").read_bytes() == (
        never_stopped / "encoder.safetensors"
    ).read_bytes()
    assert len(checkpoints(run)) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "put back"


def as_command(photos: Path, out: Path, method: str) -> list[str]:
    """What `config` says, for a process of its own."""
    return [
        *("pretrain", "--data", str(photos), "--out", str(out)),
        *("--method", method, "--size", "32", "--stem", "conv3s2", "--device", "cpu"),
        *("--precision", "float32"),
        *("--epochs", str(EPOCHS), "--batch-size", "16", "--knn-every", "1"),
        *("--cache", str(photos.parent / "cache"), "--loading", "packed", "--workers", "1"),
        *(("--queue", "20") if method == "moco" else ()),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_killed_at_any_moment(
    whole: Callable[..., Path], photos: Path, tmp_path: Path, method: str
) -> None:
    """Real processes, killed again and again before they have done many steps."""
    never_stopped = whole(method=method, arch="resnet18")
    out = tmp_path / "killed"
    command = [*as_command(photos, out, method), "--checkpoint-steps", "1"]
    draw = random.Random(method)
    kills = 0
    for _ in range(30):
        process = Python("-m", "mixco", *command)
        steps = {p.name for p in checkpoints(out)} if out.exists() else set()
        deadline = time.monotonic() + 240
        while process.running() and kills < 3 and time.monotonic() < deadline:
            if out.exists() and {p.name for p in checkpoints(out)} - steps:
                time.sleep(draw.uniform(0, 0.3))
                process.kill()
            time.sleep(0.002)
        done = process.wait()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills >= 2, "the test must have killed"
    assert_equal(final_state(out), final_state(never_stopped))
    assert not list(out.rglob(".*-*.pt")), "half written files are cleared away"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals_noticed() as came:
            signal.raise_signal(number)
            assert came() == 0
            signal.raise_signal(signal.SIGTERM)
            assert came() == signal.SIGTERM
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def interrupted(photos: Path, out: Path, **settings: Any) -> PretrainConfig:
    """The settings of a run that was stopped after five steps, with a checkpoint after each."""
    asked = config(photos, out, checkpoint_steps=1, **settings)
    pretrain(asked, stop_after=5)
    return asked


@pytest.mark.parametrize("harm", ["cut off", "a bit turned", "emptied", "another file"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    whole: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: str,
) -> None:
    settings = interrupted(photos, tmp_path / "run")
    before, newest = checkpoints(tmp_path / "run")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(
        {
            "cut off": newest.read_bytes()[: len(content) // 2],
            "a bit turned": bytes(content),
            "emptied": b"",
            "another file": b"<html>not found</html>",
        }[harm]
    )
    capsys.readouterr()
    run = pretrain(settings)
    said = capsys.readouterr().err
    assert f"{newest.with_suffix('.damaged')} is damaged" in said.replace("\n", "")
    assert f"going on after step {int(before.stem.split('-')[1])} of 9" in said
    assert_equal(final_state(run), final_state(whole()))


def test_when_all_checkpoints_are_damaged_nothing_is_begun_anew(
    photos: Path, tmp_path: Path
) -> None:
    settings = interrupted(photos, tmp_path / "run")
    for path in checkpoints(tmp_path / "run"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        pretrain(settings)


def test_other_settings_are_refused_and_harmless_ones_told(
    whole: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(photos, tmp_path / "run")
    other = config(photos, tmp_path / "run", checkpoint_steps=1, queue=24, temperature=0.5)
    with pytest.raises(UserError, match=r"--queue was 20, is 24.*--temperature was 0.2, is 0.5"):
        pretrain(other)
    harmless = config(photos, tmp_path / "run", checkpoint_steps=0, workers=0)
    capsys.readouterr()
    run = pretrain(harmless)
    said = capsys.readouterr().err
    assert "--workers was 1, is 0" in said
    assert "--checkpoint-steps was 1, is 0" in said
    assert_equal(final_state(run), final_state(whole()))


@pytest.mark.parametrize(("before", "memory"), [("streamed", 2**40), ("packed", 0)])
def test_auto_loading_stays_what_it_was(
    whole: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    memory: int,
) -> None:
    """Also where there is more or less memory than before: other loading would make other crops."""
    pretrain(config(photos, tmp_path / "run", loading=before), stop_after=5)
    monkeypatch.setattr("mixco.training.setup.memory_bytes", lambda: memory)
    run = pretrain(config(photos, tmp_path / "run", loading="auto"))
    assert read_json(run / "config.json")["data"]["loading"] == before
    assert_equal(final_state(run), final_state(whole(loading=before)))


@pytest.mark.parametrize("mix", ["mixco", "none"])
def test_a_run_that_did_not_say_all_of_this_goes_on(
    whole: Callable[..., Path], photos: Path, tmp_path: Path, mix: str
) -> None:
    """Its version had no other law of lambda, and no other loss."""
    stopped = config(photos, tmp_path / "run", mix=mix)
    run = pretrain(stopped, stop_after=2)
    begun = read_json(run / "config.json")
    for name in ("mix_alpha", "mix_loss"):
        del begun["method"][name]
    (run / "config.json").write_text(json.dumps(begun))
    assert_equal(final_state(pretrain(stopped)), final_state(whole(mix=mix)))


def as_of_version_0_1(run: Path) -> None:
    """Give a run folder the config.json that version 0.1 wrote: it said pieces for micro-batches."""
    begun = json.loads((run / "config.json").read_text())
    begun["optimisation"]["pieces"] = begun["optimisation"].pop("micro_batches")
    (run / "config.json").write_text(json.dumps(begun))


def test_a_run_of_version_0_1_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    interrupted(photos, out)
    as_of_version_0_1(out)
    before = {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*as_command(photos, out, "moco"), "--checkpoint-steps", "1"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "mixco 0.1" in said
    assert "another --out" in said
    assert before == {path: path.read_bytes() for path in (out / "checkpoints").iterdir()}


def test_a_finished_run_of_version_0_1_stays_finished(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config(photos, tmp_path / "run", epochs=1)
    run = pretrain(asked)
    as_of_version_0_1(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert pretrain(asked) == run
    said = capsys.readouterr().err
    assert "finished already" in said
    assert "changed" not in said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_config_of_something_else_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text('["mine"]')
    with pytest.raises(UserError, match=r"config\.json.*restore it"):
        pretrain(config(photos, out))
    assert [path.name for path in out.iterdir()] == ["config.json"]


def test_after_an_error_the_run_can_be_tried_again(tmp_path: Path) -> None:
    """Also while the error is still at hand, as in a notebook: the lock went with the call."""
    own = unpack_sample(tmp_path / "photos", train=16, test=2, classes=3)
    pretrain(config(own, tmp_path / "run"))
    for name in ("results.json", "images.json"):  # so that the checkpoint is asked, under the lock
        (tmp_path / "run" / name).unlink()
    image = next((own / "train").rglob("*.jpg"))
    pixels = image.read_bytes()
    image.unlink()
    with pytest.raises(UserError, match="47") as held:
        pretrain(config(own, tmp_path / "run"))
    image.write_bytes(pixels)
    assert pretrain(config(own, tmp_path / "run")) == tmp_path / "run"
    assert held.value is not None


def test_other_images_are_refused(tmp_path: Path) -> None:
    own = unpack_sample(tmp_path / "photos", train=16, test=2, classes=3)
    settings = interrupted(own, tmp_path / "run")
    next((own / "train").rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match=r"48 images of photos/pretrain, now .* 47 .*another --out"):
        pretrain(settings)


def test_a_second_process_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import pathlib, sys, time\nfrom mixco.runtime.locks import locked\n"
            "with locked(pathlib.Path(sys.argv[1])):\n    print(1, flush=True); time.sleep(3600)",
            str(out / ".run.lock"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    (out / "checkpoints").mkdir()
    try:
        with pytest.raises(UserError, match="another process is training there"):
            pretrain(config(photos, out))
    finally:
        holder.kill()
        holder.communicate()
    pretrain(config(photos, out))  # a lock ends with its process


def test_a_finished_run_stays_as_it_is(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain(config(photos, tmp_path / "run"))
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*") if p.is_file()}
    assert pretrain(config(photos, tmp_path / "run")) == run
    assert "finished already" in capsys.readouterr().err
    assert before == {
        p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*") if p.is_file()
    }


def test_some_checkpoints_stay(photos: Path, tmp_path: Path) -> None:
    run = pretrain(config(photos, tmp_path / "run", checkpoint_steps=1, keep_every=2))
    names = [p.name for p in checkpoints(run)]
    assert names == ["step-00000006-kept.pt", "step-00000008.pt", "step-00000009.pt"]


def test_a_run_folder_that_is_gone_is_not_told_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoints: .*gone.* step 7"):
        save_step(tmp_path / "run", 7, {"weight": torch.zeros(3)}, keep=False)


@pytest.mark.timeout(1200)
@pytest.mark.skipif(os.name == "nt", reason="limits of a process are Unix's")
def test_a_checkpoint_that_cannot_be_written_is_told(
    whole: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """A limit on the size of files, as a full disk: the run ends in a sentence, the folder whole."""
    import resource

    out = tmp_path / "run"
    never_stopped = whole(arch="resnet18")
    command = as_command(photos, out, "moco")
    size = checkpoints(never_stopped)[-1].stat().st_size
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    done = Python("-m", "mixco", *command, before=limit).wait()
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    done = Python("-m", "mixco", *command).wait()
    assert done.returncode == 0, done.stderr
    assert_equal(final_state(out), final_state(never_stopped))
