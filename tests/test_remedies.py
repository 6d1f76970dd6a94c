"""Whoever follows the remedy of an error gets on: it works, or the next error is another, true one."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from configs import pretrain_config, with_images
from sample_images import unpack_sample

from mixco.models.encoder import build_backbone
from mixco.runtime.errors import UserError
from mixco.settings import warnings
from mixco.settings.config import Settings
from mixco.settings.resolve import Facts, resolve
from mixco.training.pretrain import pretrain

OPTION = re.compile(r"give --([a-z-]+) (\d+)")
PROCESSES = re.compile(r"start at most (\d+) processes")
CASES: list[dict[str, Any]] = [
    {},
    {"batch_size": 2},
    {"batch_size": 64},
    {"batch_size": 3, "micro_batches": 2},
    {"micro_batches": 4},
    {"batch_size": 256, "micro_batches": 100},
    {"method": "moco"},
    {"method": "moco", "batch_size": 64, "bn_splits": 8},
    {"exclude_holdout": True, "batch_size": 8},
    {"method": "byol"},
    {"method": "barlow", "mix": "imix", "mix_loss": "added", "micro_batches": 3},
    {"method": "moco", "mix": "imix"},
]


def follow(images: int, processes: int, settings: dict[str, Any]) -> Settings | str:
    """The settings after all remedies, or the error that only more images can mend."""
    seen: list[str] = []
    while True:
        try:
            asked = with_images(pretrain_config(**settings))
            return resolve(asked, Facts(images, processes))
        except UserError as error:
            said = str(error)
        assert said not in seen, f"followed, and told the same again: {said}"
        seen.append(said)
        if found := OPTION.search(said):
            settings = {**settings, found[1].replace("-", "_"): int(found[2])}
        elif "give --mix none" in said:
            settings = {**settings, "mix": "none", "mix_loss": "auto"}
        elif found := re.search(r"--bn-splits must be between 1 and (\d+)", said):
            settings = {**settings, "bn_splits": int(found[1])}
        elif found := PROCESSES.search(said):
            assert int(found[1]) < processes
            processes = int(found[1])
        else:
            return said


@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize("processes", [1, 3, 8])
def test_remedies_for_few_images(processes: int, settings: dict[str, Any]) -> None:
    for images in (*range(34), 63, 64, 100, 1000):
        end = follow(images, processes, settings)
        if images >= 2:
            assert isinstance(end, Settings), f"{images} images: {end}"
            assert end.optimisation.batch_size <= images
        else:
            assert isinstance(end, str)
            assert "add images" in end and "--batch-size" not in end


@pytest.mark.parametrize("images", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("settings", [{}, {"batch_size": 64}, {"method": "moco"}], ids=str)
def test_a_real_run_on_few_images(
    tmp_path: Path, images: int, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without labels, and from real files: what is refused names a way that ends in an encoder."""
    found = sorted(unpack_sample(tmp_path / "all", train=9, test=1, classes=1).rglob("*.jpg"))
    (tmp_path / "few").mkdir()
    for path in found[:images]:
        shutil.copy(path, tmp_path / "few")
    given = {"data": str(tmp_path / "few"), "out": tmp_path / "run", "cache": tmp_path / "cache"}
    given |= {"arch": "test_resnet", "size": 32, "epochs": 1, **settings}
    for _ in range(3):
        try:
            run = pretrain(pretrain_config(**given))
        except UserError as error:
            option = OPTION.search(str(error))
            if option is None:
                assert images == 1, error
                assert "add images" in str(error)
                return
            given[option[1].replace("-", "_")] = int(option[2])
        else:
            assert (run / "encoder.safetensors").is_file()
            assert "--size 32 shows" not in capsys.readouterr().err
            return
    pytest.fail("three remedies were not enough")


def test_a_holdout_that_leaves_too_few(tmp_path: Path) -> None:
    """One image of each class stays; with two classes that is a batch."""
    photos = unpack_sample(tmp_path / "photos", train=4, test=1, classes=2)
    given = {"data": str(photos), "out": tmp_path / "run", "cache": tmp_path / "cache"}
    given |= {"arch": "test_resnet", "size": 32, "epochs": 1, "exclude_holdout": True}
    with pytest.raises(UserError, match="only 2 images to train on; give --batch-size 2"):
        pretrain(pretrain_config(**given, holdout=0.9, batch_size=8))
    assert pretrain(pretrain_config(**given, holdout=0.9, batch_size=2)).is_dir()


def test_the_only_image_that_is_left() -> None:
    with pytest.raises(UserError, match=r"only 1 image .*leave out --exclude-holdout"):
        resolve(with_images(pretrain_config(exclude_holdout=True)), Facts(1))


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_small_patch32_224", "test_vit"])
@pytest.mark.parametrize("size", [33, 47, 100, 223])
def test_sizes_that_are_offered_can_be_had(arch: str, size: int) -> None:
    with pytest.raises(UserError) as refused:
        build_backbone(arch, size)
    offered = re.search(r"give --size (\d+)(?: or (\d+))?", str(refused.value))
    assert offered is not None
    for other in filter(None, offered.groups()):
        assert int(other) >= 32
        build_backbone(arch, int(other))


def advice(settings: Settings, images: int) -> dict[str, str]:
    found = warnings.of_settings(settings, images, bfloat16=False)
    return {each.what: each.remedy for each in found}


@pytest.mark.parametrize("method", ["moco", "simclr"])
@pytest.mark.parametrize("images", [2, 3, 8, 31, 32, 33, 64, 200])
def test_what_warnings_advise_can_be_done(method: str, images: int) -> None:
    asked = with_images(pretrain_config(method=method, epochs=1))
    for remedy in advice(resolve(asked, Facts(images)), images).values():
        for option, value in re.findall(r"--(batch-size|epochs|bn-splits|queue) (\d+)", remedy):
            other = {"method": method, "epochs": 1, option.replace("-", "_"): int(value)}
            resolve(with_images(pretrain_config(**other)), Facts(images))


@pytest.mark.parametrize("batch", [2, 3, 4, 64])
def test_a_batch_that_is_too_large_for_the_memory(batch: int) -> None:
    [told] = warnings.of_trial(
        batch=batch, needed=100.0, memory=100, seconds=None, data_wait=None, streamed=False
    )
    smaller = re.search(r"--batch-size (\d+)", told.remedy)
    assert smaller is None if batch < 4 else 2 <= int(smaller[1]) < batch  # type: ignore[index]
