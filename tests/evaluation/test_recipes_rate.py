import json
from pathlib import Path
from typing import Any

import pytest
from configs import config_of
from run_folders import random_run
from sample_images import unpack_sample

from mixco.evaluation.protocols import evaluate_linear
from mixco.settings.commands import LinearConfig


def test_the_recipes_rate_is_used_where_none_is_given(tmp_path: Path) -> None:
    """`linear_lr` of the run's config: for the linear layer by SGD, and for nothing else."""
    unpack_sample(tmp_path / "photos", train=8, test=2, classes=2)
    run = random_run(tmp_path / "run", tmp_path / "photos")
    settings = json.loads((run / "config.json").read_text())
    common = {"run": run, "cache": tmp_path / "cache", "batch_size": 16, "epochs": 1}

    def rate(**options: Any) -> tuple[float, str]:
        config = config_of(LinearConfig, protocol="paper", **common, **options)
        result = evaluate_linear(config)
        return result["head_lr"], result["head_lr_from"]

    from_features = rate()
    assert from_features[1] == "the features' mean squared length"
    settings["run"]["linear_lr"] = 0.125
    (run / "config.json").write_text(json.dumps(settings))
    assert rate() == (0.125, "the run's recipe")
    assert rate(lr=0.5) == (0.5, "settings")
    assert rate(optimizer="adam")[1] == "the features' mean squared length"
    assert rate(supervised=True)[0] == pytest.approx(0.1 * 16 / 256)
