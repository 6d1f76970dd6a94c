import math

import pytest

from mixco.training.schedules import learning_rate


def rates(**options: object) -> list[float]:
    return [learning_rate(s, steps=100, peak=2.0, **options) for s in range(100)]  # type: ignore[arg-type]


def test_cosine_falls_from_the_peak_to_almost_zero() -> None:
    cosine = rates(schedule="cosine")
    assert cosine[0] == 2.0
    assert cosine[50] == pytest.approx(1.0)
    assert cosine[99] == pytest.approx(1 + math.cos(math.pi * 0.99))
    assert cosine == sorted(cosine, reverse=True)


def test_warm_up_rises_linearly_and_meets_the_cosine_at_its_peak() -> None:
    warm = rates(schedule="cosine", warmup=0.1)
    assert warm[:10] == pytest.approx([2 * (s + 1) / 11 for s in range(10)])
    assert warm[10] == 2.0
    assert max(warm) == 2.0


def test_steps_divide_by_ten() -> None:
    steps = rates(schedule="steps", milestones=(0.6, 0.8))
    assert steps[:60] == [2.0] * 60
    assert steps[60:80] == pytest.approx([0.2] * 20)
    assert steps[80:] == pytest.approx([0.02] * 20)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="linear"):
        rates(schedule="linear")
