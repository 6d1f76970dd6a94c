"""Unset settings are chosen when a run starts, told, and kept when it is resumed."""

from pathlib import Path

import pytest
from configs import pretrain_config
from PIL import Image
from sample_images import unpack_sample

from mixco.encoders.loading import load_encoder
from mixco.runtime.run_folder import read_json
from mixco.settings.config import PretrainConfig
from mixco.training.pretrain import pretrain


def small(photos: Path, out: Path, **settings: object) -> PretrainConfig:
    usual: dict[str, object] = {
        "arch": "test_resnet",
        "stem": "standard",
        "method": "moco",
        "epochs": 1,
        "knn_every": 0,
        "workers": 1,
    }
    places = {"data": str(photos), "cache": photos.parent / "cache", "out": out}
    return pretrain_config(**{**usual, **places, **settings})


def test_what_is_not_given_is_chosen_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=16, test=2, classes=3)
    out = tmp_path / "run"
    pretrain(small(photos, out))
    said = capsys.readouterr().err
    config = read_json(out / "config.json")
    assert config["data"]["size"] == 64
    assert config["optimisation"]["batch_size"] == 32
    assert config["method"]["queue"] == 8
    for choice in ("--size 64:", "--batch-size 32:", "--queue 8:", "--lr 0.000354:"):
        assert choice in said
    assert "warning: 48 images" in said
    assert "--epochs 1:" not in said, "it was given"
    # The sample's own, of its 1,600: these are 48 of them.
    mean, std = config["data"]["mean"], config["data"]["std"]
    assert mean == pytest.approx([0.338, 0.377, 0.404], abs=0.1)
    encoder = load_encoder(out).description
    assert (list(encoder.mean), list(encoder.std)) == (mean, std)

    # Unfinished again, and the images have changed beneath: what was chosen stays.
    (out / "results.json").unlink()
    for path in (photos / "train").rglob("*.jpg"):
        Image.open(path).resize((32, 32)).point(lambda v: v // 2).save(path)
    pretrain(small(photos, out))
    assert read_json(out / "config.json") == config
    said = capsys.readouterr().err
    assert "--size 64:" not in said
    assert "changed" not in said


def test_what_is_given_goes_first(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=8, test=2, classes=2)
    run = pretrain(
        small(
            photos,
            tmp_path / "run",
            size=32,
            batch_size=8,
            lr=0.01,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
        )
    )
    config = read_json(run / "config.json")
    assert (config["data"]["size"], config["data"]["mean"]) == (32, [0.5, 0.5, 0.5])
    assert (config["optimisation"]["batch_size"], config["optimisation"]["lr"]) == (8, 0.01)
    assert load_encoder(run).description.std == (0.25, 0.25, 0.25)
