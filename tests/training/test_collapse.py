"""Spread and effective rank against closed forms, and the warning in real runs."""

from pathlib import Path

import pytest
import torch
from configs import pretrain_config
from sample_images import unpack_sample

from mixco.runtime.run_folder import read_metrics
from mixco.training.monitor import effective_rank, spread, warn_of_collapse
from mixco.training.pretrain import pretrain

HEALTHY = {"spread": 0.4, "effective_rank": 12.0}
GONE = {"spread": 0.01, "effective_rank": 12.0}
FLAT = {"spread": 0.4, "effective_rank": 1.05}


def drawn(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_one_direction_has_no_spread_and_rank_one() -> None:
    lengths = torch.linspace(0.5, 3, 40)[:, None]
    one = lengths * drawn(1, 16)
    assert spread(one) == pytest.approx(0, abs=1e-6)
    assert effective_rank(one) == pytest.approx(1, abs=1e-4)


def test_uniform_on_the_sphere_has_spread_one_and_full_rank() -> None:
    uniform = drawn(20_000, 16)
    assert spread(uniform) == pytest.approx(1, abs=0.01)
    assert effective_rank(uniform) == pytest.approx(16, rel=0.01)


@pytest.mark.parametrize("k", [2, 5])
def test_k_clusters_have_rank_k(k: int) -> None:
    clusters = torch.eye(16)[:k].repeat_interleave(10, 0)
    assert effective_rank(clusters) == pytest.approx(k)
    # In k of the 16 dimensions the standard deviation of a coin with p = 1 / k, else 0.
    deviation = (1 / k * (1 - 1 / k)) ** 0.5
    assert spread(clusters) == pytest.approx(k / 16 * deviation * 4)


def test_nothing_at_all_has_rank_zero() -> None:
    assert effective_rank(torch.zeros(4, 8)) == 0


def test_it_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[dict[str, float]] = []
    said = []
    for epoch, record in enumerate((GONE, HEALTHY, GONE, GONE, HEALTHY, FLAT), 1):
        records.append({"epoch": epoch, **record})
        warn_of_collapse(records, warmup=1.0)
        said.append("has collapsed" in capsys.readouterr().err)
    assert said == [False, False, True, False, False, False]
    warn_of_collapse([{"epoch": 1, **FLAT}], warmup=0.5)
    assert "effective rank 1.1" in capsys.readouterr().err


@pytest.mark.parametrize("lr", [None, 30.0])
def test_a_run_warns_when_it_collapses_and_only_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lr: float | None
) -> None:
    photos = unpack_sample(tmp_path / "photos", train=16, test=1, classes=4)
    config = pretrain_config(
        data=str(photos),
        cache=tmp_path / "cache",
        out=tmp_path / "run",
        size=32,
        stem="conv3s2",
        method="moco",
        mix="none",
        queue=16,
        epochs=4,
        batch_size=16,
        optimizer="sgd",
        lr=lr,
        knn_every=0,
    )
    records = read_metrics(pretrain(config))
    warnings = capsys.readouterr().err.count("has collapsed")
    assert warnings == (lr is not None), records
