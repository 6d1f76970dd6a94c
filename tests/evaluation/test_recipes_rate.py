import json
from pathlib import Path

import pytest
from run_folders import random_run
from sample_images import unpack_sample

from mixco.evaluation.protocols import evaluate_linear
from mixco.settings.config import ClassifierConfig, EvaluationConfig, LinearConfig


def test_the_recipes_rate_is_used_where_none_is_given(tmp_path: Path) -> None:
    """`linear_lr` of the run's config: for the linear layer by SGD, and for nothing else."""
    unpack_sample(tmp_path / "photos", train=8, test=2, classes=2)
    run = random_run(tmp_path / "run", tmp_path / "photos")
    settings = json.loads((run / "config.json").read_text())

    def rate(**options: object) -> tuple[float, str]:
        classifier = {k: options.pop(k) for k in ("lr", "optimizer") if k in options}
        result = evaluate_linear(
            LinearConfig(
                EvaluationConfig(run=run, cache=tmp_path / "cache"),
                protocol="paper",
                epochs=1,
                classifier=ClassifierConfig(batch_size=16, **classifier),  # type: ignore[arg-type]
                **options,  # type: ignore[arg-type]
            )
        )
        return result["head_lr"], result["head_lr_from"]

    from_features = rate()
    assert from_features[1] == "the features' mean squared length"
    settings["run"]["linear_lr"] = 0.125
    (run / "config.json").write_text(json.dumps(settings))
    assert rate() == (0.125, "the run's recipe")
    assert rate(lr=0.5) == (0.5, "settings")
    assert rate(optimizer="adam")[1] == "the features' mean squared length"
    assert rate(supervised=True)[0] == pytest.approx(0.1 * 16 / 256)
