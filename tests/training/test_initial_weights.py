"""Runs that start from weights: what they take over, what moves, and that nothing of it gets lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from configs import pretrain_config
from run_states import assert_equal, final_state
from safetensors.torch import load_file
from sample_images import unpack_sample

from mixco.cli import main
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.encoders.loading import load_encoder
from mixco.models.encoder import build_backbone
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.training.initial_weights import start_from
from mixco.training.pretrain import pretrain

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def weights(
    path: Path, arch: str = "test_resnet", size: int = 32, stem: str = "standard", channels: int = 3
) -> Path:
    """A file of weights whose batch norms have seen real statistics."""
    backbone = build_backbone(arch, size, stem, 7, channels)  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        backbone.train()(torch.rand(16, channels, size, size, generator=draws))
    about = EncoderDescription(
        arch, stem, size, MEAN[:channels], STD[:channels], "elsewhere, for a test"
    )
    save_encoder(path, backbone.eval(), about)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("start") / "start.safetensors")


def run(
    photos: Path, out: Path, init: Path, stop_after: int | None = None, **settings: Any
) -> Path:
    usual = {"size": 32, "epochs": 2, "batch_size": 16, "precision": "float32", "workers": 1}
    places = {"data": str(photos), "cache": photos.parent / "cache", "out": out, "init": str(init)}
    return pretrain(pretrain_config(**usual | places | settings), stop_after=stop_after)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_weights_learn_and_statistics_stay(
    method: str, photos: Path, start: Path, tmp_path: Path
) -> None:
    folder = run(photos, tmp_path / "run", start, method=method)
    config = read_json(folder / "config.json")
    assert config["model"]["arch"] == "test_resnet"
    assert config["model"]["bn_statistics"] == "frozen"
    assert (config["data"]["mean"], config["data"]["std"]) == (list(MEAN), list(STD))
    assert method != "moco" or config["method"]["bn_splits"] == 1
    before, after = load_file(start), load_file(folder / "encoder.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        stays = key.endswith(STATISTICS)
        assert torch.equal(before[key], after[key]) == stays, key
    kept = load_encoder(folder / "init.safetensors")
    assert_equal(kept.backbone.state_dict(), load_encoder(start).backbone.state_dict())
    assert kept.description.training == "elsewhere, for a test"
    assert "elsewhere" in read_json(folder / "results.json")["pretrain"]["init"]


def test_statistics_of_the_batch_move(photos: Path, start: Path, tmp_path: Path) -> None:
    folder = run(photos, tmp_path / "run", start, bn_statistics="batch")
    before, after = load_file(start), load_file(folder / "encoder.safetensors")
    assert not any(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_a_run_goes_on_without_the_file_that_it_started_from(
    method: str, photos: Path, start: Path, tmp_path: Path
) -> None:
    settings = {"method": method, "micro_batches": 2}
    whole = run(photos, tmp_path / "whole", start, **settings)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(start.read_bytes())
    folder = run(photos, tmp_path / "run", copy, stop_after=2, **settings)
    copy.unlink()
    run(photos, tmp_path / "run", copy, **settings)
    assert_equal(final_state(folder), final_state(whole))


def test_other_weights_are_another_run(photos: Path, start: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run", start, stop_after=1)
    other = weights(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="--init"):
        run(photos, tmp_path / "run", other)


def test_a_run_starts_from_another_run(photos: Path, start: Path, tmp_path: Path) -> None:
    first = run(photos, tmp_path / "first", start, epochs=1)
    second = run(photos, tmp_path / "second", first, epochs=1)
    kept = load_encoder(second / "init.safetensors").backbone.state_dict()
    assert_equal(kept, load_encoder(first).backbone.state_dict())
    training = load_encoder(second).description.training
    assert training.count("simclr+mixco on photos") == 2
    assert training.endswith("starting from elsewhere, for a test")


def test_the_stem_is_that_of_the_weights_whatever_the_size(photos: Path, tmp_path: Path) -> None:
    file = weights(tmp_path / "small.safetensors", "resnet18", 32, "conv3s1")
    folder = run(photos, tmp_path / "run", file, size=64, epochs=1, stop_after=1)
    assert read_json(folder / "config.json")["model"]["stem"] == "conv3s1"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"arch": "resnet18"}, "--arch"),
        ({"init": "missing.safetensors"}, "missing.safetensors"),
        ({"stem": "conv3s1"}, "--stem"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, Any], named: str, photos: Path, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=named):
        run(photos, tmp_path / "run", **{"init": start, **settings})
    assert not (tmp_path / "run").exists()


def test_random_weights_have_no_statistics_to_freeze(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--data", str(photos), "--bn-statistics", "frozen"]
    command += ["--precision", "float32"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")])
    assert ended.value.code == 2
    assert "--init" in capsys.readouterr().err


def test_grey_images_see_the_sum_of_the_first_convolution(tmp_path: Path) -> None:
    initial = load_encoder(weights(tmp_path / "rgb.safetensors"))
    grey = build_backbone("test_resnet", 32, "standard", 0, 1)
    start_from(grey, initial, 32)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = initial.backbone(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.eval()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_small_stems_take_other_channels(channels: int, tmp_path: Path) -> None:
    initial = load_encoder(weights(tmp_path / "rgb.safetensors", "resnet18", 32, "conv3s1"))
    backbone = build_backbone("resnet18", 64, "conv3s1", 0, channels)
    start_from(backbone, initial, 64)
    theirs, ours = initial.backbone.state_dict(), backbone.state_dict()
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs if k != "conv1.weight")
    summed = ours["conv1.weight"].sum(1)
    torch.testing.assert_close(summed, theirs["conv1.weight"].sum(1), rtol=0.5, atol=0.2)


def test_position_embeddings_follow_the_size(tmp_path: Path) -> None:
    initial = load_encoder(weights(tmp_path / "vit.safetensors", "test_vit", 64))
    same, larger = (build_backbone("test_vit", size, "standard", 0) for size in (64, 96))
    for backbone, size in ((same, 64), (larger, 96)):
        start_from(backbone, initial, size)
    assert_equal(same.state_dict(), initial.backbone.state_dict())
    theirs, ours = initial.backbone.state_dict(), larger.state_dict()
    assert ours["pos_embed"].shape != theirs["pos_embed"].shape
    assert all(torch.equal(theirs[k], ours[k]) for k in theirs if k != "pos_embed")
