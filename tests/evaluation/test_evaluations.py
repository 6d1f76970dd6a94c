"""The table of evaluations, and what it takes to add one."""

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
from configs import config_of, evaluation_config
from run_folders import random_run
from sample_images import unpack_sample
from torch import Tensor

from mixco.evaluation import EVALUATIONS, Evaluation, evaluate, measured
from mixco.evaluation.features import Features, compute_features
from mixco.evaluation.protocols import evaluate_scores
from mixco.runtime.run_folder import read_confusions, read_json
from mixco.settings.commands import LinearConfig


def centroids(features: Features) -> Tensor:
    """Minus the distance to the mean of each class."""
    x, labels = features.train_features, features.train_labels
    means = [x[labels == c].mean(0) for c in range(features.classes)]
    return -Tensor([[(row - mean).norm() for mean in means] for row in features.test_features])


def transposed(features: Features) -> Tensor:
    return centroids(features).T


def undefined(features: Features) -> Tensor:
    return centroids(features) * float("nan")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    unpack_sample(tmp_path / "photos", train=12, test=4, classes=3)
    return random_run(tmp_path / "run", tmp_path / "photos")


def test_one_function_and_one_line_add_an_evaluation(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = f"{__name__}:centroids"
    monkeypatch.setitem(EVALUATIONS, "centroid", Evaluation("nearest centroid", scores=scores))
    config = evaluation_config(run, cache=run.parent / "cache")
    assert isinstance(config, resolve_name(EVALUATIONS["centroid"].config))
    result = evaluate("centroid", config)
    assert result["top1"] > 40, "chance is 33 %; even a random encoder tells colours"
    assert "top5" not in result, "of three classes"
    assert read_json(run / "results.json") == {"centroid": result}
    counts = read_confusions(run / "confusions-centroid.csv")
    assert sum(counts.values()) == result["test_images"] == 12

    features = compute_features(config)
    assert evaluate_scores("centroid", config, features) == result


@pytest.mark.parametrize(
    ("function", "message"), [("transposed", r"\[12, 3\], got \[3, 12\]"), ("undefined", "got NaN")]
)
def test_scores_that_cannot_be_ranked_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, function: str, message: str
) -> None:
    monkeypatch.setitem(EVALUATIONS, "t", Evaluation("t", scores=f"{__name__}:{function}"))
    with pytest.raises(ValueError, match=message):
        evaluate("t", evaluation_config(run, cache=run.parent / "cache"))
    assert not (run / "results.json").exists()


def test_each_evaluation_has_its_settings_and_its_function() -> None:
    for entry in EVALUATIONS.values():
        resolve_name(entry.config)()
        assert callable(resolve_name(entry.run or entry.scores))
    assert len({entry.title for entry in EVALUATIONS.values()}) == len(EVALUATIONS)


def test_linear_measures_what_its_options_say() -> None:
    paper = {"protocol": "paper"}
    options = {"linear": {}, "linear_paper": paper, "supervised": {**paper, "supervised": True}}
    for kind, settings in options.items():
        assert measured("linear", config_of(LinearConfig, **settings)) == kind
    assert measured("knn", None) == "knn"


def test_the_table_loads_nothing_heavy() -> None:
    code = "import sys, mixco.evaluation; print(sys.modules.keys() & {'torch', 'numpy', 'tyro'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
