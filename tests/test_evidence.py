"""The runs of experiments/evidence.toml: their list, their tables, and one of them in short."""

import importlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from configs import with_images
from sample_images import unpack_sample

from mixco.settings.config import PretrainConfig
from mixco.settings.parse import load_recipe, recipe_names
from mixco.settings.resolve import Facts, resolve

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("evidence")


def figures(seed: int) -> dict[str, Any]:
    return {
        "epochs": 200,
        "of_epochs": 200,
        "seconds": 3600.0 * (1 + seed),
        "hardware": "a machine",
        "settings": {"method": {"method": "moco", "mix": "mixco"}, "data": {"data": "cifar10"}},
        "knn": 70.0 + seed,
        "knn_equal": 71.0,
        "knn_200": 72.0,
        "linear": 75.0,
    }


def test_rows_are_of_recipes_and_published_ones_name_their_source(evidence: ModuleType) -> None:
    rows, published, seeds = evidence.plan()
    assert {row["recipe"] for row in rows} <= set(recipe_names())
    assert len({row["name"] for row in rows}) == len(rows)
    assert len(set(seeds)) == len(seeds)
    tables = {row["table"] for row in rows}
    assert all(row["table"] in tables and row["source"] for row in published)


def test_the_tables_of_the_results_are_those_of_the_figures(evidence: ModuleType) -> None:
    text = evidence.RESULTS.read_text("utf-8")
    between = text.split(evidence.BEGIN)[1].split(evidence.END)[0]
    assert between.strip() == evidence.tables(evidence.read(evidence.FOUND)).strip()


def test_the_page_on_mixing_is_made_from_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    pays = importlib.import_module("pays")
    between = pays.PAGE.read_text("utf-8").split(pays.BEGIN)[1].split(pays.END)[0]
    assert between.strip() == pays.tables()


def test_a_difference_is_that_of_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    pays = importlib.import_module("pays")
    without = {"0": (60.0, 70.0), "1": (62.0, 70.0), "2": (64.0, 70.0), "7": (0.0, 0.0)}
    mixed = {"0": (61.0, 70.0), "1": (64.0, 70.0), "2": (67.0, 70.0)}
    pair = pays.Pair("photographs", "SimCLR", "100", "1.5", without, mixed)
    # A mean of 2 and a standard deviation of 1 over three seeds: 4.303 / sqrt(3) to either side.
    assert pays.difference(pair, 0) == "+2.0 (-0.5 to +4.5)"
    assert pays.difference(pair, 1) == "+0.0 (+0.0 to +0.0)"


def test_a_table_has_ours_the_published_and_what_is_not_finished(evidence: ModuleType) -> None:
    begun = figures(0) | {"epochs": 40, "knn_held_out": {"35": 50.0, "40": 51.5}}
    for name in ("knn", "knn_equal", "knn_200", "linear", "seconds"):
        del begun[name]
    text = evidence.tables(
        {"cifar10-moco-mixco": {"0": figures(0), "1": figures(1)}, "cifar10-moco": {"0": begun}}
    )
    ours = next(line for line in text.splitlines() if line.startswith("| MoCo + MixCo |"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells == [
        *("MoCo + MixCo", "200", "15", "1.5 h, a machine", "70.5 ± 0.7", "71.0 ± 0.0"),
        *("72.0 ± 0.0", "75.0 ± 0.0", "2", "us"),
    ]
    assert "dkobak/simclr-cifar10" in text
    assert "seed 0: epoch 40 of 200, held-out kNN 51.5 % at epoch 40" in text


def test_a_run_is_stopped_goes_on_and_is_evaluated(tmp_path: Path) -> None:
    """On photographs of the sample, by a tiny encoder: the row's own data would take hours."""
    photos = unpack_sample(tmp_path / "photos", train=12, test=4, classes=4)
    more = [
        "--data",
        str(photos),
        "--arch",
        "test_resnet",
        "--batch-size",
        "24",
        "--bn-splits",
        "1",
    ]
    more += ["--queue", "24", "--epochs", "30", "--cache", str(tmp_path / "cache")]
    found, out = tmp_path / "evidence.json", tmp_path / "runs"
    command = [sys.executable, str(EXPERIMENTS / "evidence.py"), "run", "--seed", "0"]
    command += ["--row", "cifar10-moco-own-stem", "--data-path", str(photos), "--out", str(out)]
    command += ["--found", str(found), "--more", shlex.join(more), "--nice", "0"]

    def now() -> dict[str, Any]:
        read: dict[str, Any] = json.loads(found.read_text("utf-8"))["cifar10-moco-own-stem"]["0"]
        return read

    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = out / "cifar10-moco-own-stem-s0" / "metrics.jsonl"
    while first.poll() is None and not (metrics.exists() and metrics.read_text("utf-8")):
        time.sleep(0.05)
    first.terminate()
    told, _ = first.communicate(timeout=120)
    assert "goes on" in told, told
    assert 1 <= now()["epochs"] < 30
    assert "linear" not in now()

    subprocess.run(command, capture_output=True, check=True)
    assert now()["epochs"] == 30
    assert {"knn", "knn_equal", "knn_200", "linear", "seconds", "torch"} <= now().keys()
    assert "--recipe cifar10_moco --stem standard" in now()["command"]
    again = subprocess.run(command, capture_output=True, check=True)
    assert again.stdout == b"", "there is nothing left to do"


def test_two_processes_take_two_runs(tmp_path: Path, evidence: ModuleType) -> None:
    lock = tmp_path / "lock"
    with evidence.mine(lock) as first, evidence.mine(lock) as second:
        assert (first, second) == (True, False)


def test_the_row_for_cpus_has_the_published_settings_and_another_stem(
    evidence: ModuleType,
) -> None:
    for row in evidence.plan()[0]:
        if row["name"].endswith("own-stem"):
            assert row["options"] == "--stem standard"
            found: PretrainConfig = load_recipe(row["recipe"])
            assert resolve(with_images(found), Facts(50_000)).optimisation.batch_size == 512
