"""The verdict as a function of answers: its outcomes, its intervals, and how often it is wrong."""

import math

import pytest
import torch
from torch import Tensor

from mixco.comparison.verdict import (
    Difference,
    judge,
    judge_labels,
    packed,
    paired_difference,
    quantile,
    unpacked,
)


def answers(images: int, right: int, seeds: int = 1) -> Tensor:
    """bool [S, M]: the first `right` of so many images are right."""
    return (torch.arange(images) < right).expand(seeds, images)


def both(right: Tensor) -> dict[str, Tensor]:
    return {"knn": right, "linear": right}


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome", "words"),
    [
        (350, 300, "gained", "It paid: a gained 12.5 points by kNN"),
        (300, 350, "lost", "It did not pay: a lost 12.5 points by kNN"),
        (302, 300, "unclear", "Too close to tell on 400 test images"),
    ],
)
def test_the_three_outcomes(ours: int, theirs: int, outcome: str, words: str) -> None:
    verdict = judge("a", "b", both(answers(400, ours)), both(answers(400, theirs)), remedy="take b")
    assert verdict.outcome == outcome
    assert words in verdict.sentence
    assert ("take b" in verdict.sentence) == (outcome == "lost")
    assert verdict.differences["knn"].points == (ours - theirs) / 4


def test_measures_may_disagree_and_one_may_decide() -> None:
    low, middle, high = (answers(400, n) for n in (250, 300, 350))
    same = {"knn": middle, "linear": middle}
    assert judge("a", "b", {"knn": high, "linear": low}, same).outcome == "disagree"
    one = judge("a", "b", {"knn": high, "linear": middle}, same)
    assert one.outcome == "gained"
    assert "by the linear probe it is too close to tell" in one.sentence


def test_only_answers_that_differ_count() -> None:
    """Two encoders of equal accuracies are nearer to each other if they fail on the same images."""
    ours, theirs = answers(400, 300), answers(400, 292)
    alike = paired_difference(ours, theirs)
    unlike = paired_difference(ours, theirs.flip(1))
    assert alike.points == unlike.points == 2
    assert alike.outcome == "gained"
    assert unlike.outcome == "unclear"


def test_the_interval_is_that_of_agresti_and_min() -> None:
    """n12 = 5, n21 = 20 of 100: half an image is added to each cell."""
    ours, theirs = torch.zeros(2, 1, 100, dtype=torch.bool)
    ours[0, :20] = True
    theirs[0, 20:25] = True
    mean = (20.5 - 5.5) / 102
    error = math.sqrt(((20.5 + 5.5) / 102 - mean**2) / 102)
    found, t = paired_difference(ours, theirs), quantile(0.05, 100)
    assert found.points == 15
    assert found.low == pytest.approx(100 * (mean - t * error), abs=0.01)
    assert found.high == pytest.approx(100 * (mean + t * error), abs=0.01)


def test_seeds_that_differ_widen_the_interval() -> None:
    base = answers(400, 300)
    equal = paired_difference(answers(400, 330, seeds=3), base)
    spread = torch.cat([answers(400, n) for n in (290, 330, 370)])
    assert paired_difference(spread, base).points == equal.points == 7.5
    assert equal.outcome == "gained"
    assert paired_difference(spread, base).outcome == "unclear"


@pytest.mark.parametrize(
    ("error", "freedom", "t"),
    [
        (0.05, 1, 12.706),
        (0.025, 1, 25.452),
        (0.05, 2.0, 4.303),
        (0.05, 30, 2.042),
        (0.05, 1e5, 1.96),
    ],
)
def test_the_quantiles_are_those_of_the_tables(error: float, freedom: float, t: float) -> None:
    assert quantile(error, freedom) == pytest.approx(t, abs=2e-3)


@pytest.mark.parametrize("images", [20, 100])
def test_equal_encoders_seldom_look_different(images: int) -> None:
    """500 pairs that are right with the same probability: 5 % errors, and at most 9 % by chance."""
    draws = torch.rand(500, 2, 1, images, generator=torch.Generator().manual_seed(0)) < 0.7
    wrong = sum(paired_difference(*pair).outcome != "unclear" for pair in draws)
    assert 0 < wrong < 45


def test_labels_alone_at_each_share() -> None:
    ours = {"100%": answers(400, 300), "10%": answers(400, 280), "1%": answers(400, 200)}
    scratch = {"100%": answers(400, 360), "10%": answers(400, 281), "1%": answers(400, 120)}
    verdict = judge_labels("a", ours, scratch)
    assert verdict.outcome == "disagree"
    for words in (
        "with all of them it is 15.0 points worse",
        "with 10% it is too close to tell",
        "with 1% it is 20.0 points better",
    ):
        assert words in verdict.sentence


def test_the_outcome_of_a_difference() -> None:
    assert Difference(1, 0.1, 2).outcome == "gained"
    assert Difference(-1, -2, -0.1).outcome == "lost"
    assert Difference(1, -0.1, 2).outcome == "unclear"


@pytest.mark.parametrize("images", [1, 8, 13])
def test_answers_as_text(images: int) -> None:
    right = torch.rand(images, generator=torch.Generator().manual_seed(images)) < 0.5
    assert torch.equal(unpacked(packed(right), images), right)
    with pytest.raises(ValueError, match="expected"):
        unpacked(packed(right), images + 8)
