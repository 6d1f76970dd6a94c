"""Pretraining and evaluating on images of one and of 13 channels in 12 of 16 bits, as commands do it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from multichannel_images import labelled
from PIL import Image
from safetensors.torch import load_file, save_file
from sample_images import unpack_sample

from mixco.cli import main
from mixco.encoders.loading import load_encoder
from mixco.models.encoder import input_channels
from mixco.training.checkpoints import checkpoints

TINY = ("--arch", "test_resnet", "--stem", "standard", "--size", "32", "--batch-size", "20")
QUICKLY = ("--device", "cpu", "--precision", "float32")


def pretrain(data: Path, out: Path, *options: str) -> Path:
    cache = ("--cache", str(out.parent / "cache"), "--out", str(out))
    main(["pretrain", "--data", str(data), *cache, *TINY, *QUICKLY, *options])
    return out


def result(run: Path, kind: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((run / "results.json").read_text())[kind]
    return found


def evaluate(verb: str, run: Path, *options: str) -> None:
    cache = ("--cache", str(run.parent / "cache"))
    main([verb, "--run", str(run), *cache, *QUICKLY, *options])


@pytest.mark.slow
def test_thirteen_bands_of_twelve_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped and gone on with, evaluated in every way, packed and streamed."""
    data = labelled(tmp_path / "bands", 8, 2, channels=13, bits=16, ending=".tif")
    moco = ("--method", "moco", "--queue", "40", "--holdout", "0.2")
    whole = pretrain(data, tmp_path / "whole", *moco, "--epochs", "2", "--checkpoint-steps", "3")
    assert "80 images with 13 channels of 16 bits, packed" in capsys.readouterr().err
    config = json.loads((whole / "config.json").read_text())
    assert (config["data"]["channels"], config["data"]["bits"]) == (13, 16)
    encoder = load_encoder(whole)
    assert input_channels(encoder.backbone) == encoder.description.channels == 13
    assert max(encoder.description.mean) < 1 / 16, "measured: 12 bits of 16"
    for path in checkpoints(whole):
        assert load_encoder(path).description == encoder.description

    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "config.json").write_bytes((whole / "config.json").read_bytes())
    (stopped / "checkpoints").mkdir()
    first = checkpoints(whole)[0]
    (stopped / "checkpoints" / first.name).write_bytes(first.read_bytes())
    pretrain(data, stopped, *moco, "--epochs", "2", "--checkpoint-steps", "3")
    ended = [load_file(run / "encoder.safetensors") for run in (whole, stopped)]
    assert all(torch.equal(ended[0][key], ended[1][key]) for key in ended[0])

    evaluate("knn", whole)
    packed = result(whole, "knn")
    assert (packed["train_images"], packed["test_images"]) == (80, 20)
    evaluate("knn", whole, "--loading", "streamed", "--workers", "0")
    assert abs(result(whole, "knn")["top1"] - packed["top1"]) <= 5  # type: ignore[operator]
    evaluate("linear", whole, "--epochs", "2")
    evaluate("linear", whole, "--epochs", "1", "--protocol", "paper", "--supervised")
    evaluate("finetune", whole, "--epochs", "1")
    for kind in ("linear", "supervised", "finetune"):
        assert result(whole, kind)["test_images"] == 20


@pytest.mark.slow
def test_greyscale_of_twelve_bits(tmp_path: Path) -> None:
    data = labelled(tmp_path / "grey", 6, 1, channels=1, bits=16, ending=".png")
    run = pretrain(
        data, tmp_path / "run", "--epochs", "1", "--loading", "streamed", "--workers", "2"
    )
    assert load_encoder(run).description.channels == 1
    evaluate("knn", run)
    for name in ("views.png", "neighbours.png"):
        with Image.open(run / name) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        grey = (np.ptp(pixels, axis=2) == 0) & (pixels[:, :, 0] > 40) & (pixels[:, :, 0] < 220)
        assert grey.mean() > 0.1, "bright enough to be seen"


def test_an_encoder_and_images_of_other_channels_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled(tmp_path / "bands", 2, 1, channels=4, bits=8, ending=".npy")
    run = pretrain(data, tmp_path / "run", "--epochs", "1", "--knn-every", "0")
    with pytest.raises(SystemExit):
        evaluate("knn", run, "--data", "sample")
    assert "3 channels, not 4" in capsys.readouterr().err

    weights = load_file(run / "encoder.safetensors")
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_file(weights, elsewhere)  # without our description
    command = ["knn", "--checkpoint", str(elsewhere), "--arch", "test_resnet", "--data", str(data)]
    with pytest.raises(SystemExit):
        main(command)
    assert "4 channels" in capsys.readouterr().err

    timm_like = tmp_path / "rgb.safetensors"
    first = next(key for key in weights if key.endswith("conv1.0.weight") or key == "conv1.weight")
    save_file({**weights, first: weights[first][:, :3].contiguous()}, timm_like)
    with pytest.raises(SystemExit):
        main([*command[:2], str(timm_like), *command[3:]])
    error = capsys.readouterr().err
    assert "4 channels, not 3" in error
    assert "leave out --channels" in error


def test_a_run_from_before_there_were_channels_goes_on(tmp_path: Path) -> None:
    data = unpack_sample(tmp_path / "photos", train=8, test=1, classes=3)
    run = pretrain(data, tmp_path / "run", "--epochs", "1", "--knn-every", "0")
    config = json.loads((run / "config.json").read_text())
    assert (config["data"].pop("channels"), config["data"].pop("bits")) == (3, 8)
    (run / "config.json").write_text(json.dumps(config))
    (run / "results.json").unlink()
    pretrain(data, run, "--epochs", "1", "--knn-every", "0")
    assert result(run, "pretrain")["epochs"] == 1
