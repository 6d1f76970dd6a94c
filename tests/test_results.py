import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mixco.runtime.run_folder
import mixco.runtime.version
from mixco.runtime.errors import UserError
from mixco.runtime.locks import locked
from mixco.runtime.run_folder import (
    add_result,
    append_metrics,
    collect,
    new_run_folder,
    read_confusions,
    read_json,
    read_metrics,
    versions,
    write_confusions,
    write_json,
)
from mixco.runtime.version import VERSION

SOURCE = Path(mixco.__file__).parents[1]


def test_a_run_folder_is_new_or_refused(tmp_path: Path) -> None:
    run = new_run_folder(tmp_path / "a" / "b")
    assert (run / "checkpoints").is_dir()
    with pytest.raises(UserError, match="not empty; give a new one"):
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


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json.*run folder"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json.*damaged"):
        read_json(tmp_path / "config.json")


def test_metrics_are_a_record_a_line(tmp_path: Path) -> None:
    records = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    for record in records:
        append_metrics(tmp_path, record)
    assert read_metrics(tmp_path) == records
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert read_metrics(tmp_path) == records, "the last line is still being written"


def test_names_of_version_0_1_are_read_as_those_of_today(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"epoch": 1, "waiting_share": 0.5})
    assert read_metrics(tmp_path) == [{"epoch": 1, "data_wait": 0.5}]
    write_json(tmp_path / "all.json", {"a": {"pretrain": {"waiting_share": 0.25}}})
    assert read_json(tmp_path / "all.json") == {"a": {"pretrain": {"data_wait": 0.25}}}


def test_the_version_of_a_copy_on_the_path_loads_nothing_heavy(tmp_path: Path) -> None:
    """-S and -E: without site-packages, where the metadata of an installed mixco lie."""
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        "from mixco.runtime.version import VERSION; print(VERSION)"
    )
    python = [sys.executable, "-S", "-E", "-c", code]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == VERSION


def test_versions_name_the_libraries_and_the_hardware() -> None:
    named = versions("cpu, 2 threads", "EPYC")
    assert {"python", "torch", "timm", "mixco", "platform", "processor"} <= named.keys()
    assert named["hardware"] == "cpu, 2 threads"


def test_versions_need_no_installed_mixco(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata.Distribution.from_name

    def without_ours(name: str) -> metadata.Distribution:
        if name == "mixco":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", without_ours)
    assert versions("cpu", "")["mixco"] == VERSION


WRITER = """
import sys
from pathlib import Path
from mixco.runtime.run_folder import add_result, collect
folder, name = Path(sys.argv[1]), sys.argv[2]
run = folder / name
run.mkdir()
print("ready", flush=True)
sys.stdin.readline()  # all start at once
for i in range(10):
    add_result(folder, f"{name}-{i}", {"top1": i})
    add_result(run, f"kind-{i}", {"top1": i})
    collect(run, folder / "sub" / "all.json", name)
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """In 2020 every process read, changed and wrote results.json without a lock."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, f"run{k}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n")
        assert writer.returncode == 0
    numbers = range(10)
    assert read_json(tmp_path / "results.json") == {
        f"run{k}-{i}": {"top1": i} for k in range(4) for i in numbers
    }
    assert read_json(tmp_path / "sub" / "all.json") == {
        f"run{k}": {f"kind-{i}": {"top1": i} for i in numbers} for k in range(4)
    }


def test_a_collection_takes_a_run_as_it_is_now(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"recipe": None})
    add_result(tmp_path, "pretrain", {"loss": 1.0})
    add_result(tmp_path, "old", {"top1": 1.0})
    collect(tmp_path, tmp_path / "all.json", "a")
    (tmp_path / "results.json").unlink()
    add_result(tmp_path, "pretrain", {"loss": 2.0})
    collect(tmp_path, tmp_path / "all.json", "b")
    collect(tmp_path, tmp_path / "all.json", "a")  # another run of this name: nothing old stays
    entry = {"config": {"recipe": None}, "pretrain": {"loss": 2.0}}
    assert read_json(tmp_path / "all.json") == {"a": entry, "b": entry}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for content, message in (("[]", "not a results file"), ("{", "damaged")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            add_result(tmp_path, "knn", {})
        assert path.read_text() == content
    with pytest.raises(UserError, match="run folder"):
        collect(tmp_path / "nowhere", tmp_path / "all.json", "x")
    assert not (tmp_path / "all.json").exists()


def test_a_lock_that_is_held_for_too_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixco.runtime.run_folder, "LONGEST_WAIT", 0.2)
    with (
        locked(tmp_path / ".results.json.lock"),
        pytest.raises(UserError, match=r"another process.*\.results\.json\.lock"),
    ):
        add_result(tmp_path, "knn", {"top1": 1.0})
    add_result(tmp_path, "knn", {"top1": 1.0})
    assert read_json(tmp_path / "results.json") == {"knn": {"top1": 1.0}}


def test_confusions_are_written_and_read(tmp_path: Path) -> None:
    counts = {('a,"b', "c\nd"): 3, ("é", "é"): 12}
    write_confusions(tmp_path, "knn@x", counts)
    path = tmp_path / "confusions-knn@x.csv"
    assert read_confusions(path) == counts
    assert path.read_text("utf-8").startswith("class,taken for,images")
    for damaged in (
        "",
        "a,b,c\n",
        "class,taken for,images\nx,y,many\n",
        "class,taken for,images\nx\n",
    ):
        path.write_text(damaged, "utf-8")
        with pytest.raises(UserError, match="damaged"):
            read_confusions(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_confusions(tmp_path / "confusions-linear.csv")
