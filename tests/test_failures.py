"""When the machine fails: real limits and real disks, each told in a sentence, nothing lost."""

import ctypes
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from configs import config_of, pretrain_config
from forked import Python
from run_folders import ARCH, random_run
from run_states import assert_equal, final_state
from sample_images import unpack_sample
from torch import Tensor, nn

from mixco.data.datasets import list_images
from mixco.data.packing import pack
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.evaluation.classifier import Classifier, save_classifier
from mixco.evaluation.protocols import evaluate_knn
from mixco.methods import METHODS, simclr
from mixco.models.encoder import build_backbone
from mixco.plots.charts import draw_curves
from mixco.runtime.errors import UserError, explain_machine_failures
from mixco.runtime.run_folder import (
    add_result,
    append_metrics,
    read_metrics,
    write_json,
    write_metrics,
)
from mixco.runtime.setting import option
from mixco.settings.commands import KNNConfig
from mixco.settings.config import PretrainConfig
from mixco.training.checkpoints import checkpoints
from mixco.training.pretrain import pretrain
from mixco.training.run import Run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts are Linux's")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


def settings(photos: Path, out: Path) -> dict[str, Any]:
    return {
        "data": str(photos),
        "out": out,
        "cache": photos.parent / "cache",
        "size": 32,
        "arch": ARCH,
        "stem": "standard",
        "epochs": 2,
        "batch_size": 16,
        "device": "cpu",
        "precision": "float32",
        "checkpoint_steps": 1,
    }


def config(photos: Path, out: Path, **changed: Any) -> PretrainConfig:
    return pretrain_config(**{**settings(photos, out), **changed})


def options(photos: Path, out: Path) -> list[str]:
    """What `config` says, for the command line."""
    named = settings(photos, out).items()
    return ["pretrain", *(word for name, value in named for word in (option(name), str(value)))]


# A disk without room.


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets the longest file that this process may write: the disk's own errors, without filling it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


RECORD = {"epoch": 1, "loss": 1.0, "clean": 1.0, "text": "x" * 3000}


def write_board(folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / "tensorboard"))
    for epoch in range(200):
        board.add_scalar("loss", 1.0, epoch)
    board.flush()


def note_unreadable(folder: Path) -> None:
    """As a run notes an image that it could not read."""
    source = SimpleNamespace(root=folder)
    run = SimpleNamespace(
        folder=folder, setup=SimpleNamespace(images=SimpleNamespace(source=source))
    )
    Run.on_unreadable(cast(Run, run), "x" * 3000, "it is damaged")


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config and versions": ("config.json", lambda f: write_json(f / "config.json", RECORD)),
    "metrics": ("metrics.jsonl", lambda f: append_metrics(f, RECORD)),
    "all metrics": ("metrics.jsonl", lambda f: write_metrics(f, [RECORD])),
    "results": ("results.json", lambda f: add_result(f, "knn", RECORD)),
    "tensorboard": ("a file of the run", write_board),
    "pictures": ("curves.png", lambda f: draw_curves(f / "curves.png", {"run": [RECORD]})),
    "the list of what was left out": (
        "unreadable.txt",
        note_unreadable,
    ),
    "the encoder": (
        "encoder.safetensors",
        lambda f: save_encoder(
            f / "encoder.safetensors",
            build_backbone(ARCH, 32, "standard"),
            EncoderDescription(ARCH, "standard", 32, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), "none"),
        ),
    ),
    "a classifier": (
        "classifier.safetensors",
        lambda f: save_classifier(
            f / "classifier.safetensors", Classifier(nn.Flatten(), 4000, 2), ("a", "b"), whole=False
        ),
    ),
}


@pytest.mark.parametrize("what", WRITERS)
def test_whatever_cannot_be_written_is_named(
    tmp_path: Path,
    file_limit: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    """And what stood there before still does, and nothing half written beside it."""
    name, write = WRITERS[what]
    path = tmp_path / name
    if path.suffix == ".json":
        path.write_text('{"before": {}}\n')
    before = path.read_bytes() if path.exists() else b""
    file_limit(2000)
    sentence = rf"{name}.*File too large"
    with pytest.raises(UserError, match=sentence), explain_machine_failures("lower --size"):
        write(tmp_path)
    file_limit(resource.RLIM_INFINITY)
    assert (path.read_bytes() if path.exists() else b"")[: len(before)] == before
    assert not [p.name for p in tmp_path.iterdir() if p.name.endswith(name) and p != path]
    assert "Traceback" not in capsys.readouterr().err


def test_packing_that_fills_the_disk_leaves_nothing(
    photos: Path, tmp_path: Path, file_limit: Callable[[int], None]
) -> None:
    source = list_images(str(photos), None, "pretrain")
    file_limit(100_000)
    with pytest.raises(UserError, match=r"File too large.*--cache"):
        pack(source, size=32, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


ROOM_MADE = """
import subprocess, sys
from mixco import cli
try:
    cli.main(sys.argv[2:])
except SystemExit as left:
    assert left.code == 2
    subprocess.run(["mount", "-o", "remount,size=1g", sys.argv[1]], check=True)
    cli.main(sys.argv[2:])
"""


def test_a_full_disk_ends_a_run_in_a_sentence_and_it_goes_on(photos: Path, tmp_path: Path) -> None:
    """A small disk of its own, really full; with more room the same command ends as if never stopped."""
    whole = pretrain(config(photos, tmp_path / "whole"))
    size = checkpoints(whole)[-1].stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    # Two checkpoints have room, and a third is written before the first goes.
    mount = f"mount -t tmpfs -o size={2 * size + size // 2} tmpfs {disk}"
    command = [sys.executable, "-c", ROOM_MADE, str(disk), *options(photos, disk / "run")]
    done = subprocess.run(
        [
            *("unshare", "--mount", "--map-root-user", "sh", "-c"),
            *(f'{mount} && "$@" && cp -r {disk}/run {tmp_path}/copy', "sh", *command),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert "going on after step" in done.stderr
    assert_equal(final_state(tmp_path / "copy"), final_state(whole))


# Folders that may not be written or read.

FORBIDDEN = """
import json, sys
from mixco import cli
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
        print("RC 0", file=sys.stderr)
    except SystemExit as left:
        print(f"RC {left.code}", file=sys.stderr)
"""


def without_roots_rights() -> None:
    """Root may read and write everything; without two capabilities permissions hold for it too."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP: of what is started next
                os._exit(77)


def test_folders_that_are_forbidden_are_named(photos: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", photos)
    (run / "results.json").write_text('{"knn": {"top1": 1.0}}\n')
    begun = pretrain(config(photos, tmp_path / "begun"))
    (begun / "encoder.safetensors").unlink()
    private = unpack_sample(tmp_path / "private", train=4, test=1, classes=2)
    forbidden = {
        run: 0o555,
        begun: 0o555,
        tmp_path / "parent": 0o555,
        tmp_path / "cache": 0o555,
        private / "train" / "Forest": 0o000,
    }
    before = {p: p.read_bytes() for f in (run, begun) for p in f.rglob("*") if p.is_file()}
    for folder, mode in forbidden.items():
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    cache = ["--cache", str(photos.parent / "cache")]
    commands = {
        "run: cannot be written": ["knn", "--run", str(run), *cache],
        "begun/versions.json: cannot be written": options(photos, begun),
        "parent/new: cannot be made": options(photos, tmp_path / "parent" / "new"),
        "Forest: cannot be listed": options(private, tmp_path / "new"),
        "safetensors: cannot be written": [
            *options(photos, tmp_path / "other"),
            *("--cache", str(tmp_path / "cache"), "--loading", "packed"),
        ],
    }
    done = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, json.dumps(list(commands.values()))],
        preexec_fn=without_roots_rights,
        capture_output=True,
        text=True,
        timeout=600,
    )
    for folder in forbidden:
        folder.chmod(0o755)
    if done.returncode == 77:
        pytest.skip("root cannot give up its rights here")
    ends = [part.strip() for part in done.stderr.split("RC 2") if part.strip()]
    assert "Traceback" not in done.stderr
    assert len(ends) == len(commands) and "RC 0" not in done.stderr, done.stderr
    for sentence, said in zip(commands, ends, strict=True):
        assert sentence in said.splitlines()[-1], said
    assert before == {p: p.read_bytes() for f in (run, begun) for p in f.rglob("*") if p.is_file()}
    assert not (tmp_path / "new").exists() and not (tmp_path / "other").exists()


# Memory.


def limit_memory(mebibytes: int) -> None:
    """So much more than this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize(
    "by, mebibytes",
    [("queue", 1024), ("batch", 1024), ("evaluation", 1024), ("evaluation", 100)],
)
def test_memory_that_does_not_suffice_is_told_with_what_to_lower(
    photos: Path, tmp_path: Path, by: str, mebibytes: int
) -> None:
    # In a process of its own: a library that gets no memory may end the whole process.
    run = random_run(tmp_path / "run", photos)
    new = options(photos, tmp_path / "new")
    large = ["--arch", "resnet18", "--size", "64"]
    commands = {
        "queue": [*new, "--method", "moco", "--queue", "2000000000"],
        "batch": [*new, "--data", "sample", "--batch-size", "1600", *large],
        "evaluation": [
            *("finetune", "--run", str(run), "--cache", f"{photos.parent}/cache"),
            *("--size", "2048", "--device", "cpu"),
        ],
    }
    done = Python("-m", "mixco", *commands[by], before=partial(limit_memory, mebibytes)).wait()
    assert done.returncode == 2, done.stderr
    end = done.stderr.splitlines()[-1]
    assert "memory" in end and "lower --batch-size" in end, end
    assert ("raise --micro-batches" in end) == (by != "evaluation")
    if by == "queue":
        assert not (tmp_path / "new").exists(), "what cannot be built leaves no run folder"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_that_does_not_suffice_is_told() -> None:
    with (
        pytest.raises(UserError, match=r"memory.*lower --x"),
        explain_machine_failures("lower --x"),
    ):
        torch.empty(2**42, device="cuda")


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("a defect"), FileNotFoundError("none"), KeyError("x")):
        with pytest.raises(type(error)), explain_machine_failures("lower --x"):
            raise error


# Numbers.


overflow_in: list[int] = []
"""The step whose gradient overflows."""


def build_overflowing(*arguments: Any, **options: Any) -> nn.Module:
    """SimCLR, the gradient of whose first weights is infinite in one step."""
    method = simclr.build(*arguments, **options)
    steps = count()

    def overflow(gradient: Tensor) -> Tensor:
        return gradient * float("inf") if next(steps) == overflow_in[0] else gradient

    next(method.encoder.parameters()).register_hook(overflow)
    return method


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_told_and_never_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the first step, at the end of an epoch, and in the last step of all."""
    run = config(photos, tmp_path / "run", method="simclr")
    overflow_in[:] = [step]
    with monkeypatch.context() as patch:
        entry = METHODS["simclr"]._replace(build=f"{__name__}:build_overflowing")
        patch.setitem(METHODS, "simclr", entry)
        with pytest.raises(UserError, match=r"(loss is|weights are|features of .* are) not finite"):
            pretrain(run)
    for path in checkpoints(tmp_path / "run"):
        state = torch.load(path, weights_only=True)
        assert state["step"] <= step
        assert all(value.isfinite().all() for value in state["method"].values())
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    assert len(read_metrics(pretrain(run))) == 2, "goes on from the last good one"


# Checkpoints of something else, and those that cannot be read.


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(
    photos: Path, tmp_path: Path
) -> None:
    run = pretrain(config(photos, tmp_path / "run"))
    (run / "results.json").unlink()
    newest = checkpoints(run)[-1]
    newest.chmod(0o000)
    command = [sys.executable, "-c", FORBIDDEN, json.dumps([options(photos, run)])]
    done = subprocess.run(
        command, preexec_fn=without_roots_rights, capture_output=True, text=True, timeout=600
    )
    if done.returncode == 77:
        pytest.skip("root cannot give up its rights here")
    end = f"{newest}: cannot be written or read (Permission denied)"
    assert end in done.stderr and "RC 2" in done.stderr, done.stderr
    assert newest.exists()


def test_a_checkpoint_of_another_network_is_told(photos: Path, tmp_path: Path) -> None:
    run = pretrain(config(photos, tmp_path / "run"))
    (run / "results.json").unlink()
    newest = checkpoints(run)[-1]
    state = torch.load(newest, weights_only=True)
    state["method"].popitem()
    torch.save(state, newest)
    with pytest.raises(
        UserError, match=r"after step 6 does not fit this run's network .* remove it"
    ):
        pretrain(config(photos, run))
    torch.save({"state_dict": {}}, newest)
    assert pretrain(config(photos, run)) == run, "the one before it is taken"
    assert newest.with_suffix(".damaged").exists()


def test_features_of_packed_images_tell_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = unpack_sample(tmp_path / "photos", train=60, test=2, classes=2)
    sorted((own / "train" / "Forest").iterdir())[3].write_bytes(b"")
    run = random_run(tmp_path / "run", own)
    knn = config_of(KNNConfig, run=run, cache=tmp_path / "cache")
    assert evaluate_knn(knn)["train_images"] == 119
    assert "cannot be read (the file is empty); left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="--k must be at least 1"):
        evaluate_knn(dataclasses.replace(knn, k=0))
