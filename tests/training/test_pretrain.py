"""The run: what it leaves behind, that one seed is one run, and that it stops where it must."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import pretrain_config, small_head
from safetensors.torch import load_file
from sample_images import unpack_sample

from mixco.encoders.loading import load_encoder
from mixco.methods import METHODS, moco
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json, read_metrics
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import from_dict
from mixco.training.checkpoints import checkpoints
from mixco.training.pretrain import pretrain


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


def config(photos: Path, out: Path, **settings: Any) -> PretrainConfig:
    usual: dict[str, Any] = {
        "size": 32,
        "stem": "conv3s2",  # a quarter of the cost of the usual one at 32 px
        "queue": 20,
        "epochs": 2,
        "batch_size": 16,
        "knn_every": 1,
    }
    places = {"data": str(photos), "cache": out.parent / "cache", "out": out}
    return pretrain_config(**{**usual, **places, **settings})


SMALL = {"arch": "test_resnet", "stem": "standard"}  # where any encoder will do

progress: list[float] = []


def build_recording(*arguments: Any, **options: Any) -> torch.nn.Module:
    """MoCo that records what `after_step` is called with."""
    method = moco.build(*arguments, **options)
    object.__setattr__(method, "after_step", progress.append)
    return method


def test_a_method_hears_how_much_of_the_run_is_done(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = METHODS["moco"]._replace(build=f"{__name__}:build_recording")
    monkeypatch.setitem(METHODS, "moco", entry)
    progress.clear()
    asked = config(photos, tmp_path / "run", method="moco", **SMALL)
    pretrain(asked, stop_after=4)
    pretrain(asked)
    assert progress == [step / 6 for step in range(1, 7)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder.safetensors")


@pytest.mark.parametrize(
    ("method", "mix"),
    [
        ("moco", "none"),
        ("moco", "mixco"),
        ("simclr", "mixco"),
        ("simsiam", "none"),
        ("byol", "myol"),
    ],
)
def test_one_seed_is_one_run(photos: Path, tmp_path: Path, method: str, mix: str) -> None:
    small = {**SMALL, **small_head(method)}
    a, b, other = (
        pretrain(config(photos, tmp_path / name, method=method, mix=mix, seed=seed, **small))
        for name, seed in (("a", 3), ("b", 3), ("other", 4))
    )
    assert all(torch.equal(weights(a)[k], v) for k, v in weights(b).items())
    assert not all(torch.equal(weights(a)[k], v) for k, v in weights(other).items())
    timed = {"images_per_second", "data_wait"}
    stripped = [
        [{k: v for k, v in record.items() if k not in timed} for record in read_metrics(run)]
        for run in (a, b)
    ]
    assert stripped[0] == stripped[1]


def test_what_a_run_leaves_behind(photos: Path, tmp_path: Path) -> None:
    asked = config(photos, tmp_path / "run", method="moco")
    run = pretrain(asked)
    assert {p.name for p in run.iterdir() if not p.name.endswith(".lock")} == {
        *("config.json", "versions.json", "metrics.jsonl", "results.json", "encoder.safetensors"),
        *("checkpoints", "tensorboard", "views.png", "curves.png", "images.json", "images.txt.gz"),
    }
    resolved = from_dict(PretrainConfig, read_json(run / "config.json"), "config.json")
    assert resolved.optimisation.lr == 2.5e-4, "resolved, not as asked"
    assert resolved.method.augmentation == "moco-v2"
    records = read_metrics(run)
    assert [r["epoch"] for r in records] == [1, 2]
    assert {"loss", "clean", "mixed", "lr", "knn", "images_per_second"} <= records[0].keys()
    assert all(0 < r["data_wait"] < 1 for r in records)
    result = read_json(run / "results.json")["pretrain"]
    assert (result["method"], result["images"], result["epochs"]) == ("moco+mixco", 48, 2)
    assert list((run / "tensorboard").glob("events.*"))

    state = torch.load(checkpoints(run)[-1], weights_only=True)
    assert state["step"] == 6
    assert state["method"]["queue.keys"].shape == (20, 128)
    assert state["method"]["queue.pointer"] == 2 * 48 % 20
    encoder = load_encoder(run)
    assert all(torch.equal(encoder.backbone.state_dict()[k], v) for k, v in weights(run).items())


@pytest.mark.parametrize("checkpoint_steps", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(
    photos: Path, tmp_path: Path, checkpoint_steps: int
) -> None:
    """A learning rate out of all proportion: the weights overflow after the first step."""
    out = tmp_path / "run"
    asked = config(
        photos,
        out,
        optimizer="sgd",
        lr=1e30,
        warmup=0.0,
        epochs=4,
        precision="float32",
        checkpoint_steps=checkpoint_steps,
    )
    numbers = r"not finite at step \d+ \(learning rate .*temperature 0\.2.*Lower --lr"
    with pytest.raises(UserError, match=numbers):
        pretrain(asked)
    state = torch.load(checkpoints(out)[-1], weights_only=True)
    assert all(v.isfinite().all() for v in state["method"].values()), "the last good one stays"
    assert not (out / "encoder.safetensors").exists(), "nothing that would pass for a result"


def test_a_size_above_all_images_is_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(config(photos, tmp_path / "run", epochs=1, size=80, **SMALL))
    said = capsys.readouterr().err
    assert "--size 80" in said
    assert "--size 64" in said, "the remedy"


def test_a_run_is_never_overwritten(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.* new one"):
        pretrain(config(photos, out))
    assert [p.name for p in out.iterdir()] == ["precious.txt"]


def test_held_out_images_are_left_out_when_asked(photos: Path, tmp_path: Path) -> None:
    run = pretrain(config(photos, tmp_path / "run", holdout=0.25, exclude_holdout=True, **SMALL))
    assert read_json(run / "results.json")["pretrain"]["images"] == 36


def test_without_labels_there_is_no_knn(photos: Path, tmp_path: Path) -> None:
    run = pretrain(config(photos / "train", tmp_path / "run", **SMALL))
    assert not any("knn" in record for record in read_metrics(run))


def test_unreadable_images_are_listed_in_the_run(tmp_path: Path) -> None:
    folder = unpack_sample(tmp_path / "photos", train=101, test=1, classes=1)
    next((folder / "train").rglob("*.jpg")).write_bytes(b"<html>")
    run = pretrain(config(folder / "train", tmp_path / "run", epochs=1, **SMALL))
    lines = (run / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("not an image (an HTML page)")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_the_loss_falls(photos: Path, tmp_path: Path, optimizer: str, schedule: str) -> None:
    """With each optimiser and schedule: 24 steps on 48 images are enough to see it.

    Single epochs of three steps are noisy, for each draws its own views and lambdas.
    """
    asked = config(
        photos,
        tmp_path / "run",
        method="simclr",
        jitter=0.0,
        knn_every=0,
        optimizer=optimizer,
        schedule=schedule,
        epochs=8,
        **SMALL,
    )
    losses = [record["loss"] for record in read_metrics(pretrain(asked))]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.2


def test_the_rate_of_each_epoch_is_the_schedules(photos: Path, tmp_path: Path) -> None:
    asked = config(
        photos,
        tmp_path / "run",
        schedule="steps",
        milestones=(0.5,),
        warmup=0.0,
        lr=0.01,
        knn_every=0,
        **SMALL,
    )
    assert [r["lr"] for r in read_metrics(pretrain(asked))] == pytest.approx([0.01, 0.001])


def test_a_recipe_is_run_as_it_stands(photos: Path, tmp_path: Path) -> None:
    """The config in the run folder is a recipe of the same run."""
    first = pretrain(config(photos, tmp_path / "a", **SMALL))
    again = from_dict(PretrainConfig, json.loads((first / "config.json").read_text()), "x")
    second = pretrain(
        dataclasses.replace(again, run=dataclasses.replace(again.run, out=tmp_path / "b"))
    )
    assert all(torch.equal(weights(first)[k], v) for k, v in weights(second).items())
