import json
from pathlib import Path

import pytest

from mixco.errors import UserError
from mixco.results import (
    add_result,
    append_metrics,
    new_run_folder,
    read_json,
    read_metrics,
    versions,
    write_json,
)


def test_a_run_folder_is_new_or_refused(tmp_path: Path) -> None:
    run = new_run_folder(tmp_path / "a" / "b")
    assert (run / "checkpoints").is_dir()
    with pytest.raises(UserError, match="the folder is not empty; give a new one"):
        new_run_folder(run)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        new_run_folder(tmp_path / "file" / "run")


def test_results_of_one_kind_leave_the_others(tmp_path: Path) -> None:
    add_result(tmp_path, "pretrain", {"loss": 1.0})
    add_result(tmp_path, "knn", {"top1": 50.0})
    add_result(tmp_path, "knn", {"top1": 60.0})
    assert read_json(tmp_path / "results.json") == {
        "pretrain": {"loss": 1.0},
        "knn": {"top1": 60.0},
    }


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_damaged_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is this a run folder"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_json(tmp_path / "config.json")


def test_metrics_are_a_record_a_line(tmp_path: Path) -> None:
    records = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    for record in records:
        append_metrics(tmp_path, record)
    assert read_metrics(tmp_path) == records


def test_versions_name_the_libraries_and_the_hardware() -> None:
    named = versions("cpu, 2 threads")
    assert {"python", "torch", "timm", "mixco", "platform"} <= named.keys()
    assert named["hardware"] == "cpu, 2 threads"
