"""The benchmarks' files of figures say where they come from, and the benchmarks run in small."""

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forked import python
from sample_images import unpack_sample

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIGURES = sorted((BENCHMARKS / "results").rglob("*.json"))
TINY = ("--size", "32", "--arch", "test_resnet", "--rounds", "1", "--device", "cpu")


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python(BENCHMARKS / script, *arguments, environment={"CUDA_VISIBLE_DEVICES": ""})


def rows_of(out: Path, script: str, *arguments: str | Path) -> list[dict[str, Any]]:
    """The rows that a small run of a benchmark writes."""
    done = run(script, *arguments, *TINY, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    test_figures_say_where_they_come_from(out)
    rows: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))["rows"]
    return rows


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_figures_say_where_they_come_from(path: Path) -> None:
    figures = json.loads(path.read_text("utf-8"))
    assert "command" in figures or "settings" in figures
    assert {"python", "torch", "hardware"} <= figures["versions"].keys()
    assert figures["rows"]


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    harness = importlib.import_module("harness")
    rates = {"ours": iter([2.0, 8.0]), "theirs": iter([1.0, 2.0])}
    subjects = {name: lambda r=r: {"images_per_second": next(r)} for name, r in rates.items()}
    found = harness.in_turn(subjects, 2)
    assert harness.ratios(found["ours"], found["theirs"]) == {"median": 3, "min": 2, "max": 4}


@pytest.mark.slow
def test_what_is_for_a_gpu_is_rehearsed_without_one(tmp_path: Path) -> None:
    """A row of the evidence table, from its recipe to the encoder in parts."""
    without = run("gpu.py", "tests", "--out", tmp_path / "none")
    assert (without.returncode, without.stdout) == (0, "no GPU\n")
    done = run("gpu.py", "train", "--rehearse", "--row", "cifar10-moco-mixco", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "train.log").read_text()
    origin, begun, ended = map(json.loads, (tmp_path / "train.jsonl").read_text().splitlines())
    assert {"python", "torch", "hardware"} <= origin["versions"].keys()
    assert "--row cifar10-moco-mixco" in begun["command"]
    assert {"knn", "knn_equal", "knn_200", "linear"} <= ended["results"].keys()
    assert "--recipe cifar10_moco_mixco" in ended["results"]["command"]
    parts = [path.read_bytes() for path in sorted(tmp_path.glob("encoder-*"))]
    encoder = tmp_path / "cifar10-moco-mixco-s0" / "encoder.safetensors"
    assert b"".join(parts) == encoder.read_bytes()


@pytest.mark.slow
def test_a_budget_ends_what_was_started(tmp_path: Path) -> None:
    done = run("gpu.py", "train", "--rehearse", "--out", tmp_path, "--budget", "8")
    assert done.returncode == 1 and "stopped after 8 s" in done.stdout
    assert "results" not in (tmp_path / "train.jsonl").read_text()


@pytest.mark.slow
def test_ours_is_compared_with_the_limit(tmp_path: Path) -> None:
    options = ("--steps", "1", "--batch-size", "32", "--queue", "64", "--workers", "1")
    subjects = ("--methods", "moco+mixco", "--subjects", "ours", "bare")
    packing, ours, bare = rows_of(tmp_path / "f.json", "pretraining.py", *options, *subjects)
    assert packing["packed_images"] == 32
    assert (ours["subject"], bare["subject"]) == ("ours", "bare")
    ratio = ours["images_per_second"]["median"] / bare["images_per_second"]["median"]
    assert bare["ours_over_theirs_images_per_second"]["median"] == pytest.approx(ratio, rel=0.01)


@pytest.mark.slow
def test_the_parts_of_a_step_make_up_the_step(tmp_path: Path) -> None:
    options = ("--batch-size", "32", "--steps", "2", "--methods", "moco+mixco")
    (row,) = rows_of(tmp_path / "f.json", "steps.py", "parts", *options)
    parts = {part: found["median"] for part, found in row["milliseconds"].items()}
    whole = parts.pop("step")
    assert sum(parts.values()) == pytest.approx(whole, rel=0.01)
    assert all(parts[part] > 0 for part in ("views", "queries", "keys", "momentum", "backward"))


@pytest.mark.slow
def test_growth_varies_one_factor_at_a_time(tmp_path: Path) -> None:
    options = ("--images", "64", "--workers", "0", "--base-batch", "32", "--base-queue", "64")
    short = ("--base-images", "64", "--seconds", "0", "--least", "1")
    given = ("growth", "--factors", "images", "workers", *options, *short)
    rows = rows_of(tmp_path / "f.json", "steps.py", *given)
    assert [(row["factor"], row["value"]) for row in rows] == [("images", 64), ("workers", 0)]


@pytest.mark.slow
def test_a_step_is_counted_without_being_computed() -> None:
    done = run("arithmetic.py", "--size", "32", "--arch", "test_resnet", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    methods = [line.split("|")[1].strip() for line in done.stdout.splitlines()[-4:]]
    assert methods == ["moco", "moco + mixco", "simclr", "simclr + mixco"]


@pytest.mark.slow
def test_the_chosen_formats_are_compared_with_the_rule_before(tmp_path: Path) -> None:
    options = ("--batch-size", "16", "--steps", "1")
    (row,) = rows_of(tmp_path / "f.json", "precision.py", *options)
    assert row["before"]["formats"] in row["choice"] and row["after"]["formats"] in row["choice"]
    ratio = row["after"]["images_per_second"]["median"]
    ratio /= row["before"]["images_per_second"]["median"]
    assert row["after_over_before"]["median"] == pytest.approx(ratio, rel=0.01)


def test_forms_of_the_same_images_are_read_and_listed(tmp_path: Path) -> None:
    photos = unpack_sample(tmp_path / "photos", train=8, test=1)
    small = ("--data", photos, "--workers", "0", "--batch-size", "16", "--batches", "2")
    rows = run_forms(tmp_path, "reading", *small)
    assert rows[0]["equal"] and rows[0]["images"] == 80
    assert {(row["what"], row["form"]) for row in rows[1:]} == {
        (what, form) for what in ("packing", "streaming") for form in ("folder", "tar", "parquet")
    }
    rows = run_forms(tmp_path, "startup", "--entries", "10000", "--arch", "test_resnet")
    assert [row["form"] for row in rows] == ["folder", "tar", "parquet"]
    assert "five_steps" in rows[1]


def run_forms(folder: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    out = folder / "figures.json"
    done = run("forms.py", *arguments, "--size", "32", "--rounds", "1", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    test_figures_say_where_they_come_from(out)
    rows: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))["rows"]
    return rows


def test_a_large_folder_is_listed(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = run("data.py", "listing", "--files", "500", "--rounds", "1", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
