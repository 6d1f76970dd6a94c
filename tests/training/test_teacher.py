"""Runs that learn from a trained encoder of another size and normalisation."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from distributed_runs import config, prepared
from run_folders import random_run, random_teacher
from run_states import assert_equal, final_state
from sample_images import unpack_sample

import mixco.cli
from mixco.doctor.doctor import doctor
from mixco.embeddings.features import features_of
from mixco.encoders.checkpoint import fingerprint
from mixco.encoders.loading import load_encoder
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json, read_metrics
from mixco.settings.commands import DoctorConfig
from mixco.settings.config import PretrainConfig
from mixco.training.checkpoints import checkpoints
from mixco.training.pretrain import pretrain
from mixco.training.teacher import as_teacher
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, Input

FEATURES = 96  # of the teacher; the projection has as many, whatever --dim says


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_sample(tmp_path_factory.mktemp("photos"), train=16, test=2, classes=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_teacher(tmp_path_factory.mktemp("teacher"))


def distil(photos: Path, teacher: Path, **settings: Any) -> PretrainConfig:
    return config(photos, method="distil", teacher=str(teacher), queue=20, **settings)


@pytest.mark.parametrize(
    ("views", "mix", "loading"),
    [("same", "mixco", "packed"), ("central", "none", "packed"), ("central", "mixco", "streamed")],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    photos: Path, teacher: Path, tmp_path: Path, views: str, mix: str, loading: str
) -> None:
    settings = {"mix": mix, "loading": loading, "teacher_views": views, "workers": 1}
    before = fingerprint(load_encoder(teacher).backbone)
    run = pretrain(distil(photos, teacher, **settings, out=tmp_path / "whole"))
    stopped = distil(photos, teacher, **settings, out=tmp_path / "stopped")
    for steps in (2, 4):
        pretrain(stopped, stop_after=steps)
    assert_equal(final_state(pretrain(stopped)), final_state(run))

    saved = torch.load(checkpoints(run)[-1], weights_only=True)
    assert saved["teacher"] == before
    assert saved["method"]["queue.keys"].shape == (20, FEATURES)
    assert {key.split(".")[0] for key in saved["method"]} == {"encoder", "queue"}
    assert read_json(run / "config.json")["model"]["dim"] == FEATURES
    assert load_encoder(run).description.size == 32
    assert ("mixed" in read_metrics(run)[-1]) == (mix != "none")


def test_another_teacher_is_refused_on_resuming_and_a_moved_one_is_not(
    photos: Path, teacher: Path, tmp_path: Path
) -> None:
    where = {"out": tmp_path / "run"}
    pretrain(distil(photos, teacher, **where), stop_after=1)
    other = random_teacher(tmp_path, seed=6)
    with pytest.raises(UserError, match="teacher of other weights"):
        pretrain(distil(photos, other, **where), stop_after=2)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(teacher.read_bytes())
    pretrain(distil(photos, moved, **where), stop_after=2)
    assert torch.load(checkpoints(tmp_path / "run")[-1], weights_only=True)["step"] == 2


def test_a_teacher_sees_the_views_as_its_own_input(photos: Path, teacher: Path) -> None:
    """Features of the same images: made for the teacher, and made for the student first."""
    setup = prepared(photos, size=48, stem="standard", precision="float32")
    theirs, ours = load_encoder(teacher).description.input, Input(48, IMAGENET_MEAN, IMAGENET_STD)
    found = []
    for input in (theirs, ours):
        function = as_teacher(load_encoder(teacher), input, setup.compute)
        batches = setup.images.evaluation_batches(
            setup.members, input, compute=setup.compute, on_unreadable=lambda *_: None
        )
        found.append(torch.cat([function(views.float()) for _, views in batches]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
    assert not found[0].requires_grad


def test_central_outputs_go_with_their_images(photos: Path, teacher: Path, tmp_path: Path) -> None:
    more = {"method": "distil", "teacher": str(teacher), "teacher_views": "central"}
    more |= {
        "precision": "float32",
        "teacher_precision": "float32",
        "memory_format": "channels_last",
    }
    setup = prepared(photos, out=tmp_path / "run", **more)
    taught = setup.teacher
    features, index = features_of(
        taught.backbone,
        setup.images,
        torch.arange(len(setup.images)),
        taught.input,
        compute=setup.compute,
        on_unreadable=lambda *_: None,
    )
    rows = dict(zip(index.tolist(), features, strict=True))
    steps = [(drawn.images, setup.make_views(drawn)) for drawn in setup.batches(lambda *_: None)]
    assert len(steps) == setup.steps
    for batch, views in steps:
        assert [len(each) for each in views] == [16, 16]
        for row, output in zip(batch.tolist(), views[1], strict=True):
            torch.testing.assert_close(output, rows[row], rtol=1e-5, atol=1e-5)


def test_a_base_and_its_teacher_go_together(photos: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="give --teacher"):
        prepared(photos, method="distil", out=out)
    with pytest.raises(UserError, match="--method distil, or leave it out"):
        prepared(photos, method="simclr", teacher=str(teacher), out=out)
    with pytest.raises(UserError, match="there is no such file"):
        prepared(photos, method="distil", teacher=str(tmp_path / "nothing.safetensors"), out=out)
    grey = random_teacher(tmp_path, mean=(0.5,))
    with pytest.raises(UserError, match="give --channels 1, or another teacher"):
        prepared(photos, method="distil", teacher=str(grey), out=out)
    assert not out.exists()


def test_a_file_that_does_not_tell_its_architecture_is_exported_first(
    photos: Path, tmp_path: Path
) -> None:
    arch = "test_efficientnet"
    backbone = timm.create_model(arch, num_classes=0)
    torch.save(backbone.state_dict(), tmp_path / "plain.pt")
    options = {"method": "distil", "out": tmp_path / "run"}
    with pytest.raises(UserError, match="mixco export FILE --arch NAME --out FOLDER"):
        prepared(photos, teacher=str(tmp_path / "plain.pt"), **options)
    out = tmp_path / "exported"
    line = ("export", tmp_path / "plain.pt", "--arch", arch, "--size", 64, "--out", out)
    mixco.cli.main(list(map(str, line)))
    setup = prepared(photos, teacher=str(out / "model.safetensors"), **options)
    assert setup.teacher is not None
    assert setup.teacher.name == arch


def test_a_run_folder_is_a_teacher_and_the_doctor_tries_it(photos: Path, tmp_path: Path) -> None:
    run = random_run(tmp_path / "teacher", photos)
    for views in ("same", "central"):
        wanted = distil(photos, run, out=tmp_path / "run", teacher_views=views)
        found = doctor(DoctorConfig(pretrain=wanted))
        assert found["unusable"] is None
        assert found["trial"]["steps"] >= 2
        assert found["config"]["model"]["dim"] == FEATURES
        assert "--dim" in [choice["option"] for choice in found["choices"]]
