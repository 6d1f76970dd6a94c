"""What is not given: chosen when a run starts, told, kept when it goes on."""

from pathlib import Path

import pytest
from PIL import Image
from sample_images import unpack_sample

from mixco.encoders.checkpoint import load_encoder
from mixco.runtime.run_folder import read_json
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
    RunConfig,
)
from mixco.training.pretrain import pretrain


def small(photos: Path, out: Path, **optimisation: object) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(data=str(photos), cache=photos.parent / "cache", workers=1),
        model=ModelConfig(arch="test_resnet", stem="standard"),
        method=MethodConfig(method="moco"),
        optimisation=OptimisationConfig(epochs=1, **optimisation),  # type: ignore[arg-type]
        run=RunConfig(out=out, device="cpu", knn_every=0),
    )


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
    for line in (
        "--size 64: the median image is 64 x 64",
        "--batch-size 32: there are only 48 images",
        "--queue 8: within a quarter of 48 images",
        "--lr 0.000354: 1e-3 x root of batch / 256 (AdamW)",
        "warning: 48 images are very few",
    ):
        assert line in said
    assert "--epochs" not in said.replace("give --epochs", ""), "it was given"
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
    settings = small(photos, tmp_path / "run", batch_size=8, lr=0.01)
    data = DataConfig(
        data=str(photos),
        size=32,
        cache=tmp_path / "cache",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    run = pretrain(
        PretrainConfig(
            None, data, settings.model, settings.method, settings.optimisation, settings.run
        )
    )
    config = read_json(run / "config.json")
    assert (config["data"]["size"], config["data"]["mean"]) == (32, [0.5, 0.5, 0.5])
    assert (config["optimisation"]["batch_size"], config["optimisation"]["lr"]) == (8, 0.01)
    assert load_encoder(run).description.std == (0.25, 0.25, 0.25)
