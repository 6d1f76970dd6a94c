"""The benchmarks' files of figures say where they come from, and the GPU's pieces run without a GPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIGURES = sorted((BENCHMARKS / "results").rglob("*.json"))


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_figures_say_where_they_come_from(path: Path) -> None:
    figures = json.loads(path.read_text("utf-8"))
    assert "command" in figures or "settings" in figures
    assert {"python", "torch", "hardware"} <= figures["versions"].keys()
    assert figures["rows"]


@pytest.mark.slow
def test_the_pieces_for_a_gpu_are_listed_and_need_one() -> None:
    listed = run("gpu.py", "--list")
    assert listed.returncode == 0, listed.stderr
    lines = [line.split() for line in listed.stdout.splitlines()]
    assert {"tests", "sync", "views-64", "rates-resnet18-64"} <= {line[0] for line in lines}
    assert all(int(line[1]) <= 540 for line in lines)
    without = run("gpu.py")
    assert (without.returncode, without.stdout) == (0, "no GPU\n")


@pytest.mark.slow
def test_a_piece_is_done_once_and_only_within_the_budget(tmp_path: Path) -> None:
    arguments = ("--dry-run", "--only", "views-64", "--out", tmp_path)
    late = run("gpu.py", *arguments, "--budget", "1")
    assert late.returncode == 0 and "views-64: not started" in late.stdout
    first = run("gpu.py", *arguments)
    assert first.returncode == 0 and "views-64: done\n" in first.stdout, first.stdout
    test_figures_say_where_they_come_from(tmp_path / "views-64.json")
    assert "views-64: done before" in run("gpu.py", *arguments).stdout


def test_a_point_of_the_growth_is_a_run_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    growth = importlib.import_module("growth")
    point = {"arch": "resnet18", "size": 64, "batch": 32, "queue": 64, "device": "cpu"}
    config = growth.config_of({**point, "data": "sample", "cache": "c", "out": "o", "workers": 2})
    assert (config.method.queue, config.data.loading) == (64, "streamed")


@pytest.mark.slow
def test_a_few_steps_are_those_of_the_products_loop(tmp_path: Path) -> None:
    """The benchmarks take the place of two of its functions; they must still fit."""
    options = ["--data", "sample", "--size", "32", "--stem", "conv3s2", "--device", "cpu"]
    where = ["--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    done = run("few_steps.py", "pretrain", *options, "--epochs", "1", *where)
    assert done.stdout.endswith("stepped\n"), done.stderr


@pytest.mark.slow
def test_the_parts_of_a_step_are_seen_in_the_products_loop(tmp_path: Path) -> None:
    options = ("--size", "32", "--batch", "32", "--steps", "2", "--rounds", "1", "--device", "cpu")
    done = run("step_parts.py", "--methods", "moco+mixco", *options, "--out", tmp_path / "f.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "f.json").read_text("utf-8"))["rows"]
    parts = {part: found["median"] for part, found in row["milliseconds"].items()}
    whole = parts.pop("step")
    assert sum(parts.values()) == pytest.approx(whole, rel=0.01)
    assert all(parts[part] > 0 for part in ("views", "queries", "keys", "momentum", "backward"))
