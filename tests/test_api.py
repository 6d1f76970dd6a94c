"""The commands as Python functions."""

import inspect
from pathlib import Path

import pytest
from run_folders import ARCH, random_run
from sample_images import unpack_sample

import mixco
from mixco.settings.commands import KNNConfig
from mixco.settings.parse import flat_fields


def test_a_run_by_keywords_is_an_object_and_a_path(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=6, test=2, classes=2)
    run = mixco.pretrain(
        data=photos,
        out=str(tmp_path / "run"),
        recipe="demo",
        arch=ARCH,
        epochs=2,
        batch_size=6,
        knn_every=0,
        cache=tmp_path / "cache",
    )
    assert run.folder == tmp_path / "run" and Path(run) == run.folder
    assert (run / "encoder.safetensors").is_file()
    assert [record["epoch"] for record in run.metrics] == [1, 2]
    assert run.results["pretrain"]["images"] == 12
    assert run.config.method.min_crop == 0.08, "of the recipe"
    assert run.config.optimisation.epochs == 2, "keywords go first"
    assert run.encoder().embed(photos).shape == (16, 96)
    result = mixco.evaluate_knn(run=run, k=3, cache=tmp_path / "cache")
    assert result["k"] == 3 and run.results["knn"] == result
    assert mixco.evaluate_linear(run=run, epochs=2, cache=tmp_path / "cache")["epochs"] == 2


def test_a_config_is_taken_as_before(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=4, test=2, classes=2)
    run = random_run(tmp_path / "run", photos)
    config = KNNConfig(mixco.EvaluationConfig(run=run, cache=tmp_path / "cache"), k=2)
    assert mixco.evaluate_knn(config)["k"] == 2
    assert mixco.evaluate_knn(config, k=1)["k"] == 1


def test_mistakes_are_told() -> None:
    for settings, words in (
        ({"epoch": 3}, "did you mean epochs?"),
        ({"epochs": "three"}, "epochs must be an integer, got 'three'"),
        ({"method": "simcrl"}, "did you mean simclr?"),
        ({"recipe": "demmo"}, "did you mean demo?"),
        ({"config": mixco.PretrainConfig(), "recipe": "demo"}, "not both"),
        ({"out": 3}, "out must be a path, got 3"),
    ):
        with pytest.raises(mixco.UserError) as told:
            mixco.pretrain(**settings)  # type: ignore[arg-type]
        assert words in str(told.value) and str(told.value).startswith(("pretrain: ", "--recipe"))
    with pytest.raises(mixco.UserError, match=r"knn: .*rum.*did you mean run"):
        mixco.evaluate_knn(rum="runs/a")


def test_the_keywords_are_shown() -> None:
    parameters = inspect.signature(mixco.pretrain).parameters
    assert parameters.keys() == {"config", *flat_fields(mixco.PretrainConfig)}
    assert parameters["seed"].default == 0
    assert list(inspect.signature(mixco.neighbours).parameters)[:3] == ["run", "images", "among"]
