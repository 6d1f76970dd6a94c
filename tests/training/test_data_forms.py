"""The same images as a folder, as tar shards and as Parquet: the same run by the same seed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from configs import pretrain_config
from run_folders import random_run
from run_states import assert_equal, final_state
from sample_images import unpack_sample
from shards import write_parquets, write_tars

import mixco.cli
from mixco.data.datasets import list_images
from mixco.runtime.errors import UserError
from mixco.training.pretrain import pretrain


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """60 images for training and 20 for testing, of 10 classes."""
    top = tmp_path_factory.mktemp("forms")
    forms = {form: top / form / "photos" for form in ("folder", "tar", "parquet")}
    folder = unpack_sample(forms["folder"], train=6, test=2)
    for split in ("train", "test"):
        write_tars(folder / split, forms["tar"])
        write_parquets(folder / split, forms["parquet"])
    return forms


def run(data: Path, top: Path, stop_after: int | None = None, **settings: Any) -> Path:
    config = pretrain_config(
        data=str(data),
        out=top / "run",
        cache=top / "cache",
        arch="test_resnet",
        size=32,
        batch_size=16,
        epochs=2,
        knn_every=1,
        holdout=0.2,
        workers=2,
        **settings,
    )
    return pretrain(config, stop_after=stop_after)


def assert_same(first: Path, second: Path) -> None:
    """All that the two runs ended with is equal, bit for bit, but for the names of their images."""
    states = [final_state(folder) for folder in (first, second)]
    for state in states:
        assert state.pop("data")["images"] == 60
    assert_equal(*states)


@pytest.mark.parametrize("loading", ["packed", "streamed"])
def test_the_same_run_from_each_form(forms: dict[str, Path], tmp_path: Path, loading: str) -> None:
    runs = {form: run(data, tmp_path / form, loading=loading) for form, data in forms.items()}
    for form in ("tar", "parquet"):
        assert_same(runs["folder"], runs[form])


def test_commands_find_the_shards_of_a_run(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From another folder, and after the run and its shards were moved together."""
    top = tmp_path / "here"
    for form in ("tar", "parquet"):
        shutil.copytree(forms[form], top / form)
    monkeypatch.chdir(top)
    cache = ["--cache", str(tmp_path / "cache")]
    shown = {}
    for form in ("tar", "parquet"):
        random_run(top / f"run-{form}", form)
        mixco.cli.main(["knn", "--run", f"run-{form}", "--k", "3", *cache])
        shown[form] = capsys.readouterr().out.partition(":")[2].partition("(")[0]
    assert shown["tar"] == shown["parquet"] and "top-1" in shown["tar"]
    first, *_ = list_images("tar", None, "pretrain").files
    mixco.cli.main(["neighbours", "run-tar", first, "--k", "2", *cache])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == first and len(lines) == 3
    mixco.cli.main(["embed", "run-parquet", "parquet", "--out", "vectors.parquet", *cache])
    mixco.cli.main(["duplicates", "vectors.parquet", "--threshold", "1"])


def test_a_run_goes_on_where_its_shards_are_now(forms: dict[str, Path], tmp_path: Path) -> None:
    whole = run(forms["tar"], tmp_path / "whole")
    shutil.copytree(forms["tar"], tmp_path / "first" / "photos")
    run(tmp_path / "first" / "photos", tmp_path / "begun", stop_after=3)
    shutil.move(tmp_path / "first", tmp_path / "second")
    again = run(tmp_path / "second" / "photos", tmp_path / "begun")
    assert_same(whole, again)
    with pytest.raises(UserError, match=r"the run began on 60 images.*fewer"):
        run(tmp_path / "second" / "photos" / "train-000000.tar", tmp_path / "begun")
