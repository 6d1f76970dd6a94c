"""The sentences of the page about a run's results."""

from pathlib import Path

from mixco.report.run import Run
from mixco.report.text import numbers, summary


def run_with(**results: dict[str, float | str | None]) -> Run:
    return Run(Path("run"), {}, [], results, {}, [], "")


def test_results_on_other_data_or_weights_are_no_summary() -> None:
    """Their classes may be others, so the chance would be wrong, and the encoder is not theirs."""
    others = {"knn@photos": {"top1": 40.0}, "supervised": {"top1": 90.0, "checkpoint": None}}
    assert "90" not in (text := summary(run_with(**others), 10))
    assert "40" not in text
    text = summary(run_with(**others, linear={"top1": 62.0, "checkpoint": "x"}), 10)
    assert "62 of 100" in text
    assert "10 %" in text


def test_chance_is_of_the_run_s_own_classes() -> None:
    def titles(**results: dict[str, float | str | None]) -> list[str]:
        return [number.what for number in numbers(run_with(**results), None, 10)]

    assert "By chance" not in titles(**{"knn@photos": {"top1": 40.0}})
    assert "By chance" in titles(knn={"top1": 40.0})
