"""What comes last in a run is tried before its first step, and cannot lose the run at its end."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import pretrain_config
from sample_images import unpack_sample

import mixco
from mixco.encoders import checkpoint
from mixco.encoders.checkpoint import fingerprint
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.export import formats
from mixco.report import page
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json
from mixco.settings.config import PretrainConfig
from mixco.training import pretrain as loop
from mixco.training import rehearsal, run
from mixco.training.build import build
from mixco.training.pretrain import pretrain
from mixco.training.rehearsal import rehearse
from mixco.training.setup import prepare

SETTINGS = {
    "arch": "test_resnet",
    "size": 32,
    "method": "simclr",
    "batch_size": 4,
    "epochs": 1,
    "dim": 16,
    "knn_every": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=4, test=2, classes=2)


def places(photos: Path, out: Path) -> dict[str, Any]:
    return {"data": str(photos), "cache": photos / "cache", "out": out}


def config(photos: Path, out: Path) -> PretrainConfig:
    return pretrain_config(**SETTINGS, **places(photos, out))


def fails(error: Exception) -> Callable[..., None]:
    def failing(*_: object, **__: object) -> None:
        raise error

    return failing


def test_it_changes_nothing_and_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tried = []
    with ExitStack() as stack:
        setup = prepare(config(photos, tmp_path / "run"), stack)
        method = build(setup).train()
        before, state = fingerprint(method), torch.get_rng_state()
        rehearse(setup, method, (lambda encoder, folder: tried.append((encoder, folder)),))
    assert fingerprint(method) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in method.modules())
    assert list(tmp_path.iterdir()) == []
    (encoder, folder) = tried[0]
    assert encoder.description == setup.encoder
    assert not folder.exists()


@pytest.mark.parametrize(
    ("where", "name", "sentence"),
    [
        (checkpoint, "save_file", r"--arch test_resnet: the encoder cannot be saved.*it broke"),
        (rehearsal, "load_encoder", r"cannot be saved and read back.*it broke"),
        (rehearsal, "draw_pictures", r"the pictures of the run cannot be drawn.*it broke"),
        (formats, "save_file", r"--arch test_resnet: the encoder could not be exported.*it broke"),
        (page, "Environment", r"the page of the run cannot be made.*it broke"),
    ],
)
def test_what_cannot_be_done_at_the_end_ends_the_run_before_it_begins(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    sentence: str,
) -> None:
    monkeypatch.setattr(where, name, fails(RuntimeError("it broke\nat length")))
    with pytest.raises(UserError, match=sentence + ".*nothing was trained"):
        mixco.pretrain(**SETTINGS, **places(photos, tmp_path / "run"), report=True)
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_is_read_back_as_another_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(path: Path) -> LoadedEncoder:
        loaded = load_encoder(path)
        with torch.no_grad():
            next(loaded.backbone.parameters()).add_(1)
        return loaded

    monkeypatch.setattr(rehearsal, "load_encoder", other)
    with pytest.raises(UserError, match=r"gives other features when loaded.*nothing was trained"):
        pretrain(config(photos, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_features_that_are_not_finite_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_broken(setup: Any) -> torch.nn.Module:
        method = build(setup)
        with torch.no_grad():
            next(method.get_submodule("encoder.backbone").parameters()).fill_(float("nan"))
        return method

    monkeypatch.setattr(loop, "build", build_broken)
    with pytest.raises(UserError, match="test_resnet gives features that are not finite"):
        pretrain(config(photos, tmp_path / "run"))


def test_a_temporary_folder_that_cannot_be_written_is_no_reason(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", fails(FileNotFoundError("no usable one")))
    assert load_encoder(pretrain(config(photos, tmp_path / "run")))


def test_pictures_that_fail_at_the_end_are_a_warning(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "draw_pictures", fails(RuntimeError("no fonts\nat all")))
    folder = pretrain(config(photos, tmp_path / "run"))
    assert load_encoder(folder).matched > 0
    assert read_json(folder / "results.json")["pretrain"]["epochs"] == 1
    assert not (folder / "views.png").exists()
    assert (
        "warning: the pictures of the run could not be drawn (no fonts)" in capsys.readouterr().err
    )


def test_a_page_that_fails_at_the_end_is_a_warning(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(page, "write_page", fails(ValueError("no room")))
    done = mixco.pretrain(**SETTINGS, **places(photos, tmp_path / "run"), report=True)
    assert done.results["pretrain"]["epochs"] == 1
    said = capsys.readouterr().err
    assert "warning: no page of the run (no room); `mixco report" in said
