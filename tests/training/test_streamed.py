"""Pretraining and evaluating with streamed images, as commands do it."""

import json
from pathlib import Path

import torch
from configs import config_of, pretrain_config
from safetensors.torch import load_file
from sample_images import unpack_sample

from mixco.evaluation.protocols import evaluate_knn
from mixco.settings.commands import KNNConfig
from mixco.settings.config import PretrainConfig
from mixco.training.pretrain import pretrain


def streamed(photos: Path, out: Path, workers: int, **settings: object) -> PretrainConfig:
    places = {"data": str(photos), "cache": out.parent / "cache", "out": out}
    return pretrain_config(
        size=32,
        arch="test_resnet",
        method="moco",
        epochs=1,
        batch_size=20,
        precision="float32",
        loading="streamed",
        workers=workers,
        holdout=0.2,
        **places,
        **settings,
    )


def test_two_streamed_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    """With two workers twice; so they are with none."""
    photos = unpack_sample(tmp_path / "photos", train=20, test=2, classes=2)
    runs = [
        pretrain(streamed(photos, tmp_path / f"run-{number}", workers))
        for number, workers in enumerate((2, 2, 0))
    ]
    first, *others = (load_file(run / "encoder.safetensors") for run in runs)
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)
    records = [json.loads((run / "metrics.jsonl").read_text()) for run in runs]
    assert records[0]["knn"] == records[1]["knn"] == records[2]["knn"]
    config = json.loads((runs[0] / "config.json").read_text())
    assert config["data"]["loading"] == "streamed"


def test_a_streamed_run_lists_what_it_left_out_and_is_evaluated(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=60, test=4, classes=2)
    broken = sorted((photos / "train" / "Forest").iterdir())[7]
    broken.write_text("<html>")
    out = pretrain(streamed(photos, tmp_path / "run", 0, knn_every=1))
    assert (
        out / "unreadable.txt"
    ).read_text() == f"Forest/{broken.name}\tnot an image (an HTML page)\n"
    assert (out / "views.png").stat().st_size > 10_000

    common = {"run": out, "cache": tmp_path / "cache"}
    result = evaluate_knn(config_of(KNNConfig, loading="streamed", workers=0, **common))
    assert (result["train_images"], result["test_images"]) == (119, 8)
    assert (out / "neighbours.png").stat().st_size > 10_000
    other = evaluate_knn(config_of(KNNConfig, loading="packed", **common))
    assert (other["train_images"], other["test_images"]) == (119, 8)
