"""Services beside metrics.jsonl: real ones where they are installed, and what holds when one fails."""

import json
import os
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from configs import pretrain_config
from forked import python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixco.cli import main
from mixco.runtime.errors import UserError
from mixco.runtime.loggers import LOGGERS, Logger
from mixco.training.loggers import Service, followed_by, require

RECORDS = [
    {"epoch": epoch, "loss": 5.0 - epoch / 4, "accuracy": 10.0 * epoch} for epoch in (1, 2, 3)
]
CONFIG = {"data": {"size": 32}, "run": {"log_to": ["mlflow"], "out": None}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def needs(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"needs {name}: pip install 'mixco[{name}]'")


IN_TWO_PARTS = """
import json, sys
from pathlib import Path
from mixco.training.loggers import followed_by
name, folder, config, records = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
with followed_by([name], folder, config, 0) as follow:
    follow(records[:1])
    follow(records[:2])
with followed_by([name], folder, config, 1) as follow:
    follow(records[:2])
    follow(records)
"""


def in_two_parts(folder: Path, name: str) -> dict[str, Any]:
    """A run that is stopped after two epochs, of which it has to do the second again.

    In a process of its own: services leave threads behind.
    """
    arguments = [name, str(folder), json.dumps(CONFIG), json.dumps(RECORDS)]
    done = python("-c", IN_TWO_PARTS, *arguments)
    assert done.returncode == 0, done.stderr
    known = json.loads((folder / "loggers.json").read_text())[name]
    assert known["epochs"] == 3
    return dict(known)


def test_wandb_goes_on_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    known = in_two_parts(folder, "wandb")
    written = list((folder / "wandb").glob(f"offline-run-*-{known['id']}/*.wandb"))
    assert len(written) == 2
    assert all(path.stat().st_size > 0 for path in written)


def test_mlflow_goes_on_in_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'ml.db'}")
    known = in_two_parts(folder, "mlflow")
    with sqlite3.connect(folder / "ml.db") as connection:
        losses = connection.execute(
            "select run_uuid, step, value from metrics where key = 'loss' order by step"
        ).fetchall()
        params = dict(connection.execute("select key, value from params").fetchall())
        (status,) = connection.execute("select status from runs").fetchall()
    assert losses == [(known["id"], r["epoch"], r["loss"]) for r in RECORDS]
    assert params["data.size"] == "32"
    assert status == ("FINISHED",)


def test_trackio_goes_on_in_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    needs("trackio")
    known = in_two_parts(folder, "trackio")
    (database,) = (folder / "trackio").glob("mixco*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select step, metrics from metrics where run_name = ? order by step", (known["id"],)
        ).fetchall()
    losses = [(step, json.loads(metrics)["loss"]) for step, metrics in rows]
    assert losses == [(r["epoch"], r["loss"]) for r in RECORDS]


def to_a_file(folder: Path, _: dict[str, Any], identity: str | None) -> Service:
    """A service that writes lines into the run folder, unless a file says that its network is down."""

    def refuse_when_down() -> None:
        if (folder / "down").exists():
            raise ConnectionError("no route to host\nand more")

    def log(epoch: int, values: dict[str, float]) -> None:
        refuse_when_down()
        with (folder / "sent").open("a") as file:
            file.write(f"{epoch} {values['loss']}\n")

    refuse_when_down()
    return Service(identity or str(os.getpid()), log, lambda well: log(0, {"loss": well}))


@pytest.fixture
def file_service(monkeypatch: pytest.MonkeyPatch) -> str:
    """A further service: one function, and one line in the table."""
    monkeypatch.setitem(LOGGERS, "file", Logger(f"{__name__}:to_a_file"))
    return "file"


def test_a_failing_service_gets_one_warning_and_later_what_it_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str], file_service: str
) -> None:
    with followed_by([file_service], folder, CONFIG, 0, rest=0.0) as follow:
        (folder / "down").touch()
        follow(RECORDS[:1])
        follow(RECORDS[:2])
        said = capsys.readouterr().err
        assert said.count("warning: file") == 1
        assert "(no route to host)" in said
        (folder / "down").unlink()
        follow(RECORDS)
        (folder / "down").touch()  # at the end, too
    assert (folder / "sent").read_text() == "1 4.75\n2 4.5\n3 4.25\n"
    with followed_by([file_service], folder, CONFIG, 3):  # down when the run is resumed
        pass
    assert "file cannot be reached (no route to host)" in capsys.readouterr().err


def test_a_service_that_cannot_be_started_is_told_before_the_run(
    folder: Path, file_service: str
) -> None:
    (folder / "down").touch()
    with (
        pytest.raises(UserError, match=r"--log-to file: .*no route.*leave it out"),
        followed_by([file_service], folder, CONFIG, 0),
    ):
        pass


def test_a_service_of_the_table_is_a_choice_of_log_to(
    file_service: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain_config(log_to=(file_service, "mlflow")).run.log_to == ("file", "mlflow")
    with pytest.raises(UserError, match=r"log_to.*'fils'.*did you mean file"):
        pretrain_config(log_to=("fils",))
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "wandb,mlflow,trackio,file" in shown
    command = ["pretrain", "--log-to", "file", "nothing", "--data", "no such images"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_service: str
) -> None:
    (tmp_path / "no_such_package").mkdir()  # as wandb's own folder of runs in the working directory
    monkeypatch.syspath_prepend(tmp_path)
    require([file_service])  # needs none
    entry = LOGGERS[file_service]._replace(package="no_such_package")
    monkeypatch.setitem(LOGGERS, file_service, entry)
    with pytest.raises(UserError, match=r"--log-to file.*pip install 'mixco\[file\]'"):
        require([file_service])


def test_tensorboard_has_every_epoch_once(folder: Path) -> None:
    for done, upto in ((0, 2), (1, 3)):  # stopped after two epochs, saved after the first
        with followed_by((), folder, CONFIG, done) as follow:
            for count in range(done + 1, upto + 1):
                follow(RECORDS[:count])
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("accuracy")] == [1, 2, 3]
    assert not (folder / "loggers.json").exists()
